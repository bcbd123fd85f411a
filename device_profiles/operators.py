"""The work in an artifact file, per kind of operator: what a latency model of a device is made of.

`count(path)` reads an .onnx or .tflite file and adds up multiply-accumulates, activations and weights without running
it. How a file is read, and what each operator costs, is in operators_onnx.py and operators_tflite.py: one small pure
function per operator, in a table. Operators that are not in the table are reported in `Work.unsupported`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from device_profiles.errors import DeviceError

# Kinds of operator. "view" does nothing at run time; "move" copies without arithmetic (pad, concat, transpose, ...);
# "fused" is what the runtimes do inside a neighbouring operator (see `fused`); a stem reads the image.
KINDS = (
    "conv1x1",
    "conv",
    "conv_stem",
    "conv_grouped",
    "depthwise",
    "conv_transpose",
    "linear",
    "matmul",
    "elementwise",
    "pool",
    "reduce",
    "norm",
    "softmax",
    "move",
    "view",
    "fused",
    "unsupported",
)
STEM_CHANNELS = 4  # a dense convolution of so few input channels cannot fill the kernels made for many
_CONVOLUTIONS = frozenset(("conv1x1", "conv", "conv_stem", "conv_grouped", "depthwise"))
_FOLLOWED_BY_CLAMP = _CONVOLUTIONS | {"conv_transpose", "linear", "elementwise"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph: shape without unknowns, bytes per element, and whether its values are in the file."""

    name: str
    shape: tuple[int, ...]
    itemsize: float
    constant: bool = False

    def __post_init__(self) -> None:
        if min(self.shape, default=0) < 0:
            raise ValueError(f"{self.name!r} has the shape {self.shape}")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return math.ceil(self.elements * self.itemsize)


