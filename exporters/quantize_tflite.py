"""Quantises a float32 TFLite file with ai-edge-quantizer; runs in the converters' child.

Activation ranges are the extremes over all calibration images. The library's own choice, a moving average of them,
clips: MobileNetV1 0.75 on 600 images of imagenette fell from 64.3 % to 61.2 % with it, not at all with extremes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.metadata import packed, unpacked

_EVERYTHING = ".*"
Ranges = dict[str, dict[str, NDArray[np.float32]]]  # by the tensor's name: its "min" and "max"


def quantize(source: str, made: str, images: str | None, precision: str, kept_float: Sequence[str]) -> None:
    """Write `source` in `precision` as `made`; `images` (.npy, normalised NCHW) set the ranges of activations."""
    model = Path(source).read_bytes()
    absent = set(kept_float) - set(_scopes(model))
    if absent:
        raise ExportError(f"the layers {sorted(absent)} to keep in float32 are not in this file; rank its own layers")
    ranges = None
    if images and precision not in ("float16", "dynamic"):
        model, ranges = finite(model, calibrate(model, np.load(images)))
        kept_float = [*kept_float, *slow_integers(model, ranges, precision)]
    Path(made).write_bytes(quantized(model, recipe(precision, kept_float), ranges))


def calibrate(model: bytes, images: NDArray[np.float32]) -> Ranges:
    """The smallest and largest value of each tensor over `images`."""
    from ai_edge_quantizer import calibrator, recipe_manager

    def widest(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        return {"min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])}

    mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
    worker = calibrator.Calibrator(model, num_threads=1, mode=mode, qsv_update_func=widest)
    name, (taken,) = _signature(model)
    feed = ({taken: np.ascontiguousarray(image.transpose(1, 2, 0)[None])} for image in images)
    worker.calibrate({name: list(feed)}, recipe_manager.RecipeManager())
    found: Ranges = worker.get_model_qsvs()
    return found


def finite(model: bytes, ranges: Ranges) -> tuple[bytes, Ranges]:
    """The same network and ranges without infinities: max pooling is padded with minus infinity, which has no integer.

    The least value that the padded tensor takes is as neutral to a maximum over it, and can be written.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = unpacked(schema, model)
    (subgraph,) = graph.subgraphs
    ranges, changed = dict(ranges), False
    for operator in subgraph.operators:
        if graph.operatorCodes[operator.opcodeIndex].builtinCode != schema.BuiltinOperator.PADV2:
            continue
        padded, constant = (subgraph.tensors[operator.inputs[place]] for place in (0, 2))
        value = graph.buffers[constant.buffer].data
        inside = ranges.get(padded.name.decode())
        if value is None or inside is None or np.isfinite(np.frombuffer(bytes(bytearray(value)), np.float32)).all():
            continue
        held = schema.BufferT()
        held.data = list(np.array(inside["min"], np.float32).reshape(-1)[:1].tobytes())
        graph.buffers.append(held)
        own = copy.copy(constant)  # the constant may serve other paddings, too
        own.name, own.buffer = b"%s/finite" % subgraph.tensors[operator.outputs[0]].name, len(graph.buffers) - 1
        subgraph.tensors.append(own)
        operator.inputs = [*operator.inputs[:2], len(subgraph.tensors) - 1]
        ranges[subgraph.tensors[operator.outputs[0]].name.decode()] = inside
        changed = True
    return (packed(graph, len(model)) if changed else model), ranges


def slow_integers(model: bytes, ranges: Ranges, precision: str) -> list[str]:
    """The layers that XNNPACK takes in float32 but not in int8 (hard-swish, GELU, what layer norms are made of).

    They would run in slow kernels, one by one: mobilenet_v3_large took three times as long with them in int8. 16-bit
    activations have no kernels there at all.
    """
    if not precision.startswith("int8"):
        return []
    left = _left_to_slow_kernels(quantized(model, recipe(precision), ranges)) - _left_to_slow_kernels(model)
    return [scope for scope in _scopes(model) if scope in left]


def _left_to_slow_kernels(model: bytes) -> set[str]:
    """The layers outside of XNNPACK, by the names of what they give."""
    from exporters.operators import delegated
    from exporters.runtimes import LiteRuntime

    interpreter = LiteRuntime(model, 1).interpreter
    nodes, names = interpreter._get_ops_details(), {t["index"]: t["name"] for t in interpreter.get_tensor_details()}
    taken = delegated(nodes)
    left = [node for place, node in enumerate(nodes) if place not in taken and node["op_name"] != "DELEGATE"]
    return {f"{names[int(node['outputs'][0])]};" for node in left}


