package org.tensorflow.lite

import java.nio.ByteBuffer

/** As much of LiteRT's classes as the code in a report calls; `run` prints its input and gives 0, 1, 2, ... */
class Interpreter(model: ByteBuffer, options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(numThreads: Int): Options = this
    }

    fun getInputTensor(inputIndex: Int) = Tensor(System.getProperty("taken"))

    fun getOutputTensor(outputIndex: Int) = Tensor(System.getProperty("given"))

    fun run(input: Any, output: Any) {
        val bytes = input as ByteBuffer
        println((0 until bytes.remaining()).joinToString(" ") { bytes.get(it).toString() })
        when (output) {
            is Array<*> -> (output[0] as FloatArray).let { for (i in it.indices) it[i] = i.toFloat() }
            is ByteBuffer -> for (i in 0 until output.remaining()) output.put(i, i.toByte())
        }
    }

    override fun close() = Unit
}

class Tensor(private val end: String) {
    class QuantizationParams(val scale: Float, val zeroPoint: Int)

    fun quantizationParams(): QuantizationParams =
        end.split(" ").let { (scale, zeroPoint) -> QuantizationParams(scale.toFloat(), zeroPoint.toInt()) }
}