@dataclass(frozen=True)
class Node:
    """One operator. An optional input that is left out is None."""

    operator: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Operators in the order in which they run, with the tensors that enter and leave."""

    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Cost:
    """What an operator's function says of a node.

    Inputs [skip:data] are data; those around them only configure the operator (shapes, axes, limits).
    """

    kind: str
    macs: int = 0
    data: int | None = None
    skip: int = 0


CostOf = Callable[[Node], Cost]
_UNKNOWN = Cost("unsupported")


@dataclass(frozen=True)
class KindWork:
    """The work of all operators of one kind.

    macs: multiply-accumulates of convolutions and matrix products (a bias counts none). activation_elements and
    activation_bytes: activations read and written. weight_bytes: constants read. operators: how many there are.
    """

    operators: int = 0
    macs: int = 0
    activation_elements: int = 0
    activation_bytes: int = 0
    weight_bytes: int = 0

    def __add__(self, other: KindWork) -> KindWork:
        return KindWork(*(mine + theirs for mine, theirs in zip(self._fields(), other._fields(), strict=True)))

    def _fields(self) -> tuple[int, ...]:
        return (self.operators, self.macs, self.activation_elements, self.activation_bytes, self.weight_bytes)


@dataclass(frozen=True)
class Work:
    """The work of one inference at batch 1 (or at the file's fixed batch).

    kinds: kind -> its work, for the kinds that occur. params: constants that operators compute with, each counted once.
    peak_activation_bytes: see `peak_activation_bytes`. unsupported: operator -> count, for those no function is known
    of; their activations are counted under the kind "unsupported", their arithmetic is not. input_elements: of all
    inputs together.
    """

    kinds: dict[str, KindWork]
    params: int
    peak_activation_bytes: int
    unsupported: dict[str, int]
    input_elements: int

    @property
    def macs(self) -> int:
        return sum(work.macs for work in self.kinds.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "macs": self.macs}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Work:
        fields = {key: value for key, value in data.items() if key != "macs"}  # derived
        return cls(**{**fields, "kinds": {kind: KindWork(**work) for kind, work in data["kinds"].items()}})


def plain(names: str, kind: str, *, data: int | None = None, skip: int = 0) -> dict[str, CostOf]:
    """The functions of operators without multiply-accumulates; names: with blanks between; the rest: see `Cost`."""
    cost = Cost(kind, data=data, skip=skip)
    return dict.fromkeys(names.split(), lambda node: cost)


def count(path: str | Path) -> Work:
    """The work in an .onnx or .tflite file; raises DeviceError for a file that is neither, damaged, or of unknown size.

    A batch of unknown size counts as 1.
    """
    path = Path(path)
    if not path.is_file():
        raise DeviceError(f"{path}: there is no such file to count the operators of")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from device_profiles.operators_onnx import COSTS, read
    elif suffix == ".tflite":
        from device_profiles.operators_tflite import COSTS, read
    else:
        raise DeviceError(f"{path}: operators can be counted in .onnx and .tflite files, not in {suffix!r} files")
    try:
        return count_graph(read(path), COSTS)
    except DeviceError as error:
        raise DeviceError(f"{path}: {error}") from error


def count_graph(graph: Graph, costs: Mapping[str, CostOf]) -> Work:
    """The work of a graph, given the function of each operator."""
    each = [_cost(node, costs) for node in graph.nodes]
    inside = fused(graph, [cost.kind for cost in each])
    each = [replace(cost, kind="fused") if place in inside else cost for place, cost in enumerate(each)]
    kinds: dict[str, KindWork] = {}
    weights: dict[str, int] = {}
    for node, cost in zip(graph.nodes, each, strict=True):
        data = [tensor for tensor in node.inputs[cost.skip : cost.data] if tensor is not None]
        constants = [tensor for tensor in data if tensor.constant]
        weights |= {tensor.name: tensor.elements for tensor in constants}
        activations = [tensor for tensor in data if not tensor.constant] + list(node.outputs)
        if cost.kind in ("view", "fused"):
            activations = []
        work = KindWork(
            operators=1,
            macs=cost.macs,
            activation_elements=sum(tensor.elements for tensor in activations),
            activation_bytes=sum(tensor.size_bytes for tensor in activations),
            weight_bytes=sum(tensor.size_bytes for tensor in constants),
        )
        kinds[cost.kind] = kinds.get(cost.kind, KindWork()) + work
    unsupported = Counter(n.operator for n, cost in zip(graph.nodes, each, strict=True) if cost.kind == "unsupported")
    return Work(
        kinds={kind: kinds[kind] for kind in KINDS if kind in kinds},
        params=sum(weights.values()),
        peak_activation_bytes=peak_activation_bytes(graph, [cost.kind for cost in each]),
        unsupported=dict(sorted(unsupported.items())),
        input_elements=sum(tensor.elements for tensor in graph.inputs),
    )


def _cost(node: Node, costs: Mapping[str, CostOf]) -> Cost:
    if node.operator not in costs:
        return _UNKNOWN
    try:
        return costs[node.operator](node)
    except (IndexError, ValueError, ZeroDivisionError) as error:  # a damaged file can say anything
        raise DeviceError(f"the operator {node.operator} has too few inputs or inputs of the wrong shape") from error


_CLAMPS = frozenset(("Relu", "Clip", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"))
_PADS = frozenset(("Pad", "PAD", "PADV2"))


def fused(graph: Graph, kinds: Sequence[str]) -> frozenset[int]:
    """The places of the nodes that cost nothing of their own, because the runtimes do them inside a neighbour.

    These are a clamp (ReLU, ReLU6) right behind a convolution, matrix product or sum, and a padding right before a
    convolution, in both cases where nothing else reads what is between the two. TFLite's converter, XNNPACK
    (src/subgraph.c, xnn_subgraph_fusion) and ONNX Runtime's graph optimisations all do so.
    """
    readers = Counter(tensor.name for node in graph.nodes for tensor in node.inputs if tensor)
    readers.update(tensor.name for tensor in graph.outputs)
    maker = {tensor.name: place for place, node in enumerate(graph.nodes) for tensor in node.outputs}
    found = set()
    for place, node in enumerate(graph.nodes):
        source = node.inputs[0] if node.inputs else None
        if source is None or source.name not in maker or readers[source.name] != 1:
            continue
        before = maker[source.name]
        if node.operator in _CLAMPS and kinds[before] in _FOLLOWED_BY_CLAMP:
            found.add(place)
        elif graph.nodes[before].operator in _PADS and kinds[place] in _CONVOLUTIONS:
            found.add(before)
    return frozenset(found)


def dense_kind(in_channels: int, kernel: Sequence[int]) -> str:
    """The kind of a convolution without groups."""
    if math.prod(kernel) == 1:
        return "conv1x1"
    return "conv_stem" if in_channels <= STEM_CHANNELS else "conv"


def shape_of(node: Node, place: int) -> tuple[int, ...]:
    """The shape of a node's input; raises ValueError or IndexError where there is none."""
    tensor = node.inputs[place]
    if tensor is None:
        raise ValueError(f"{node.operator} lacks its input {place}")
    return tensor.shape


def fold_dequantised(graph: Graph, operators: Set[str]) -> Graph:
    """The graph without the nodes of these operators that only unpack a constant: weights stored smaller than used.

    The runtimes unpack them once, when the file is loaded. Their readers see the constant as it is stored.
    """
    stored: dict[str, Tensor] = {}
    nodes = []
    for node in graph.nodes:
        source = node.inputs[0] if node.inputs else None
        if node.operator in operators and source is not None and source.constant:
            stored[node.outputs[0].name] = source
            continue
        inputs = tuple(stored.get(tensor.name, tensor) if tensor else None for tensor in node.inputs)
        nodes.append(replace(node, inputs=inputs))
    return replace(graph, nodes=tuple(nodes))


def peak_activation_bytes(graph: Graph, kinds: Sequence[str]) -> int:
    """The most bytes of activations alive at once when the nodes, of those kinds, run in order.

    A tensor lives from the node that makes it (graph inputs: from the start) to the last that reads it (graph outputs:
    to the end). A view shares its input's memory. An elementwise operator writes over an input of the same size that is
    read no more, as the runtimes do with activation functions and residual sums; graph inputs are not overwritten.
    """
    last_read = {tensor.name: place for place, node in enumerate(graph.nodes) for tensor in node.inputs if tensor}
    last_read |= {tensor.name: len(graph.nodes) for tensor in graph.outputs}
    entering = {tensor.name for tensor in graph.inputs}
    buffer_of = {name: name for name in entering}
    alive = {tensor.name: tensor.size_bytes for tensor in graph.inputs}  # buffer -> bytes
    end = {name: last_read.get(name, 0) for name in entering}  # buffer -> the last node that reads a tensor in it
    peak = sum(alive.values())
    for place, (node, kind) in enumerate(zip(graph.nodes, kinds, strict=True)):
        sources = [buffer_of[tensor.name] for tensor in node.inputs if tensor and tensor.name in buffer_of]
        for output in node.outputs:
            shared: list[str] = []
            if kind == "view":
                shared = sources[:1]
            elif kind in ("elementwise", "fused"):
                over = [b for b in sources if b not in entering and end[b] <= place and alive[b] == output.size_bytes]
                shared = over[:1]
            buffer = shared[0] if shared else output.name
            buffer_of[output.name] = buffer
            end[buffer] = max(end.get(buffer, 0), last_read.get(output.name, place))
            alive.setdefault(buffer, output.size_bytes)
        peak = max(peak, sum(alive.values()))
        alive = {buffer: size for buffer, size in alive.items() if end[buffer] > place}
    return peak
