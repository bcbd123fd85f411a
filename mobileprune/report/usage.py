"""How to load what a run made: code for Python, Android and C++ with this run's own sizes and normalisation.

Every piece is run or compiled by `tests/peers/test_load_snippets.py`. Images become inputs by the rule of training
(`mobileprune.data.images`): the shorter side to the stored size, the centre square, and the same again to the input's
size where it is another. What integers stand for is read from the file itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

Snippet = tuple[str, str, str]  # what it loads, the language, the code

_LOAD = Template("""import mobileprune

model = mobileprune.load("$run")  # an ordinary nn.Module in eval mode; takes (N, 3, $height, $width)""")

_IMAGE_PYTHON = """import numpy as np
from PIL import Image
$imports


def fit(image, side):  # shorter side to so many pixels, then the centre square
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + side, top + side))


image = Image.open("photo.jpg").convert("RGB")
for side in [$sides]:  # as the images of the training were made
    image = fit(image, side)
mean, std = np.float32([$mean]), np.float32([$std])
x = (np.asarray(image, np.float32) / 255 - mean) / std
"""

_ONNX_PYTHON = """x = x.transpose(2, 0, 1)[None]  # (1, 3, $height, $width)

${options}session = onnxruntime.InferenceSession("$path"$with_options)
logits = session.run(None, {session.get_inputs()[0].name: x})[0]
print(logits.argmax())"""

_TFLITE_PYTHON = """
interpreter = Interpreter("$path")
interpreter.allocate_tensors()
taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
${input}interpreter.set_tensor(taken["index"], x[None])  # (1, $height, $width, 3)
interpreter.invoke()
logits = interpreter.get_tensor(given["index"])
${output}print(logits.argmax())"""

_TFLITE_PYTHON_INPUT = {
    "float32": "",
    "int8": """scale, zero_point = taken["quantization"]  # a real value is scale * (integer - zero_point)
x = np.clip(np.round(x / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)
""",
}
_TFLITE_PYTHON_OUTPUT = {
    "float32": "",
    "int8": """scale, zero_point = given["quantization"]
logits = np.float32(scale) * (logits.astype(np.float32) - zero_point)
""",
}

_TFLITE_KOTLIN = """// build.gradle.kts: implementation("com.google.ai.edge.litert:litert:1.+")
// Preprocess is that of android/Classifier.kt beside this file: the resize of the training.
import android.graphics.Bitmap
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

private val MEAN = floatArrayOf($means)
private val STD = floatArrayOf($stds)

/** What the network says of a photo. model: the file, mapped into memory. */
fun logits(photo: Bitmap, model: ByteBuffer): FloatArray {
    val pixels = IntArray(photo.width * photo.height)
    photo.getPixels(pixels, 0, photo.width, 0, 0, photo.width, photo.height)
    val square = Preprocess.resizeAndCrop(pixels, photo.width, photo.height)
    val interpreter = Interpreter(model, Interpreter.Options().setNumThreads(4))
$input$output}"""

_TFLITE_KOTLIN_INPUT = {
    "float32": """    val input = ByteBuffer.allocateDirect(4 * 3 * $height * $width).order(ByteOrder.nativeOrder())
    for (pixel in square) for (channel in 0..2) {
        val value = (pixel shr (16 - 8 * channel)) and 255
        input.putFloat((value / 255f - MEAN[channel]) / STD[channel])
    }
""",
    "int8": """    val input = ByteBuffer.allocateDirect(3 * $height * $width)
    val taken = interpreter.getInputTensor(0).quantizationParams() // a real value is scale * (integer - zeroPoint)
    for (pixel in square) for (channel in 0..2) {
        val value = (pixel shr (16 - 8 * channel)) and 255
        val real = (value / 255f - MEAN[channel]) / STD[channel]
        input.put((Math.round(real / taken.scale) + taken.zeroPoint).coerceIn(-128, 127).toByte())
    }
""",
}
_TFLITE_KOTLIN_OUTPUT = {
    "float32": """    val output = arrayOf(FloatArray($classes))
    interpreter.run(input.rewind(), output)
    interpreter.close()
    return output[0]
""",
    "int8": """    val output = ByteBuffer.allocateDirect($classes)
    interpreter.run(input.rewind(), output)
    val given = interpreter.getOutputTensor(0).quantizationParams()
    interpreter.close()
    return FloatArray($classes) { given.scale * (output[it] - given.zeroPoint) }
""",
}

_TFLITE_CPP = """#include <tflite/c/c_api.h>  // LiteRT's; in TensorFlow Lite <tensorflow/lite/c/c_api.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// image: $height x $width x 3 values, resized as android/Classifier.kt does, then (pixel / 255 - mean) / std with
// mean $mean and std $std
std::vector<float> logits(const std::vector<float>& image) {
  const char* path = "$path";
  TfLiteModel* model = TfLiteModelCreateFromFile(path);
  TfLiteInterpreter* interpreter = TfLiteInterpreterCreate(model, nullptr);
  TfLiteInterpreterAllocateTensors(interpreter);
  TfLiteTensor* input = TfLiteInterpreterGetInputTensor(interpreter, 0);
  const TfLiteTensor* output = TfLiteInterpreterGetOutputTensor(interpreter, 0);
$input  TfLiteInterpreterInvoke(interpreter);
  std::vector<float> result($classes);
$output  TfLiteInterpreterDelete(interpreter);
  TfLiteModelDelete(model);
  return result;
}"""

