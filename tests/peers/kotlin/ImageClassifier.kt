package com.google.mediapipe.tasks.vision.imageclassifier

import android.content.Context
import com.google.mediapipe.framework.image.MPImage
import com.google.mediapipe.tasks.core.BaseOptions

/** As much of MediaPipe's classes as Classifier.kt calls. */
class ImageClassifier private constructor() {
    class ImageClassifierOptions private constructor() {
        class Builder {
            fun setBaseOptions(value: BaseOptions): Builder = this

            fun build() = ImageClassifierOptions()
        }

        companion object {
            fun builder() = Builder()
        }
    }

    fun classify(image: MPImage) = ImageClassifierResult()

    companion object {
        fun createFromOptions(context: Context, options: ImageClassifierOptions) = ImageClassifier()
    }
}

class ImageClassifierResult {
    fun classificationResult() = ClassificationResult()
}

class ClassificationResult {
    fun classifications(): List<Classifications> = listOf(Classifications())
}

class Classifications {
    fun categories(): List<Category> = listOf(Category("cat", 2f), Category("dog", 2f))
}

class Category(private val name: String, private val score: Float) {
    fun categoryName(): String = name

    fun score(): Float = score
}
