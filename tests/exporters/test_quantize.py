"""Integer files: which layers stay in float32 and why, against a network that breaks at a known layer."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exporter_peers import need_format
from small_nets import SPEC, calibration
from torch import Tensor, nn

import exporters.quantize_onnx
from device_profiles.runners.worker import open_onnx
from exporters import Artifact, ExportError, InputSpec, export
from exporters.operators import tflite_operators
from exporters.quantize import _fewest, module_paths, quantize_within
from exporters.verify import accuracy, open_runtime, parity, torch_logits

FORMATS = ("tflite", "onnx")
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


class Lopsided(nn.Module):
    """One channel a thousand times larger than the others: 8 bits for the whole tensor leave nothing of these.

    The large channel leaves `narrow` and is cut off behind it, so only that layer needs more bits.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, 2, 1)
        self.classify = nn.Linear(8, 5)
        with torch.no_grad():
            self.narrow.weight[0] *= 3000
            self.last.weight[:, 0] = 0
            self.classify.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.last(torch.relu(self.narrow(torch.relu(self.first(x))))))
        return self.classify(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    net = Lopsided().eval()
    centre = torch_logits(net, calibration()).mean(0)
    with torch.no_grad():
        net.classify.bias -= torch.from_numpy(centre)  # all classes occur
    return net


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((64, 3, 16, 16)).astype(np.float32)


@pytest.fixture(params=FORMATS)
def exported(request: pytest.FixtureRequest, net: nn.Module, tmp_path: Path) -> Artifact:
    need_format(request.param)
    return export(net, SPEC, tmp_path / f"float.{request.param}", format=request.param)


def test_the_layer_that_breaks_stays_in_float(
    exported: Artifact, net: nn.Module, pictures: np.ndarray, tmp_path: Path
) -> None:
    labels = torch_logits(net, pictures).argmax(1)
    path = tmp_path / f"int8.{exported.format}"
    found = quantize_within(
        exported, path, calibration(), lambda file: accuracy(file, pictures, labels), allowed_drop=0.05, module=net
    )
    assert found.float_accuracy == 1.0 and found.tries[0].kept == 0 and found.tries[0].accuracy < 0.9
    assert found.accuracy >= 0.95 and accuracy(path, pictures, labels) == found.accuracy
    assert 1 <= len(found.kept_float) <= 3  # the layer, what reads it, and a pad between them
    assert any("narrow" in kept or "last" in kept for kept in found.kept_float), found.kept_float
    assert all(str(len(found.kept_float)) in found.report and kept in found.report for kept in found.kept_float)
    assert [loss.loss for loss in found.losses] == sorted((loss.loss for loss in found.losses), reverse=True)
    assert found.artifact.precision == "int8" and found.artifact.size_bytes == path.stat().st_size
    assert json.loads(json.dumps(found.to_dict()))["kept_float"] == list(found.kept_float)


def test_nothing_is_kept_where_all_may_be_lost(exported: Artifact, tmp_path: Path) -> None:
    path = tmp_path / f"int8.{exported.format}"
    found = quantize_within(exported, path, calibration(), lambda file: 0.5, allowed_drop=0.0)
    assert (
        found.kept_float == () and found.losses == () and len(found.tries) == 1 and "float32 stay" not in found.report
    )


def test_what_cannot_be_reached_is_refused(exported: Artifact, net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"int8.{exported.format}"
    with pytest.raises(ExportError, match=r"loses 50\.0 points .* worst: .*(narrow|last).* use float16") as caught:
        quantize_within(
            exported, path, calibration(), lambda file: float(file == exported.path) / 2, allowed_drop=0.01, module=net
        )
    assert not path.exists() and "\n" not in str(caught.value)
    aside = tmp_path / "rejected" / path.name
    assert aside.is_file() and [tried["kept"] for tried in rejection(aside)["found"]["tries"]][:2] == [0, 1]


def rejection(aside: Path) -> dict[str, object]:
    return json.loads(aside.with_name(f"{aside.name}.json").read_text())


def test_only_float_files_of_known_formats(exported: Artifact, tmp_path: Path) -> None:
    for other in (replace(exported, format="executorch"), replace(exported, precision="float16")):
        with pytest.raises(ExportError, match="cannot be quantised"):
            quantize_within(other, tmp_path / "x", calibration(), lambda file: 1.0)


@pytest.mark.parametrize("least", [1, 2, 3, 5, 7, 8, 12])
def test_fewest_layers(least: int) -> None:
    asked: list[int] = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= least

    assert _fewest(holds, 24) == least
    assert max(asked) <= 12 and len(asked) == len(set(asked)) <= 8
    assert _fewest(lambda count: count >= 13, 24) is None


def test_layers_are_named_only_where_they_match() -> None:
    found = [{"shape": [4, 3, 3, 3]}, {"shape": []}, {"shape": [1, 3, 3, 4]}]
    weighted = [("stem", (4, 3, 3, 3)), ("deep", (4, 1, 3, 3))]
    assert module_paths(found, weighted) == ["stem", "after stem", "deep"]
    assert module_paths(found, weighted[::-1]) == ["", "", ""] and module_paths(found, []) == ["", "", ""]


def test_ranges_come_from_all_calibration_images(tmp_path: Path) -> None:
    """One picture in the middle is ten times brighter; a moving average would clip what it does."""
    need_format("tflite")
    net = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    pictures = calibration(20)
    pictures[7] = 10 + pictures[7]
    path = tmp_path / "x.tflite"
    export(net, SPEC, path, format="tflite", precision="int8", calibration=pictures)
    found = parity(path, net, pictures)
    assert found.max_abs < 0.05 * found.scale


@pytest.mark.parametrize("kind", FORMATS)
def test_layer_that_is_not_there_cannot_be_kept(kind: str, net: nn.Module, tmp_path: Path) -> None:
    need_format(kind)
    path = tmp_path / f"x.{kind}"
    options = {"precision": "int8", "calibration": calibration(), "kept_float": ("no such layer",)}
    with pytest.raises(ExportError, match=r"\['no such layer'\] to keep in float32 are not in this file"):
        export(net, SPEC, path, format=kind, **options)
    assert not path.exists()


class Pooled(nn.Module):
    """Two padded max poolings, one over values of both signs: their padding is minus infinity in the float file."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.first(x), 3, 2, 1)
        x = nn.functional.max_pool2d(torch.relu(self.second(x)), 3, 2, 1)
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("precision", ["int8", "int8-float-io"])
def test_the_padding_of_max_pooling_has_an_integer(kind: str, precision: str, tmp_path: Path) -> None:
    need_format(kind)
    if (kind, precision) == ("onnx", "int8-float-io"):
        return  # its only integer form has float ends
    net = Pooled().eval()
    path = tmp_path / f"x.{kind}"
    export(net, SPEC, path, format=kind, precision=precision, calibration=calibration())
    found = parity(path, net, calibration())
    assert found.mean_abs < 0.03 * found.scale


@pytest.mark.parametrize("kind", FORMATS)
def test_sums_of_8_bit_products_do_not_saturate(kind: str, tmp_path: Path) -> None:
    """The largest activations times the largest weights: two products have more than 16 bits."""
    need_format(kind)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    for layer in (net[0], net[3]):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    images = np.stack([np.full(SPEC.shape()[1:], value, np.float32) for value in (0, 1)])
    path = tmp_path / f"x.{kind}"
    export(net, SPEC, path, format=kind, precision="int8", calibration=images)
    assert open_runtime(path)(images[1:]) == pytest.approx(np.full((1, 5), 27 * 8), rel=0.01)


def test_layers_that_share_an_integer_zero_point_are_run(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 fails on such files where it is asked for exact sums on x86-64 without VNNI."""
    path = tmp_path / "x.onnx"
    export(Curves().eval(), SPEC, path, format="onnx", precision="int8", calibration=calibration())
    model = onnx.load(path)
    zeros = [name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.input[2:]]
    whole = {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}
    first, second = (name for name in zeros if whole[name].dtype == np.int8 and whole[name].shape == (8,))
    for node in model.graph.node:
        node.input[:] = [first if name == second else name for name in node.input]
    onnx.save(model, tmp_path / "shared.onnx")
    images = calibration()
    assert np.abs(open_runtime(tmp_path / "shared.onnx")(images) - open_runtime(path)(images)).max() < 0.1
    opened, _, graph = open_onnx(onnxruntime, str(tmp_path / "shared.onnx"), 1)
    opened()
    told = graph["name"].removeprefix("CPUExecutionProvider")
    assert told in ("", ", int8 sums saturate")  # by the processor
    assert open_runtime(tmp_path / "shared.onnx").name.endswith(told) and "saturate" not in open_runtime(path).name


class Curves(nn.Module):
    """Activations that XNNPACK has no 8-bit kernels for, and one that two operators read, as SiLU does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(nn.functional.hardswish(self.first(x)))
        return self.last(nn.functional.silu(self.second(x)).mean((2, 3)))


def test_what_has_no_integer_kernels_stays_in_float(tmp_path: Path) -> None:
    need_format("tflite")
    path = tmp_path / "x.tflite"
    export(Curves().eval(), SPEC, path, format="tflite", precision="int8", calibration=calibration())
    operators = tflite_operators(path)
    assert all(operator.accelerated for operator in operators)
    assert sum(operator.kind in ("CONV_2D", "FULLY_CONNECTED") for operator in operators) == 3
    held = {tensor["name"]: tensor["dtype"] for tensor in open_runtime(path).interpreter.get_tensor_details()}
    assert list(held.values()).count(np.float32) >= 2 and list(held.values()).count(np.int8) > 6
    assert parity(path, Curves().eval(), calibration()).failure("int8") is None


def test_onnx_runtime_computes_every_layer_in_integers(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    export(Curves().eval(), SPEC, path, format="onnx", precision="int8", calibration=calibration())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert kinds.count("QLinearConv") == 2 and "Conv" not in kinds
    assert "QGemm" in kinds and "Gemm" not in kinds


def test_lean_onnx_computes_the_same_and_is_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, logits = [], []
    for name in ("lean", "plain"):
        if name == "plain":
            monkeypatch.setattr(exporters.quantize_onnx, "lean", lambda model: model)
        path = tmp_path / f"{name}.onnx"
        options = {"precision": "int8", "calibration": calibration(), "simplify": False}
        export(Pooled().eval(), SPEC, path, format="onnx", **options)
        onnx.checker.check_model(onnx.load(path), full_check=True)
        sizes.append(path.stat().st_size)
        logits.append(open_runtime(path)(calibration()))
    assert sizes[0] < sizes[1]
    assert np.array_equal(*logits)


def test_a_real_network_keeps_its_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """resnet20 on CIFAR-10 loses half a point in int8, most of it in its first convolution."""
    need_format("onnx")
    weights, images = SHARED / "data/checkpoints/resnet20-12fca82f.th", SHARED / "data/cifar10_lossless_subset.npz"
    if not weights.is_file() or not images.is_file():
        pytest.skip("resnet20 and CIFAR-10 are not in ../shared/data")
    monkeypatch.syspath_prepend(SHARED / "models")
    net = import_module("resnet_cifar").resnet20(checkpoint=str(weights)).eval()
    data = np.load(images)
    spec = InputSpec(3, 32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    train, test = (
        ((data[key] / np.float32(255) - np.float32(spec.mean)) / np.float32(spec.std)).transpose(0, 3, 1, 2)
        for key in ("train_x", "test_x")
    )
    source = export(net, spec, tmp_path / "float.onnx", format="onnx")
    path = tmp_path / "int8.onnx"
    right = data["test_y"]
    found = quantize_within(
        source, path, train[:64], lambda file: accuracy(file, test, right), allowed_drop=0.0025, module=net
    )
    lost = [found.float_accuracy - tried.accuracy for tried in found.tries]
    assert lost[0] > 0.0025 >= found.float_accuracy - accuracy(path, test, right)
    assert 1 <= len(found.kept_float) < len(found.losses) / 4 and "(conv1)" in found.report
