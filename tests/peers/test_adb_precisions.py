"""Exported files in every precision: LiteRT and ONNX Runtime for arm64 give what they give on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from phones import Phone
from torch import nn

from device_profiles.devices.adb import AdbDevice
from exporters import InputSpec, available, export
from exporters.old import compare
from exporters.runtimes import LiteRuntime, open_runtime

SPEC = InputSpec(3, 16, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FILES = [
    ("tflite", "float32"), ("tflite", "float16"), ("tflite", "int8"), ("tflite", "int8-float-io"), ("onnx", "float32"),
    ("onnx", "int8"),
]  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 24, 1)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)).eval()


@pytest.mark.parametrize(("kind", "precision"), FILES)
def test_a_file_computes_the_same_on_the_phone(
    kind: str, precision: str, device: AdbDevice, phone: Phone, tmp_path: Path
) -> None:
    if reason := available(kind):
        pytest.skip(reason)
    images = np.random.default_rng(0).standard_normal((8, *SPEC.shape()[1:]), np.float32)
    path = tmp_path / f"model.{kind}"
    export(network(), SPEC, path, format=kind, precision=precision, calibration=images)
    runtime = open_runtime(path, 1)
    image = images[:1]
    # A TFLite file takes its own layout and, where it is integer at the ends, its own type.
    held = image.transpose(0, 2, 3, 1) if isinstance(runtime, LiteRuntime) else image
    (tmp_path / "in.raw").write_bytes(np.ascontiguousarray(runtime.taken.from_real(held)).tobytes())
    (raw,) = device.outputs(path, tmp_path / "in.raw").values()
    there = runtime.given.to_real(np.frombuffer(raw, np.dtype(runtime.given.dtype)).reshape(1, -1))
    found = compare("arm64", there, runtime(image), precision)
    assert found.agrees, found.reason
