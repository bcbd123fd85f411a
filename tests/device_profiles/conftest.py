"""Small real model files, made once, and a device of nothing but a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

Save = Callable[..., Path]
# The time that an example takes decides no test.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def no_phone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone on the desk must not change what "pixel" means in a test."""
    monkeypatch.setenv("MOBILEPRUNE_ADB", "no-adb-in-tests")


@pytest.fixture
def save_onnx(tmp_path: Path) -> Save:
    """Saves a graph: save(nodes, input shape, output shape, weights={name: shape}, opset=20) -> path."""

    def save(
        nodes: list[onnx.NodeProto],
        input_shape: list[int | str],
        output_shape: list[int | str],
        weights: dict[str, tuple[int, ...]] | None = None,
        constants: dict[str, np.ndarray] | None = None,
        name: str = "net.onnx",
    ) -> Path:
        arrays = {key: np.full(shape, 0.1, np.float32) for key, shape in (weights or {}).items()} | (constants or {})
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
            [numpy_helper.from_array(array, key) for key, array in arrays.items()],
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("our.own", 1)]
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path

    return save


@pytest.fixture
def small_onnx(save_onnx: Save) -> Path:
    """One 3x3 convolution, 3 -> 8 channels at 16 x 16, and a ReLU; its name has blanks, quotes and shell characters."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
    relu = helper.make_node("Relu", ["c"], ["y"])
    name = "a 'small' net; $(echo no).onnx"
    return save_onnx([conv, relu], [1, 3, 16, 16], [1, 8, 16, 16], {"w": (8, 3, 3, 3)}, name=name)


@pytest.fixture(scope="session")
def small_tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of convolution and a linear layer, converted to TFLite: layers and figures in test_operators.py."""
    litert_torch = pytest.importorskip("litert_torch", reason="needs the extra: pip install 'mobileprune[tflite]'")
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.MaxPool2d(5),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    channel_last = litert_torch.to_channel_last_io(net, args=[0]).eval()
    path = tmp_path_factory.mktemp("tflite") / "small net.tflite"
    litert_torch.convert(channel_last, (torch.zeros(1, 15, 15, 3),)).export(str(path))
    return path
