"""ExecuTorch (.pte) for XNNPACK, in a process of its own.

What is not lowered to XNNPACK runs in slow portable kernels without a word: a file in which too much of the work is
left to them is refused, with the operators' names.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import InputSpec
from exporters.base import Exporter, Options
from exporters.errors import ExportError
from exporters.program import blame, load_program
from exporters.writing import convert_in_child, first_line

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

DELEGATED = 0.9  # the least share of the work that XNNPACK must take


class ExecutorchExporter(Exporter):
    """Input float32 (1, C, H, W), output float32 (1, classes)."""

    name = "executorch"
    suffix = ".pte"
    layout = "NCHW"
    precisions = ("float32", "int8")
    calibrated = frozenset(("int8",))
    modules = ("executorch",)
    packages = ("torch", "executorch")
    install = "pip install 'mobileprune[executorch]'"

    def refusal(self, options: Options) -> str | None:
        if options.dynamic_batch:
            return "an executorch file takes one image at a time here; leave dynamic_batch off or choose onnx"
        if options.opset is not None:
            return f"the operator set {options.opset} is ONNX's and means nothing to executorch; leave it out"
        if options.kept_float:
            return "layers cannot be kept in float32 in the executorch format; choose tflite or onnx"
        return super().refusal(options)

    def write(self, module: nn.Module, spec: InputSpec, part: Path, options: Options, log: Path) -> dict[str, Any]:
        function = "exporters.executorch:convert"
        return convert_in_child(self, function, module, spec, part, options, log, precision=options.precision)


def convert(source: str, made: str, images: str | None, precision: str) -> dict[str, Any]:
    """In the child: the program `source` as an ExecuTorch file `made`; what XNNPACK takes of its work."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = load_program(source)
    try:
        if precision == "int8":
            program = _quantized(program, str(images))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        left = left_over(lowered.exported_program())
        data = lowered.to_executorch().buffer
    except Exception as error:
        raise ExportError(blame(program, error) or first_line(error)) from error
    total = sum(work_of(node) for node in program.run_decompositions().graph.nodes)
    share = 1 - sum(left.values()) / max(total, 1)
    if share < DELEGATED:
        named = ", ".join(name for name, _ in left.most_common())
        raise ExportError(
            f"XNNPACK takes only {share:.0%} of the work (at least {DELEGATED:.0%} is asked for); slow portable "
            f"kernels would run {named}; replace these operators or choose tflite or onnx"
        )
    Path(made).write_bytes(data)
    return {"delegated": share, "outside": {name: work / total for name, work in left.most_common()}}


def _quantized(program: ExportedProgram, images: str) -> ExportedProgram:
    """The program with quantise and dequantise pairs, weights per channel, ranges from `images` (.npy, NCHW)."""
    import numpy as np
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    pictures = torch.from_numpy(np.load(images))
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for picture in pictures:
            prepared(picture[None])
    return torch.export.export(convert_pt2e(prepared), (pictures[:1],))


def left_over(lowered: ExportedProgram) -> Counter[str]:
    """Work per operator that is in no delegate."""
    left: Counter[str] = Counter()
    for node in lowered.graph.nodes:
        name = str(node.target)
        if node.op == "call_function" and "getitem" not in name and "executorch_call_delegate" not in name:
            left[name.removeprefix("<EdgeOpOverload: ").split(">")[0]] += work_of(node)
    return left


def work_of(node: Any) -> int:
    """Multiply-accumulates of convolutions and matrix products, elements of other outputs."""
    value = node.meta.get("val")
    if node.op != "call_function" or not hasattr(value, "shape"):
        return 0
    elements = math.prod(int(side) for side in value.shape)
    name = str(node.target)
    if "conv" in name:
        return elements * math.prod(int(side) for side in node.args[1].meta["val"].shape[1:])
    if any(part in name for part in ("addmm", ".mm", "bmm", "linear")):
        weights = node.args[1 if "addmm" in name else 0].meta["val"]
        return elements * int(weights.shape[-1])
    return elements
