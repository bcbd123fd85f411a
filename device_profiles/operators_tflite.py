"""TFLite files as graphs of work: reading them, and what each of their operators costs. Activations are NHWC."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from device_profiles.errors import DeviceError
from device_profiles.operators import Cost, CostOf, Graph, Node, Tensor, dense_kind, fold_dequantised, plain, shape_of

_BITS = {
    **dict.fromkeys(("FLOAT64", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT32", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8_E4M3FN", "FLOAT8_E5M2"), 8),
    **dict.fromkeys(("INT4", "UINT4"), 4),
    "INT2": 2,
}


def read(path: Path) -> Graph:
    """The first subgraph of a TFLite file; raises DeviceError for a damaged file or a missing schema."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise DeviceError("counting its operators needs ai-edge-litert: pip install 'mobileprune[tflite]'") from error
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise DeviceError("not a TFLite file: the mark 'TFL3' is missing")
    try:
        graph = _Reader(schema, data).graph()
    except Exception as error:  # flatbuffers checks nothing: the offsets of a damaged file end in errors of any type
        raise DeviceError(f"not a sound TFLite file: {type(error).__name__} when it was read") from error
    if not graph.nodes:
        raise DeviceError("not a sound TFLite file: there is no operator in it")
    return fold_dequantised(graph, {"DEQUANTIZE", "CAST"})


class _Reader:
    """Turns the first subgraph of a flatbuffer into ours; needs no runtime, only the schema's accessors."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self._model = schema.Model.GetRootAs(data)
        self._subgraph = self._model.Subgraphs(0)
        self._types = _names(schema.TensorType)
        self._operators = _names(schema.BuiltinOperator)

    def graph(self) -> Graph:
        places = range(self._subgraph.OperatorsLength())
        return Graph(
            nodes=tuple(self._node(self._subgraph.Operators(place)) for place in places),
            inputs=tuple(self._tensor(index) for index in self._subgraph.InputsAsNumpy()),
            outputs=tuple(self._tensor(index) for index in self._subgraph.OutputsAsNumpy()),
        )

    def _node(self, operator: Any) -> Node:
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        # Files from before there were 127 operators have the code in the older, one-byte field alone.
        name = self._operators[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        if name == "CUSTOM":
            name = f"CUSTOM.{code.CustomCode().decode()}"
        inputs = operator.InputsAsNumpy() if operator.InputsLength() else ()
        outputs = operator.OutputsAsNumpy() if operator.OutputsLength() else ()
        return Node(
            operator=name,
            inputs=tuple(self._tensor(index) if index >= 0 else None for index in inputs),
            outputs=tuple(self._tensor(index) for index in outputs),
            attributes={},
        )

    def _tensor(self, index: int) -> Tensor:
        tensor = self._subgraph.Tensors(int(index))
        shape = tensor.ShapeAsNumpy().tolist() if tensor.ShapeLength() else []
        buffer = self._model.Buffers(tensor.Buffer())
        # A file beyond 2 GB keeps its data behind the flatbuffer and says where.
        constant = buffer.DataLength() > 0 or buffer.Offset() > 1
        bits = _BITS[self._types[tensor.Type()]]
        return Tensor(f"{index}:{tensor.Name().decode()}", tuple(shape), bits / 8, constant)


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def _conv(node: Node) -> Cost:
    """Weights (out, *kernel, in / groups): a window's products for every element of the output."""
    _, *kernel, in_per_group = shape_of(node, 1)
    macs = node.outputs[0].elements * in_per_group * math.prod(kernel)
    if in_per_group < shape_of(node, 0)[-1]:
        return Cost("depthwise" if in_per_group == 1 else "conv_grouped", macs, data=3)
    return Cost(dense_kind(in_per_group, kernel), macs, data=3)


def _depthwise(node: Node) -> Cost:
    """Weights (1, *kernel, out): each output channel reads one input channel."""
    _, *kernel, _ = shape_of(node, 1)
    return Cost("depthwise", node.outputs[0].elements * math.prod(kernel), data=3)


def _transpose_conv(node: Node) -> Cost:
    """Inputs (output shape, weights (out, *kernel, in), input): an input element meets a window per output channel."""
    out, *kernel, _ = shape_of(node, 1)
    return Cost("conv_transpose", math.prod(shape_of(node, 2)) * out * math.prod(kernel), data=4, skip=1)


def _fully_connected(node: Node) -> Cost:
    """Weights (out, in)."""
    return Cost("linear", node.outputs[0].elements * shape_of(node, 1)[1], data=3)


def _batch_matmul(node: Node) -> Cost:
    """K, the dimension summed over, from the sizes (.., M, K) x (.., K, N) -> (.., M, N), whatever is transposed."""
    *_, rows, columns = node.outputs[0].shape
    inner = math.isqrt(_last_two(node, 0) * _last_two(node, 1) // (rows * columns))
    weights = any(tensor is not None and tensor.constant for tensor in node.inputs)
    return Cost("linear" if weights else "matmul", node.outputs[0].elements * inner, data=2)


def _last_two(node: Node, place: int) -> int:
    return math.prod(shape_of(node, place)[-2:])


_ELEMENTWISE = (
    "ABS ADD ADD_N CAST CEIL COS DEQUANTIZE DIV ELU EXP FLOOR FLOOR_DIV GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC "
    "MAXIMUM MINIMUM MUL NEG POW PRELU QUANTIZE RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 ROUND RSQRT SELECT SELECT_V2 SIGN "
    "SIN SQRT SQUARE SQUARED_DIFFERENCE SUB TANH LOGICAL_AND LOGICAL_OR LOGICAL_NOT EQUAL NOT_EQUAL LESS GREATER "
    "LESS_EQUAL GREATER_EQUAL"
)
_MOVE = (
    "PAD PADV2 MIRROR_PAD TRANSPOSE SLICE STRIDED_SLICE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SPLIT_V TILE GATHER "
    "BROADCAST_TO DEPTH_TO_SPACE SPACE_TO_DEPTH UNPACK REVERSE_V2"
)

COSTS: dict[str, CostOf] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    **plain(_ELEMENTWISE, "elementwise"),
    **plain("AVERAGE_POOL_2D MAX_POOL_2D L2_POOL_2D", "pool"),
    **plain("MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD ARG_MAX ARG_MIN", "reduce", data=1),
    **plain("L2_NORMALIZATION", "norm"),
    **plain("SOFTMAX LOG_SOFTMAX", "softmax"),
    **plain("CONCATENATION PACK", "move"),
    **plain(_MOVE, "move", data=1),
    **plain("SPLIT", "move", skip=1),
    **plain("SHAPE", "move", data=0),
    **plain("RESHAPE SQUEEZE EXPAND_DIMS BITCAST", "view", data=1),
}
