"""Quantises a float32 ONNX model with ONNX Runtime: static int8, quantise-dequantise pairs, weights per channel."""

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
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[only] if only else None,
            nodes_to_exclude=list(kept_float),
            calibration_cache_path=ranges,
        )
        finished = onnx.load(made)
    return bytes(finished.SerializeToString(deterministic=True))


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
