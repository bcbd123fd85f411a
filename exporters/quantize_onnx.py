"""Quantises a float32 ONNX model with ONNX Runtime: static, quantise-dequantise pairs, int8 weights per channel.

Activations are uint8: on x86-64 ONNX Runtime has no kernels for int8 ones. It turns pairs of int8 to uint8 where one
operator reads them, and computes in float32 what stands before the others (SiLU, GELU): efficientnet_b0 took 3.4 times
as long as with uint8, convnext_tiny 3 times.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError

_SKIPPED = ("Constant", "Flatten", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze")  # nothing is computed
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def quantize_bytes(
    model: bytes,
    images: NDArray[np.float32] | None,
    kept_float: Sequence[str],
    *,
    only: str | None = None,
    ranges: Path | None = None,
) -> bytes:
    """`model` in int8, all nodes but `kept_float` or the node `only` alone; `images` (NCHW) set activation ranges.

    `ranges` is a file that keeps the activation ranges: written by the first call, read by the others.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    assert images is not None  # the exporter refuses before
    pictures = images

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._images: Iterator[Any] = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {"input": image[None]}

    named = _named(onnx.load_from_string(model))
    absent = set(kept_float) - {node.name for node in named.graph.node}
    if absent:
        raise ExportError(f"the layers {sorted(absent)} to keep in float32 are not in this file; rank its own layers")
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder, _without_advice():
        made = Path(folder, "int8.onnx")
        quantize_static(
            named,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[only] if only else None,
            nodes_to_exclude=list(kept_float),
            calibration_cache_path=ranges,
        )
        finished = lean(onnx.load(made))
    return bytes(finished.SerializeToString(deterministic=True))


def lean(model: Any) -> Any:
    """The quantised model without what weights per channel store twice; it computes the same.

    A bias has the scale of its input times that of its weights, which runtimes fold when they load the file; constants
    of the same value are stored once.
    """
    import onnx

    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    maker = {node.output[0]: node for node in graph.node}
    products = []
    for node in graph.node:
        ends = [maker.get(name) for name in node.input] if node.op_type in ("Conv", "Gemm") else []
        if len(ends) < 3 or any(end is None or end.op_type != "DequantizeLinear" for end in ends):
            continue
        taken, weights, bias = names = [end.input[1] for end in ends if end is not None]
        scales = [onnx.numpy_helper.to_array(constants[name]) for name in names if name in constants]
        if len(scales) == 3 and np.array_equal(scales[0] * scales[1], scales[2]):
            products.append(onnx.helper.make_node("Mul", [taken, weights], [bias]))
            del constants[bias]
    shared = _shared(constants)
    kept = [constant for name, constant in constants.items() if shared[name] == name]
    nodes = [*products, *graph.node]
    for node in nodes:
        node.input[:] = [shared.get(name, name) for name in node.input]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return model


def _shared(constants: dict[str, Any]) -> dict[str, str]:
    """For each constant the name of the first that has its value; int8 ones keep their own.

    ONNX Runtime turns those to uint8 one by one where it is asked for exact sums (`exporters.runtimes.EXACT_SUMS`), and
    fails on the second use of one.
    """
    import onnx

    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    shared = {}
    for name, constant in constants.items():
        if constant.data_type == onnx.TensorProto.INT8:
            shared[name] = name
            continue
        value = onnx.numpy_helper.to_array(constant)
        shared[name] = first.setdefault((constant.data_type, value.shape, value.tobytes()), name)
    return shared


def _named(model: Any) -> Any:
    """Every node with a name: the quantizer selects nodes by it."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


class _without_advice:  # noqa: N801 (a context manager, named as one)
    """The quantizer advises pre-processing that the exporter has already done."""

    def __enter__(self) -> None:
        self._disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        logging.disable(self._disabled)


def quantize(source: str, made: str, images: str | None, precision: str, kept_float: Sequence[str]) -> None:
    """Write `source` in int8 as `made` (see `exporters.quantize_tflite.quantize`)."""
    pictures, ranges = np.load(str(images)), Path(str(images)).with_suffix(".ranges.json")
    Path(made).write_bytes(quantize_bytes(Path(source).read_bytes(), pictures, kept_float, ranges=ranges))


def layer_losses(source: str, images: str, precision: str) -> list[dict[str, Any]]:
    """See `exporters.quantize_tflite.layer_losses`; a layer's name is its node's."""
    import onnx

    from exporters.runtimes import OnnxRuntime

    data, pictures = Path(source).read_bytes(), np.load(images)
    model = _named(onnx.load_from_string(data))
    weights = {weight.name: [int(side) for side in weight.dims] for weight in model.graph.initializer}
    wanted = OnnxRuntime(data, 1)(pictures)
    losses = []
    ranges = Path(images).with_suffix(".ranges.json")
    for node in model.graph.node:
        if node.op_type in _SKIPPED:
            continue
        got = OnnxRuntime(quantize_bytes(data, pictures, (), only=node.name, ranges=ranges), 1)(pictures)
        shape = weights.get(node.input[1], []) if node.op_type in _WEIGHTED else []
        loss = float(np.mean((got.astype(np.float64) - wanted) ** 2))
        losses.append({"name": node.name, "operator": node.op_type, "shape": shape, "loss": loss})
    return losses
