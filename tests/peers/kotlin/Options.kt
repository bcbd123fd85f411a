package com.google.mediapipe.tasks.core

class BaseOptions private constructor() {
    class Builder {
        fun setModelAssetPath(path: String): Builder = this

        fun build() = BaseOptions()
    }

    companion object {
        fun builder() = Builder()
    }
}
