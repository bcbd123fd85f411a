package android.graphics

/** As much of Android's class as the code in a report and in a bundle calls. */
class Bitmap private constructor(val width: Int, val height: Int, private val colors: IntArray) {
    enum class Config { ARGB_8888 }

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {
        for (row in 0 until height) for (column in 0 until width) {
            pixels[offset + row * stride + column] = colors[(y + row) * this.width + x + column]
        }
    }

    companion object {
        fun createBitmap(colors: IntArray, width: Int, height: Int, config: Config): Bitmap =
            Bitmap(width, height, colors)
    }
}
