"""Files of a single convolution, ONNX or TFLite, to find out at which widths a device is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from device_profiles.errors import DeviceError

# Kind of convolution (`profile.STEP_KINDS`) -> side of its kernel.
KERNELS = {"dense": 3, "pointwise": 1, "depthwise": 3}
SIDE = 28  # of the image in pixels: between the early and the late stages of a network for 224 pixels
SUFFIXES = (".onnx", ".tflite")
_WEIGHT = 0.01  # their values do not matter for time


def write_layer(kind: str, channels: int, path: Path, *, side: int = SIDE) -> Path:
    """Write a convolution of that kind from `channels` to as many channels, with bias and ReLU, as the suffix of `path`
    says. Returns `path`; raises DeviceError for a kind or format that does not exist, and where a package is missing.
    """
    if kind not in KERNELS:
        raise DeviceError(f"{kind!r} is no kind of convolution with a channel step; these are {', '.join(KERNELS)}")
    if path.suffix == ".onnx":
        _write_onnx(kind, channels, path, side)
    elif path.suffix == ".tflite":
        path.write_bytes(_tflite(kind, channels, side))
    else:
        raise DeviceError(f"single convolutions can be written as {' and '.join(SUFFIXES)}, not as {path.suffix!r}")
    return path


def _write_onnx(kind: str, channels: int, path: Path, side: int) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel = KERNELS[kind]
    groups = channels if kind == "depthwise" else 1
    shape = (channels, channels // groups, kernel, kernel)
    weights = [
        numpy_helper.from_array(np.full(shape, _WEIGHT, np.float32), "w"),
        numpy_helper.from_array(np.zeros(channels, np.float32), "b"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], group=groups, pads=[kernel // 2] * 4),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    image = [1, channels, side, side]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, image) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _tflite(kind: str, channels: int, side: int) -> bytes:
    """Written by the schema alone: the converters take seconds for each file."""
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise DeviceError("writing .tflite files needs ai-edge-litert: pip install 'mobileprune[tflite]'") from error
    kernel, image = KERNELS[kind], [1, side, side, channels]
    shape = [1, kernel, kernel, channels] if kind == "depthwise" else [channels, kernel, kernel, channels]
    constants = [np.full(shape, _WEIGHT, np.float32), np.zeros(channels, np.float32)]
    sizes = {"x": (image, 0), "w": (shape, 1), "b": ([channels], 2), "y": (image, 0)}
    float32 = schema.TensorType.FLOAT32
    graph = _made(
        schema.SubGraphT,
        name="layer",
        tensors=[_made(schema.TensorT, name=n, shape=s, buffer=b, type=float32) for n, (s, b) in sizes.items()],
        inputs=[0],
        outputs=[3],
        operators=[_operator(schema, kind)],
    )
    code = schema.BuiltinOperator.DEPTHWISE_CONV_2D if kind == "depthwise" else schema.BuiltinOperator.CONV_2D
    model = _made(
        schema.ModelT,
        version=3,
        operatorCodes=[_made(schema.OperatorCodeT, builtinCode=code, deprecatedBuiltinCode=code, version=1)],
        subgraphs=[graph],
        # The first one is empty by convention: tensors without data point at it.
        buffers=[schema.BufferT(), *(_made(schema.BufferT, data=one.view(np.uint8).reshape(-1)) for one in constants)],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _operator(schema: Any, kind: str) -> Any:
    """The convolution of the tensors x, w and b into y."""
    name = "DepthwiseConv2DOptions" if kind == "depthwise" else "Conv2DOptions"
    options = _made(
        getattr(schema, f"{name}T"),
        padding=schema.Padding.SAME,
        fusedActivationFunction=schema.ActivationFunctionType.RELU,
        strideH=1,
        strideW=1,
        dilationHFactor=1,
        dilationWFactor=1,
    )
    if kind == "depthwise":
        options.depthMultiplier = 1
    return _made(
        schema.OperatorT,
        opcodeIndex=0,
        inputs=[0, 1, 2],
        outputs=[3],
        builtinOptionsType=getattr(schema.BuiltinOptions, name),
        builtinOptions=options,
    )


def _made(table: Any, **fields: Any) -> Any:
    """A table of the schema with these fields."""
    one = table()
    for key, value in fields.items():
        setattr(one, key, value)
    return one
