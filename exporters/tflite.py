"""TFLite through litert-torch, quantised by ai-edge-quantizer, in a process of its own.

Measured on resnet20 (x86-64): 7 s, of which 3.4 s is the conversion and 3 s are the child's imports.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from exporters.artifact import InputSpec
from exporters.base import Exporter, Options
from exporters.errors import ExportError
from exporters.program import blame, load_program
from exporters.writing import convert_in_child, first_line

if TYPE_CHECKING:
    from torch import nn


class TfliteExporter(Exporter):
    """Input (1, H, W, C), output (1, classes), named by their precision; the layout is changed once, at the input.

    "int8" takes and gives int8, "int8-uint8-io" uint8, "int8-float-io" float32, "int16x8" int16; the others float32.
    """

    name = "tflite"
    suffix = ".tflite"
    layout = "NHWC"
    precisions = ("float32", "float16", "int8", "int8-float-io", "int8-uint8-io", "int16x8", "dynamic")
    calibrated = frozenset(("int8", "int8-float-io", "int8-uint8-io", "int16x8"))
    ends: ClassVar[Mapping[str, str]] = {"int8": "int8", "int8-uint8-io": "uint8", "int16x8": "int16"}
    modules = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")
    packages = ("torch", "litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer")
    install = "pip install 'mobileprune[tflite]'"
    cautions: ClassVar[Mapping[str, str]] = {
        "dynamic": "dynamic range made mobilenet_v2 3.4 times slower on x86-64, and tflite-runtime 2.14 gives wrong "
        "results without an error; int8 is faster and agrees",
        "int16x8": "XNNPACK has no kernels for 16-bit activations: mobilenet_v2 ran 18 times slower than float32 on "
        "x86-64; int8 with some layers kept in float32 is faster",
    }

    def refusal(self, options: Options) -> str | None:
        if options.dynamic_batch:
            return "a tflite file takes one image at a time; leave dynamic_batch off or choose the onnx format"
        if options.opset is not None:
            return f"the operator set {options.opset} is ONNX's and means nothing to the tflite format; leave it out"
        return super().refusal(options)

    def write(self, module: nn.Module, spec: InputSpec, part: Path, options: Options, log: Path) -> dict[str, Any]:
        return convert_in_child(
            self,
            "exporters.tflite:convert",
            module,
            spec,
            part,
            options,
            log,
            shape=[1, spec.height, spec.width, spec.channels],
            precision=options.precision,
            kept_float=list(options.kept_float),
        )


def convert(
    source: str, made: str, images: str | None, shape: list[int], precision: str, kept_float: list[str]
) -> None:
    """In the child: the program `source` as a TFLite file `made` that takes images of `shape` (1, H, W, C)."""
    import litert_torch
    import torch

    program = load_program(source)
    plain = Path(made).with_suffix(".float.tflite")
    try:
        channel_last = litert_torch.to_channel_last_io(program.module(), args=[0])
        litert_torch.convert(channel_last, (torch.zeros(shape),)).export(str(plain))
    except Exception as error:
        raise ExportError(blame(program, error) or first_line(error)) from error
    if precision == "float32":
        shutil.move(plain, made)
        return
    from exporters.quantize_tflite import quantize

    quantize(str(plain), made, images, precision, kept_float)