def recipe(precision: str, kept_float: Sequence[str] = (), only: str | None = None) -> list[dict[str, Any]]:
    """The quantizer's recipe: all layers but `kept_float`, or the layer `only` alone, weights per channel."""
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    names = qtyping.TFLOperationName
    none = algorithm_manager.AlgorithmName.NO_QUANTIZE
    manager = recipe_manager.RecipeManager()
    where = _EVERYTHING if only is None else _exactly(only)
    if precision == "float16":
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        casting = algorithm_manager.AlgorithmName.FLOAT_CASTING
        manager.add_quantization_config(where, names.ALL_SUPPORTED, config, casting)
    elif precision == "dynamic":
        manager.add_dynamic_config(where, names.ALL_SUPPORTED, 8)
    else:
        manager.add_static_config(where, names.ALL_SUPPORTED, 16 if precision == "int16x8" else 8, 8)
    for name in kept_float:
        manager.add_quantization_config(_exactly(name), names.ALL_SUPPORTED, algorithm_key=none)
    if precision == "int8-uint8-io":
        for end in (names.INPUT, names.OUTPUT):
            manager.add_quantization_config(_EVERYTHING, end, _uint8())
    elif precision == "int8-float-io":
        for end in (names.INPUT, names.OUTPUT):
            manager.add_quantization_config(_EVERYTHING, end, algorithm_key=none)
    made: list[dict[str, Any]] = manager.get_quantization_recipe()
    return made


def _uint8() -> Any:
    from ai_edge_quantizer import qtyping

    activation = qtyping.TensorQuantizationConfig(
        num_bits=8,
        symmetric=False,
        granularity=qtyping.QuantGranularity.TENSORWISE,
        dtype=qtyping.TensorDataType.UINT,
    )
    weight = qtyping.TensorQuantizationConfig(
        num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
    )
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=activation,
        weight_tensor_config=weight,
        compute_precision=qtyping.ComputePrecision.INTEGER,
    )


def _exactly(scope: str) -> str:
    """The quantizer searches its expression in the scope: anchor both ends."""
    return f"^{re.escape(scope)}$"


def quantized(model: bytes, how: list[dict[str, Any]], ranges: Mapping[str, Any] | None) -> bytes:
    from ai_edge_quantizer import quantizer

    worker = quantizer.Quantizer(model)
    worker.load_quantization_recipe(how)
    result = worker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _signature(model: bytes) -> tuple[str, list[str]]:
    from ai_edge_litert.interpreter import Interpreter

    ((name, ends),) = Interpreter(model_content=model).get_signature_list().items()
    return name, ends["inputs"]


def _scopes(model: bytes) -> list[str]:
    """The names by which layers are kept in float32."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    (subgraph,) = tfl_flatbuffer_utils.read_model(model).subgraphs
    return [tfl_flatbuffer_utils.get_op_scope(operator, subgraph.tensors) for operator in subgraph.operators]


def layer_losses(source: str, images: str, precision: str) -> list[dict[str, Any]]:
    """What each layer's quantisation alone does to the logits of `images`: their mean squared error.

    One entry per operator that is quantised, in the order of the graph: name, operator, shape (of its weights,
    empty without), loss.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    from exporters.runtimes import LiteRuntime

    model, pictures = Path(source).read_bytes(), np.load(images)
    model, ranges = finite(model, calibrate(model, pictures))
    graph = tfl_flatbuffer_utils.read_model(model)
    (subgraph,) = graph.subgraphs
    wanted = LiteRuntime(model, 1)(pictures)
    losses, slow = [], slow_integers(model, ranges, precision)
    for operator in subgraph.operators:
        kind = tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME.get(graph.operatorCodes[operator.opcodeIndex].builtinCode)
        if kind is None:
            continue
        scope = tfl_flatbuffer_utils.get_op_scope(operator, subgraph.tensors)
        if scope in slow:  # in float32 already
            continue
        try:
            alone = quantized(model, recipe(precision, only=scope), ranges)
        except (RuntimeError, ValueError):  # nothing in it can be quantised
            continue
        got = LiteRuntime(alone, 1)(pictures)
        shape = [int(side) for side in subgraph.tensors[operator.inputs[1]].shape] if _has_weights(kind) else []
        loss = float(np.mean((got.astype(np.float64) - wanted) ** 2))
        losses.append({"name": scope, "operator": str(kind.value), "shape": shape, "loss": loss})
    return losses


def _has_weights(kind: Any) -> bool:
    return kind.value in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