_TFLITE_CPP_INPUT = {
    "float32": """  TfLiteTensorCopyFromBuffer(input, image.data(), image.size() * sizeof(float));
""",
    "int8": """  const TfLiteQuantizationParams taken = TfLiteTensorQuantizationParams(input);
  std::vector<int8_t> integers(image.size());
  for (size_t i = 0; i < image.size(); i++)  // a real value is scale * (integer - zero_point)
    integers[i] = std::clamp(std::lround(image[i] / taken.scale) + taken.zero_point, -128L, 127L);
  TfLiteTensorCopyFromBuffer(input, integers.data(), integers.size());
""",
}
_TFLITE_CPP_OUTPUT = {
    "float32": """  TfLiteTensorCopyToBuffer(output, result.data(), result.size() * sizeof(float));
""",
    "int8": """  const TfLiteQuantizationParams given = TfLiteTensorQuantizationParams(output);
  std::vector<int8_t> answer(result.size());
  TfLiteTensorCopyToBuffer(output, answer.data(), answer.size());
  for (size_t i = 0; i < result.size(); i++) result[i] = given.scale * (answer[i] - given.zero_point);
""",
}

_ONNX_CPP = """#include <onnxruntime_cxx_api.h>
#include <array>
#include <vector>

// image: 3 x $height x $width values, resized as the Python code does, then (pixel / 255 - mean) / std with
// mean $mean and std $std
std::vector<float> logits(std::vector<float> image) {
  Ort::Env env;
  const char* path = "$path";
  Ort::SessionOptions options;
${options}  Ort::Session session(env, path, options);
  std::array<int64_t, 4> shape{1, 3, $height, $width};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<float>(memory, image.data(), image.size(), shape.data(), shape.size());
  Ort::AllocatorWithDefaultOptions allocator;
  auto in = session.GetInputNameAllocated(0, allocator), out = session.GetOutputNameAllocated(0, allocator);
  const char *inputs[] = {in.get()}, *outputs[] = {out.get()};
  auto result = session.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, 1);
  const float* first = result[0].GetTensorData<float>();
  return {first, first + $classes};
}"""

# An int8 file on x86-64 without VNNI gives what it was verified to give only with this; elsewhere it changes nothing.
_EXACT_PYTHON = """options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # exact int8 sums on older x86-64
"""
_EXACT_CPP = """  options.AddConfigEntry("session.x64quantprecision", "1");  // exact int8 sums on older x86-64
"""
_EXACT = {"Python": _EXACT_PYTHON, "C++": _EXACT_CPP}

Ends = Mapping[str, str]  # code by the type that the file takes, or gives
_SAME: Ends = {"float32": ""}
# By format: the language, the code, and in it what depends on the types at the file's ends.
_CODE: Mapping[str, Sequence[tuple[str, str, Ends, Ends]]] = {
    "onnx": (
        ("Python", _IMAGE_PYTHON.replace("$imports", "import onnxruntime") + _ONNX_PYTHON, _SAME, _SAME),
        ("C++", _ONNX_CPP, _SAME, _SAME),
    ),
    "tflite": (
        (
            "Python",
            _IMAGE_PYTHON.replace("$imports", "from ai_edge_litert.interpreter import Interpreter") + _TFLITE_PYTHON,
            _TFLITE_PYTHON_INPUT,
            _TFLITE_PYTHON_OUTPUT,
        ),
        ("Android (Kotlin)", _TFLITE_KOTLIN, _TFLITE_KOTLIN_INPUT, _TFLITE_KOTLIN_OUTPUT),
        ("C++", _TFLITE_CPP, _TFLITE_CPP_INPUT, _TFLITE_CPP_OUTPUT),
    ),
}


def snippets(run: str, files: Mapping[str, Mapping[str, Any]], stored: int | None = None) -> list[Snippet]:
    """One piece of code per file and language.

    files: the summary's, with ``path``, ``format``, ``precision``, ``takes`` and ``gives`` (the types at its ends),
    ``input`` and ``classes``. stored: the side in pixels of the squares that training stored, by default the input's.
    """
    found: list[Snippet] = []
    for name, file in files.items():
        values = _values(run, file, stored)
        if not found:
            found.append(("the PyTorch module", "Python", _LOAD.substitute(values)))
        for language, code, inputs, outputs in _CODE[file["format"]]:
            exact = file["format"] == "onnx" and file["precision"] == "int8"
            ends = {
                "input": inputs[file["takes"]],
                "output": outputs[file["gives"]],
                "options": _EXACT[language] if exact else "",
                "with_options": ", options" if exact else "",
            }
            whole = Template(code).safe_substitute(ends)
            found.append((name, language, Template(whole).substitute(values)))
    return found


def _values(run: str, file: Mapping[str, Any], stored: int | None) -> dict[str, Any]:
    """What the templates' names stand for."""
    spec = file["input"]
    sides = dict.fromkeys((stored or spec["height"], spec["height"]))
    return {
        "run": run,
        "path": file["path"],
        "height": spec["height"],
        "width": spec["width"],
        "classes": file["classes"],
        "sides": ", ".join(map(str, sides)),
        "mean": _listed(spec["mean"]),
        "std": _listed(spec["std"]),
        "means": _listed(spec["mean"], "f"),
        "stds": _listed(spec["std"], "f"),
    }


def _listed(values: Sequence[float], suffix: str = "") -> str:
    return ", ".join(f"{value!r}{suffix}" for value in values)
