import android.content.Context
import android.graphics.Bitmap
import java.nio.ByteBuffer

/** Reads a photo (width and height, then ARGB pixels) and lets every function classify it. */
fun main() {
    val (width, height) = readLine()!!.split(" ").map { it.toInt() }
    val pixels = readLine()!!.split(" ").map { it.toInt() }.toIntArray()
    val photo = Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888)
    println(ofFloat32(photo, ByteBuffer.allocateDirect(1)).joinToString(" "))
    println(ofInt8(photo, ByteBuffer.allocateDirect(1)).joinToString(" "))
    println(ofMixed(photo, ByteBuffer.allocateDirect(1)).joinToString(" "))
    println(Classifier(Context()).classify(photo))
}
