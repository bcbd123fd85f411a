"""How to load what a run made: code for Python, Android and C++ with this run's own sizes and normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

Snippet = tuple[str, str, str]  # what it loads, the language, the code

_LOAD = Template("""import mobileprune

model = mobileprune.load("$run")  # an ordinary nn.Module in eval mode; takes (N, 3, $height, $width)""")

_ONNX_PYTHON = Template("""import numpy as np, onnxruntime
from PIL import Image

image = Image.open("photo.jpg").convert("RGB").resize(($width, $height), Image.Resampling.BILINEAR)
x = (np.asarray(image, np.float32) / 255 - $mean) / $std
session = onnxruntime.InferenceSession("$path")
x = x.transpose(2, 0, 1)[None].astype(np.float32)  # (1, 3, $height, $width)
logits = session.run(None, {session.get_inputs()[0].name: x})[0]""")

_TFLITE_PYTHON = Template("""import numpy as np
from PIL import Image
from ai_edge_litert.interpreter import Interpreter

image = Image.open("photo.jpg").convert("RGB").resize(($width, $height), Image.Resampling.BILINEAR)
x = (np.asarray(image, np.float32) / 255 - $mean) / $std
interpreter = Interpreter("$path")
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[None].astype(np.float32))  # NHWC
interpreter.invoke()
logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])""")

_TFLITE_KOTLIN = Template("""// build.gradle.kts: implementation("com.google.ai.edge.litert:litert:1.4.0")
val mean = floatArrayOf($means)
val std = floatArrayOf($stds)

fun logits(photo: Bitmap, file: MappedByteBuffer): FloatArray {
    val image = Bitmap.createScaledBitmap(photo, $width, $height, true)  // crop the centre square first
    val input = ByteBuffer.allocateDirect(4 * 3 * $height * $width).order(ByteOrder.nativeOrder())
    for (y in 0 until $height) for (x in 0 until $width) {
        val p = image.getPixel(x, y)
        for ((c, v) in intArrayOf(Color.red(p), Color.green(p), Color.blue(p)).withIndex())
            input.putFloat((v / 255f - mean[c]) / std[c])  // NHWC
    }
    val output = arrayOf(FloatArray($classes))
    Interpreter(file, Interpreter.Options().setNumThreads(4)).use { it.run(input.rewind(), output) }
    return output[0]
}""")

_TFLITE_CPP = Template("""#include "tflite/interpreter_builder.h"  // LiteRT
#include "tflite/kernels/register.h"
#include "tflite/model_builder.h"

auto model = tflite::FlatBufferModel::BuildFromFile("$path");
tflite::ops::builtin::BuiltinOpResolver resolver;
std::unique_ptr<tflite::Interpreter> interpreter;
tflite::InterpreterBuilder(*model, resolver)(&interpreter);
interpreter->AllocateTensors();
float* input = interpreter->typed_input_tensor<float>(0);  // $height x $width x 3: (pixel / 255 - mean) / std
interpreter->Invoke();
const float* logits = interpreter->typed_output_tensor<float>(0);  // $classes classes""")

_ONNX_CPP = Template("""#include <onnxruntime_cxx_api.h>

Ort::Env env;
Ort::Session session(env, "$path", Ort::SessionOptions{});
std::array<int64_t, 4> shape{1, 3, $height, $width};  // NCHW: (pixel / 255 - mean) / std
std::vector<float> pixels(3 * $height * $width);
auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
auto input = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
Ort::AllocatorWithDefaultOptions allocator;
auto in = session.GetInputNameAllocated(0, allocator), out = session.GetOutputNameAllocated(0, allocator);
const char *inputs[] = {in.get()}, *outputs[] = {out.get()};
auto result = session.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, 1);
const float* logits = result[0].GetTensorData<float>();  // $classes classes""")

_EXECUTORCH_CPP = Template("""#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
using namespace executorch::extension;

Module module("$path");
std::vector<float> pixels(3 * $height * $width);  // NCHW: (pixel / 255 - mean) / std
auto result = module.forward(from_blob(pixels.data(), {1, 3, $height, $width}));
const float* logits = result->at(0).toTensor().const_data_ptr<float>();  // $classes classes""")

_BY_FORMAT: dict[str, tuple[tuple[str, Template], ...]] = {
    "tflite": (("Python", _TFLITE_PYTHON), ("Android (Kotlin)", _TFLITE_KOTLIN), ("C++", _TFLITE_CPP)),
    "onnx": (("Python", _ONNX_PYTHON), ("C++", _ONNX_CPP)),
    "executorch": (("C++", _EXECUTORCH_CPP),),
}


def snippets(run: str, files: Mapping[str, Mapping[str, Any]]) -> list[Snippet]:
    """One piece of code per file and language. files: the summary's, with ``path``, ``format``, ``input``, ``classes``.

    Files that are not float32 take quantised inputs and are described by their manifest.json instead.
    """
    found: list[Snippet] = []
    for name, file in files.items():
        spec = file["input"]
        values = {
            "run": run,
            "path": file["path"],
            "height": spec["height"],
            "width": spec["width"],
            "classes": file["classes"],
            "mean": _python(spec["mean"]),
            "std": _python(spec["std"]),
            "means": _kotlin(spec["mean"]),
            "stds": _kotlin(spec["std"]),
        }
        if not found:
            found.append(("the PyTorch module", "Python", _LOAD.substitute(values)))
        if file["precision"] in ("float32", "float16"):
            found += [
                (name, language, code.substitute(values)) for language, code in _BY_FORMAT.get(file["format"], ())
            ]
    return found


def _python(values: Sequence[float]) -> str:
    return f"np.float32([{', '.join(f'{v:g}' for v in values)}])"


def _kotlin(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}f" for v in values)
