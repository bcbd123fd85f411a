"""What a file's operators do and who runs them: the share of the work that the accelerated kernels take."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.errors import ExportError
from exporters.files import shown
from exporters.runtimes import LiteRuntime, open_runtime

LAYOUT = frozenset(("TRANSPOSE", "RESHAPE", "PAD", "PADV2", "Transpose", "Reshape", "Pad"))
_MACS_OPERATORS = frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"))


@dataclass(frozen=True)
class Operator:
    """One operator. work: multiply-accumulates, or elements of the largest tensor where there are none.

    moved: bytes of activations read and written.  accelerated: whether the delegate runs it (None: not known).
    """

    kind: str
    work: int
    moved: int
    accelerated: bool | None = None


@dataclass(frozen=True)
class Acceleration:
    """How a file runs.

    share: of the work that XNNPACK takes; None where the format has no such choice.  outside: share of the work of each
    kind of operator that it leaves.  layout: how many operators only move data.  layout_share: of all bytes moved.
    """

    share: float | None
    outside: dict[str, float]
    layout: dict[str, int]
    layout_share: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Acceleration:
        return cls(**data)


def acceleration(path: Path, notes: Mapping[str, Any] | None = None) -> Acceleration:
    """Count the operators of a .tflite or .onnx file; what a .pte file left is in the `notes` of its artifact.

    Raises ExportError where the file cannot be loaded.
    """
    if notes and "delegated" in notes:
        return Acceleration(notes["delegated"], dict(notes["outside"]), {}, 0.0)
    operators = _READERS[path.suffix](path) if path.suffix in _READERS else []
    total = sum(operator.work for operator in operators) or 1
    moved = sum(operator.moved for operator in operators) or 1
    left: Counter[str] = Counter()
    for operator in operators:
        if operator.accelerated is False:
            left[operator.kind] += operator.work
    known = any(operator.accelerated is not None for operator in operators)
    return Acceleration(
        share=1 - sum(left.values()) / total if known else None,
        outside={kind: work / total for kind, work in left.most_common()},
        layout=dict(sorted(Counter(o.kind for o in operators if o.kind in LAYOUT).items())),
        layout_share=sum(operator.moved for operator in operators if operator.kind in LAYOUT) / moved,
    )


def tflite_operators(path: Path) -> list[Operator]:
    """The operators of a .tflite file as LiteRT sees them once XNNPACK has taken its part."""
    runtime = open_runtime(path)
    assert isinstance(runtime, LiteRuntime)
    nodes = runtime.interpreter._get_ops_details()
    tensors = {tensor["index"]: tensor for tensor in runtime.interpreter.get_tensor_details()}
    taken = delegated(nodes)
    made = {index for node in nodes for index in node["outputs"]} | {
        tensor["index"] for tensor in runtime.interpreter.get_input_details()
    }
    operators = []
    for place, node in enumerate(nodes):
        if node["op_name"] == "DELEGATE":
            continue
        ends = [int(i) for i in (*node["inputs"], *node["outputs"]) if i in made]
        moved = sum(_elements(tensors[i]) * np.dtype(tensors[i]["dtype"]).itemsize for i in ends)
        operators.append(Operator(node["op_name"], _work(node, tensors), moved, place in taken))
    return operators


def delegated(nodes: list[dict[str, Any]]) -> set[int]:
    """Places of the operators inside delegates: between each delegate's outputs and its inputs.

    nodes: the interpreter's `_get_ops_details()`.
    """
    maker = {
        int(i): place for place, node in enumerate(nodes) if node["op_name"] != "DELEGATE" for i in node["outputs"]
    }
    inside: set[int] = set()
    for delegate in (node for node in nodes if node["op_name"] == "DELEGATE"):
        edge = {int(i) for i in delegate["inputs"]}
        waiting = [int(i) for i in delegate["outputs"]]
        while waiting:
            index = waiting.pop()
            place = maker.get(index)
            if index in edge or place is None or place in inside:
                continue
            inside.add(place)
            waiting += [int(i) for i in nodes[place]["inputs"] if i >= 0]
    return inside


def _elements(tensor: Mapping[str, Any]) -> int:
    return math.prod(int(side) for side in tensor["shape"])


def _work(node: Mapping[str, Any], tensors: Mapping[int, Mapping[str, Any]]) -> int:
    kind, output = node["op_name"], _elements(tensors[int(node["outputs"][0])])
    if kind not in _MACS_OPERATORS:
        return max(_elements(tensors[int(i)]) for i in (*node["inputs"], *node["outputs"]) if int(i) in tensors)
    weights = [int(side) for side in tensors[int(node["inputs"][1])]["shape"]]
    if kind == "DEPTHWISE_CONV_2D":  # weights are (1, height, width, channels)
        return output * weights[1] * weights[2]
    if kind == "CONV_2D":  # (out, height, width, in / groups)
        return output * math.prod(weights[1:])
    if kind == "TRANSPOSE_CONV":  # (out, height, width, in); inputs are shape, weights, data
        return _elements(tensors[int(node["inputs"][2])]) * math.prod(weights[:3])
    return output * weights[-1]  # FULLY_CONNECTED (out, in); BATCH_MATMUL's inner side up to its transposition


def onnx_operators(path: Path) -> list[Operator]:
    """The operators of an .onnx file with the bytes they move; ONNX Runtime runs all on its own CPU kernels."""
    import onnx

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(path.read_bytes()))
    except Exception as error:  # protobuf and onnx raise types of their own
        raise ExportError(f"cannot read {shown(path)}: {error}; export it again") from error
    graph = model.graph
    size = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        item = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind.elem_type else 4
        size[value.name] = item * math.prod(max(1, side.dim_value) for side in kind.shape.dim)
    return [
        Operator(node.op_type, 0, sum(size.get(name, 0) for name in (*node.input, *node.output))) for node in graph.node
    ]


_READERS = {".tflite": tflite_operators, ".onnx": onnx_operators}

_PEAK = """
import json, sys
from pathlib import Path
import numpy as np
from exporters.runtimes import open_runtime
import {imported}
def high():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
path = Path(json.loads(sys.argv[1]))
before = high()
runtime = open_runtime(path)
runtime(np.zeros((1, *runtime.image), np.float32))
print(1024 * (high() - before))
"""
_IMPORTED = {".tflite": "ai_edge_litert.interpreter", ".onnx": "onnxruntime", ".pte": "executorch.runtime"}


def peak_memory(path: Path, timeout_s: float = 300.0) -> int | None:
    """Bytes by which a fresh process grows at most while it loads a file and runs one image.

    None outside Linux, and where that takes longer than `timeout_s` seconds: the file has run in this process before,
    so that it is the machine that is slow. Raises ExportError where the process fails.
    """
    if not Path("/proc/self/status").is_file():
        return None
    home = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])}
    code = _PEAK.format(imported=_IMPORTED[path.suffix])
    command = [sys.executable, "-P", "-c", code, json.dumps(os.fspath(path))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, errors="backslashreplace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ExportError(f"cannot run {shown(path)} in a process of its own: {last}; export it again")
    return int(done.stdout.split()[-1])
