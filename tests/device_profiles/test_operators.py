"""Closed-form answers on graphs small enough to count by hand; float32, so an element has four bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from device_profiles.errors import DeviceError
from device_profiles.operators import KINDS, Graph, KindWork, Node, Tensor, Work, count, peak_activation_bytes

Save = Callable[..., Path]
node = helper.make_node


def test_dense_convolution(save_onnx: Save) -> None:
    conv = node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])
    work = count(save_onnx([conv], [1, 3, 16, 16], [1, 8, 8, 8], {"w": (8, 3, 3, 3), "b": (8,)}))
    read, written, weights = 3 * 16 * 16, 8 * 8 * 8, 8 * 27 + 8
    assert work.kinds == {
        "conv_stem": KindWork(
            operators=1,
            macs=8 * 8 * 8 * 27,
            activation_elements=read + written,
            activation_bytes=4 * (read + written),
            weight_bytes=4 * weights,
        )
    }
    assert (work.macs, work.params, work.unsupported) == (8 * 8 * 8 * 27, weights, {})
    assert work.input_elements == read
    assert work.peak_activation_bytes == 4 * (read + written)


@pytest.mark.parametrize(
    ("weights", "group", "kind", "macs_per_output"),
    [
        ((8, 4, 1, 1), 1, "conv1x1", 4),
        ((8, 4, 3, 3), 1, "conv_stem", 36),
        ((8, 2, 3, 3), 2, "conv_grouped", 18),
        ((4, 1, 3, 3), 4, "depthwise", 9),
        ((8, 1, 5, 5), 4, "depthwise", 25),
    ],
)
def test_kinds_of_convolution(
    save_onnx: Save, weights: tuple[int, ...], group: int, kind: str, macs_per_output: int
) -> None:
    pad = weights[-1] // 2
    conv = node("Conv", ["x", "w"], ["y"], pads=[pad] * 4, group=group)
    work = count(save_onnx([conv], [1, 4, 6, 6], [1, weights[0], 6, 6], {"w": weights}))
    assert list(work.kinds) == [kind]
    assert work.macs == weights[0] * 36 * macs_per_output
    assert work.params == int(np.prod(weights))


def test_more_than_four_channels_are_no_image(save_onnx: Save) -> None:
    conv = node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    work = count(save_onnx([conv], [1, 5, 6, 6], [1, 8, 6, 6], {"w": (8, 5, 3, 3)}))
    assert list(work.kinds) == ["conv"]


def test_what_the_runtimes_do_inside_a_convolution_costs_nothing_of_its_own(save_onnx: Save) -> None:
    nodes = [
        node("Pad", ["x", "pads"], ["p"]),
        node("Conv", ["p", "w"], ["c"], strides=[2, 2]),
        node("Clip", ["c", "low", "high"], ["r"]),
        node("Add", ["r", "one"], ["a"]),
        node("Relu", ["a"], ["y"]),
    ]
    constants = {
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "low": np.asarray(np.float32(0)),
        "high": np.asarray(np.float32(6)),
    }
    weights = {"w": (8, 3, 3, 3), "one": (1, 8, 1, 1)}
    work = count(save_onnx(nodes, [1, 3, 8, 8], [1, 8, 4, 4], weights, constants))
    assert work.kinds["fused"] == KindWork(operators=3)
    assert {kind: one.operators for kind, one in work.kinds.items()} == {"conv_stem": 1, "elementwise": 1, "fused": 3}


def test_a_clamp_or_padding_that_others_need_too_is_not_fused(save_onnx: Save) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Pad", ["r", "pads"], ["p"]),
        node("Conv", ["p", "v"], ["d"]),
        node("MaxPool", ["p"], ["m"], kernel_shape=[2, 2]),
        node("Add", ["c", "d"], ["e"]),
        node("Add", ["e", "m"], ["y"]),
    ]
    constants = {"pads": np.array([0, 0, 0, 0, 0, 0, 1, 1])}
    work = count(save_onnx(nodes, [1, 8, 4, 4], [1, 8, 4, 4], {"w": (8, 8, 1, 1), "v": (8, 8, 2, 2)}, constants))
    assert "fused" not in work.kinds
    assert (work.kinds["elementwise"].operators, work.kinds["move"].operators) == (3, 1)


def test_transposed_convolution(save_onnx: Save) -> None:
    conv = node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    work = count(save_onnx([conv], [1, 4, 5, 5], [1, 6, 10, 10], {"w": (4, 6, 2, 2)}))
    assert {kind: one.macs for kind, one in work.kinds.items()} == {"conv_transpose": 4 * 25 * 6 * 4}


@pytest.mark.parametrize(("transposed", "shape"), [(0, (12, 5)), (1, (5, 12))])
def test_fully_connected(save_onnx: Save, transposed: int, shape: tuple[int, int]) -> None:
    flat = node("Flatten", ["x"], ["f"])
    gemm = node("Gemm", ["f", "w", "b"], ["y"], transB=transposed)
    work = count(save_onnx([flat, gemm], [1, 3, 2, 2], [1, 5], {"w": shape, "b": (5,)}))
    assert (work.kinds["linear"].macs, work.params) == (60, 65)
    assert work.kinds["view"] == KindWork(operators=1)
    assert work.peak_activation_bytes == 4 * (12 + 5)  # the view shares its input's memory


def test_matrix_products_with_and_without_weights(save_onnx: Save) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["q"]),
        node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["s"]),
        node("Softmax", ["s"], ["y"]),
    ]
    work = count(save_onnx(nodes, [1, 7, 4], [1, 7, 7], {"w": (4, 6)}))
    assert work.kinds["linear"].macs == 7 * 6 * 4
    assert work.kinds["matmul"].macs == 7 * 7 * 6
    assert work.kinds["softmax"].activation_elements == 2 * 49
    assert work.kinds["move"].activation_elements == 2 * 42


def test_limits_axes_and_shapes_are_no_parameters(save_onnx: Save) -> None:
    nodes = [
        node("Clip", ["x", "low", "high"], ["c"]),
        node("ReduceMean", ["c", "axes"], ["m"], keepdims=1),
        node("Mul", ["c", "scale"], ["e"]),
        node("Add", ["e", "m"], ["a"]),
        node("Reshape", ["a", "shape"], ["y"]),
    ]
    constants = {
        "low": np.float32(0),
        "high": np.float32(6),
        "axes": np.array([2, 3]),
        "shape": np.array([1, -1]),
    }
    arrays = {key: np.asarray(value) for key, value in constants.items()}
    work = count(save_onnx(nodes, [1, 4, 3, 3], [1, 36], {"scale": (1, 4, 1, 1)}, arrays))
    assert work.params == 4
    assert (work.kinds["elementwise"].operators, work.kinds["reduce"].operators) == (3, 1)
    assert work.kinds["reduce"].activation_elements == 36 + 4
    assert work.macs == 0


def test_a_weight_used_twice_is_one_parameter_but_read_twice(save_onnx: Save) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Conv", ["c", "w"], ["y"])]
    work = count(save_onnx(nodes, [1, 4, 3, 3], [1, 4, 3, 3], {"w": (4, 4, 1, 1)}))
    assert work.params == 16
    assert work.kinds["conv1x1"].weight_bytes == 2 * 4 * 16


def test_weights_stored_as_int8_count_as_stored(save_onnx: Save) -> None:
    nodes = [node("DequantizeLinear", ["q", "s", "z"], ["w"]), node("Conv", ["x", "w"], ["y"])]
    constants = {
        "q": np.ones((4, 4, 1, 1), np.int8),
        "s": np.asarray(np.float32(0.1)),
        "z": np.asarray(np.int8(0)),
    }
    work = count(save_onnx(nodes, [1, 4, 3, 3], [1, 4, 3, 3], constants=constants))
    assert list(work.kinds) == ["conv1x1"]
    assert (work.kinds["conv1x1"].weight_bytes, work.params) == (16, 16)


def test_constant_nodes_are_constants(save_onnx: Save) -> None:
    tensor = helper.make_tensor("v", TensorProto.FLOAT, [4, 4, 1, 1], [0.5] * 16)
    nodes = [node("Constant", [], ["w"], value=tensor), node("Conv", ["x", "w"], ["y"])]
    assert count(save_onnx(nodes, [1, 4, 3, 3], [1, 4, 3, 3])).params == 16


def test_unknown_operators_are_reported_with_their_activations(save_onnx: Save) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Hardmax", ["c"], ["h"]), node("Relu", ["h"], ["y"])]
    work = count(save_onnx(nodes, [1, 4, 3, 3], [1, 4, 3, 3], {"w": (4, 4, 1, 1)}))
    assert work.unsupported == {"Hardmax": 1}
    assert work.kinds["unsupported"] == KindWork(operators=1, activation_elements=72, activation_bytes=288)


def test_an_operator_of_another_domain_is_another_operator(save_onnx: Save) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"], domain="our.own")]
    work = count(save_onnx(nodes, [1, 4, 3, 3], [1, 4, 3, 3], {"w": (4, 4, 1, 1)}))
    assert work.unsupported == {"our.own.Conv": 1}
    assert work.macs == 0


def test_an_open_batch_counts_as_one(save_onnx: Save) -> None:
    conv = node("Conv", ["x", "w"], ["y"])
    fixed = count(save_onnx([conv], [1, 4, 3, 3], [1, 4, 3, 3], {"w": (4, 4, 1, 1)}))
    assert count(save_onnx([conv], ["n", 4, 3, 3], ["n", 4, 3, 3], {"w": (4, 4, 1, 1)})) == fixed


def test_an_open_size_is_an_error_that_names_it(save_onnx: Save) -> None:
    path = save_onnx([node("Relu", ["x"], ["y"])], [1, 4, "h", 3], [1, 4, "h", 3])
    with pytest.raises(DeviceError, match=r"net.onnx: the size of 'x', a tensor of Relu, is left open"):
        count(path)


def test_tflite_file_against_its_layers(small_tflite: Path) -> None:
    work = count(small_tflite)
    assert work.unsupported == {}
    assert {kind: one.macs for kind, one in work.kinds.items() if one.macs} == {
        "conv_stem": 8 * 7 * 7 * 27,
        "depthwise": 8 * 5 * 5 * 9,
        "conv1x1": 16 * 5 * 5 * 8,
        "linear": 160,
    }
    assert work.params == (8 * 27 + 8) + (8 * 9 + 8) + (16 * 8 + 16) + (160 + 10)
    assert work.kinds["pool"].activation_elements == 16 * 25 + 16
    # Input 3 x 15 x 15 and first convolution 8 x 7 x 7, both alive while that one runs.
    assert work.peak_activation_bytes == 4 * (3 * 225 + 8 * 49)


def test_work_goes_through_json(small_onnx: Path) -> None:
    work = count(small_onnx)
    data = json.loads(json.dumps(work.to_dict()))
    assert data["macs"] == 8 * 256 * 27
    assert Work.from_dict(data) == work
    assert set(work.kinds) <= set(KINDS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.onnx", b"this is no model" * 10, "not a sound ONNX file"),
        ("empty.onnx", b"", "not a sound ONNX file"),
        ("broken.tflite", b"this is no model" * 10, "the mark 'TFL3' is missing"),
        ("short.tflite", b"\x1c\x00\x00\x00TFL3\x00\x00", "not a sound TFLite file"),
        ("weights.pth", b"", "can be counted in .onnx and .tflite files, not in '.pth' files"),
    ],
)
def test_files_that_cannot_be_counted(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DeviceError, match=said) as caught:
        count(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_tflite_file_damaged_anywhere_is_counted_or_refused_but_never_crashes(
    tmp_path: Path, small_tflite: Path
) -> None:
    sound = small_tflite.read_bytes()
    path = tmp_path / "damaged.tflite"
    refused = 0
    for place in range(8, len(sound), max(1, len(sound) // 60)):
        path.write_bytes(sound[:place] + b"\xff\xff\xff\xff" + sound[place + 4 :])
        try:
            count(path)
        except DeviceError:
            refused += 1
    assert refused > 0


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no such file"):
        count(tmp_path / "none.onnx")


class TestPeak:
    """Graphs of named one-dimensional tensors of one byte per element."""

    @staticmethod
    def peak(text: str, sizes: dict[str, int], inputs: str, outputs: str) -> int:
        """Text: one node per line, "kind: inputs -> outputs"."""
        tensors = {name: Tensor(name, (size,), 1) for name, size in sizes.items()}
        nodes, kinds = [], []
        for line in text.strip().splitlines():
            kind, _, rest = line.strip().partition(": ")
            read, _, written = rest.partition(" -> ")
            reads = tuple(tensors[name] for name in read.split())
            nodes.append(Node("Some", reads, tuple(tensors[name] for name in written.split()), {}))
            kinds.append(kind)
        ends = (tuple(tensors[name] for name in names.split()) for names in (inputs, outputs))
        return peak_activation_bytes(Graph(tuple(nodes), *ends), kinds)

    def test_a_chain_needs_two_neighbours(self) -> None:
        text = "conv: x -> a\nconv: a -> b\nconv: b -> y"
        assert self.peak(text, {"x": 10, "a": 20, "b": 5, "y": 1}, "x", "y") == 30

    def test_a_shortcut_keeps_its_source_alive(self) -> None:
        text = "conv: x -> a\nconv: a -> b\nconv: b -> c\nelementwise: a c -> y"
        assert self.peak(text, {"x": 1, "a": 10, "b": 10, "c": 10, "y": 10}, "x", "y") == 30

    def test_the_sum_is_written_over_a_summand(self) -> None:
        text = "conv: x -> a\nconv: a -> b\nelementwise: a b -> y"
        assert self.peak(text, {"x": 1, "a": 10, "b": 10, "y": 10}, "x", "y") == 20

    def test_an_activation_is_not_written_over_what_is_read_again(self) -> None:
        text = "conv: x -> a\nelementwise: a -> b\nconv: a b -> y"
        assert self.peak(text, {"x": 1, "a": 10, "b": 10, "y": 1}, "x", "y") == 21

    def test_the_input_is_not_overwritten(self) -> None:
        assert self.peak("elementwise: x -> y", {"x": 10, "y": 10}, "x", "y") == 20

    def test_a_view_keeps_its_source_alive(self) -> None:
        text = "conv: x -> a\nview: a -> v\nconv: x -> b\nconv: v b -> y"
        assert self.peak(text, {"x": 1, "a": 10, "v": 10, "b": 5, "y": 1}, "x", "y") == 16

    def test_an_output_lives_to_the_end(self) -> None:
        text = "conv: x -> y\nconv: x -> a\nconv: a -> z"
        assert self.peak(text, {"x": 1, "y": 10, "a": 7, "z": 7}, "x", "y z") == 24

    def test_a_result_nobody_reads_dies_at_once(self) -> None:
        text = "conv: x -> a unused\nconv: a -> y"
        assert self.peak(text, {"x": 1, "a": 2, "unused": 50, "y": 60}, "x", "y") == 62
