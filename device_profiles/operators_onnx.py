"""ONNX files as graphs of work: reading them, and what each of their operators costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles.errors import DeviceError
from device_profiles.operators import Cost, CostOf, Graph, Node, Tensor, dense_kind, fold_dequantised, plain, shape_of

if TYPE_CHECKING:
    import onnx


def read(path: Path) -> Graph:
    """The graph of an ONNX file, shapes inferred, a batch of unknown size taken as 1; raises DeviceError."""
    import onnx

    try:
        # Weights kept in a file of their own are not needed: only their shapes count.
        model = onnx.load(path, load_external_data=False)
        _fix_batch(model.graph)
        graph = _Reader(onnx.shape_inference.infer_shapes(model, data_prop=True).graph).graph()
    except DeviceError:
        raise
    except Exception as error:  # protobuf, Python and C++ code read it, each with errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DeviceError(f"not a sound ONNX file: {reason}") from error
    if not graph.nodes:
        raise DeviceError("not a sound ONNX file: there is no operator in it")
    return fold_dequantised(graph, {"DequantizeLinear", "Cast"})


class _Reader:
    """Turns an ONNX graph with inferred shapes into ours."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._values = {value.name: value for value in [*graph.input, *graph.output, *graph.value_info]}
        self._constants = {one.name: (tuple(one.dims), one.data_type) for one in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = self._constant(node)

    def graph(self) -> Graph:
        nodes = [node for node in self._graph.node if node.op_type != "Constant"]
        inputs = [value.name for value in self._graph.input if value.name not in self._constants]
        return Graph(
            nodes=tuple(self._node(node) for node in nodes),
            inputs=tuple(self._tensor(name, "the graph") for name in inputs),
            outputs=tuple(self._tensor(value.name, "the graph") for value in self._graph.output),
        )

    def _node(self, node: onnx.NodeProto) -> Node:
        import onnx

        # An operator of another domain is another operator, even where the name is the same.
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        return Node(
            operator=operator,
            inputs=tuple(self._tensor(name, operator) if name else None for name in node.input),
            outputs=tuple(self._tensor(name, operator) for name in node.output if name),
            attributes={one.name: onnx.helper.get_attribute_value(one) for one in node.attribute},
        )

    def _tensor(self, name: str, operator: str) -> Tensor:
        if name in self._constants:
            shape, dtype = self._constants[name]
            return Tensor(name, shape, _itemsize(dtype), constant=True)
        value = self._values.get(name)
        if value is None or not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise DeviceError(f"the shape of {name!r}, a tensor of {operator}, cannot be inferred")
        dims = value.type.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            raise DeviceError(f"the size of {name!r}, a tensor of {operator}, is left open; export it fixed")
        return Tensor(name, tuple(dim.dim_value for dim in dims), _itemsize(value.type.tensor_type.elem_type))

    def _constant(self, node: onnx.NodeProto) -> tuple[tuple[int, ...], int]:
        """(shape, element type) of a Constant node, whose value stands in one of several attributes."""
        import onnx

        attribute = node.attribute[0]
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return tuple(value.dims), value.data_type
        if attribute.name in ("value_int", "value_ints"):
            return () if attribute.name == "value_int" else (len(value),), onnx.TensorProto.INT64
        if attribute.name in ("value_float", "value_floats"):
            return () if attribute.name == "value_float" else (len(value),), onnx.TensorProto.FLOAT
        raise DeviceError(f"the constant {node.output[0]!r} is given as {attribute.name}, not as numbers")


def _fix_batch(graph: onnx.GraphProto) -> None:
    """Make an open first dimension of the graph's inputs 1, wherever its symbol occurs at the graph's ends."""
    fixed = {one.name for one in graph.initializer}
    symbols = set()
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in fixed and dims and not dims[0].HasField("dim_value"):
            symbols.add(dims[0].dim_param)
            dims[0].dim_value = 1
    for value in [*graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and dim.dim_param in symbols:
                dim.dim_value = 1


def _itemsize(dtype: int) -> float:
    import onnx

    four_bits = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    return 0.5 if dtype in four_bits else float(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)


def _conv(node: Node) -> Cost:
    """Weights (out, in / groups, *kernel): a window's products for every element of the output."""
    group = node.attributes.get("group", 1)
    _, in_per_group, *kernel = shape_of(node, 1)
    macs = node.outputs[0].elements * in_per_group * math.prod(kernel)
    return Cost(_conv_kind(group, in_per_group, kernel), macs, data=3)


def _conv_kind(groups: int, in_per_group: int, kernel: list[int]) -> str:
    if groups > 1:
        return "depthwise" if in_per_group == 1 else "conv_grouped"
    return dense_kind(in_per_group, kernel)


def _conv_transpose(node: Node) -> Cost:
    """Weights (in, out / groups, *kernel): every element of the input meets a window of each output channel."""
    _, out_per_group, *kernel = shape_of(node, 1)
    return Cost("conv_transpose", math.prod(shape_of(node, 0)) * out_per_group * math.prod(kernel), data=3)


def _gemm(node: Node) -> Cost:
    inner = shape_of(node, 0)[0 if node.attributes.get("transA", 0) else 1]
    return Cost("linear", node.outputs[0].elements * inner, data=3)


def _matmul(node: Node) -> Cost:
    weights = any(tensor is not None and tensor.constant for tensor in node.inputs)
    return Cost("linear" if weights else "matmul", node.outputs[0].elements * shape_of(node, 0)[-1], data=2)


_UNARY = (
    "Abs Ceil Celu Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Mish Neg Not Reciprocal Relu Round "
    "Selu Sigmoid Sign Sin Softplus Softsign Sqrt Swish Tanh ThresholdedRelu Cast Clip QuantizeLinear DequantizeLinear"
)
_BINARY = "Add Sub Mul Div Pow PRelu Max Min Mean Sum And Or Equal Greater GreaterOrEqual Less LessOrEqual Where Mod"
_MOVE = "Pad Transpose Slice Resize Upsample Split Expand Tile Gather DepthToSpace SpaceToDepth"

COSTS: dict[str, CostOf] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **plain(_UNARY, "elementwise", data=1),
    **plain(_BINARY, "elementwise"),
    **plain("AveragePool MaxPool GlobalAveragePool GlobalMaxPool LpPool", "pool", data=1),
    **plain("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ArgMax", "reduce", data=1),
    **plain("BatchNormalization", "norm", data=5),
    **plain("LayerNormalization InstanceNormalization GroupNormalization", "norm", data=3),
    **plain("Softmax LogSoftmax", "softmax", data=1),
    **plain("Concat", "move"),
    **plain(_MOVE, "move", data=1),
    **plain("Shape ConstantOfShape Range", "move", data=0),
    **plain("Reshape Flatten Squeeze Unsqueeze Identity Dropout", "view", data=1),
}
