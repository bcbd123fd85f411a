"""The channel step of made-up devices whose step is known, and single convolutions on the real host."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedDevice, steady

from device_profiles.channel_step import CANDIDATES, channel_steps, decide, widths
from device_profiles.devices import open_device
from device_profiles.errors import DeviceError
from device_profiles.layers import KERNELS, SIDE, SUFFIXES, write_layer
from device_profiles.operators import count
from device_profiles.profile import STEP_KINDS, load_profile

KIND = {"dense": "conv", "pointwise": "conv1x1", "depthwise": "depthwise"}


def staircase(kind: str, step: int, overhead: float = 0.01) -> dict[int, float]:
    """A device that takes `step` channels at a time, both in and out, with the time of what it then computes."""
    full = {width: math.ceil(width / step) * step for width in widths()}
    power = 1 if kind == "depthwise" else 2
    return {width: overhead + 1e-4 * one**power + 1e-4 * width for width, one in full.items()}


@pytest.mark.parametrize("kind", STEP_KINDS)
@pytest.mark.parametrize("step", [1, 2, 4])
def test_small_steps_are_within_what_may_be_lost(kind: str, step: int) -> None:
    """At 64 channels and more, filling up to a multiple of 2 or 4 costs a few percent: no reason to round widths."""
    assert decide(kind, staircase(kind, step)).step <= step


@pytest.mark.parametrize("kind", ["dense", "pointwise"])
@pytest.mark.parametrize("step", [8, 16, 32])
def test_large_steps_are_found(kind: str, step: int) -> None:
    found = decide(kind, staircase(kind, step))
    assert found.step in (step // 2, step)
    assert found.losses[1] < 0.08  # 63 channels round up to 64: that in itself is no loss


def slow_below(kind: str, step: int) -> dict[int, float]:
    """A device with fast kernels for multiples of `step` and others, 1.4 times slower, for the rest: as x86 has."""
    smooth = staircase(kind, 1)
    return {width: ms * (1.4 if width % step else 1.0) for width, ms in smooth.items()}


@given(
    kind=st.sampled_from(STEP_KINDS),
    step=st.sampled_from([*CANDIDATES, 32]),
    scale=st.floats(1e-3, 1e3),
    noise=st.lists(st.floats(-0.015, 0.015), min_size=len(widths()), max_size=len(widths())),
)
def test_the_step_of_a_device_with_two_kinds_of_kernels_is_found_despite_noise(
    kind: str, step: int, scale: float, noise: list[float]
) -> None:
    times = slow_below(kind, step)
    measured = {width: scale * ms * (1 + off) for (width, ms), off in zip(times.items(), noise, strict=True)}
    found = decide(kind, measured)
    assert found.step == step
    assert found.latency_ms == measured


def test_every_candidate_has_widths_that_are_odd_multiples_of_it() -> None:
    for step in CANDIDATES:
        assert any(width % step == 0 and width // step % 2 for width in widths())


@pytest.fixture(params=SUFFIXES)
def suffix(request: pytest.FixtureRequest) -> str:
    if request.param == ".tflite":
        pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'mobileprune[tflite]'")
    return str(request.param)


@pytest.mark.parametrize("kind", STEP_KINDS)
@pytest.mark.parametrize("channels", [7, 16])
def test_a_layer_has_the_work_that_its_kind_says(tmp_path: Path, suffix: str, kind: str, channels: int) -> None:
    work = count(write_layer(kind, channels, tmp_path / f"layer{suffix}"))
    per_pixel = KERNELS[kind] ** 2 * channels * (1 if kind == "depthwise" else channels)
    assert work.macs == work.kinds[KIND[kind]].macs == per_pixel * SIDE**2
    assert work.unsupported == {}


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_a_layer_runs_the_same_in_both_formats(tmp_path: Path, kind: str) -> None:
    """Zero-padded borders, and the sum of all inputs inside."""
    interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra tflite")
    x = np.random.default_rng(0).random((1, 6, 9, 9), dtype=np.float32)
    session = onnxruntime.InferenceSession(write_layer(kind, 6, tmp_path / "a.onnx", side=9))
    expected = session.run(None, {"x": x})[0]
    interpreter = interpreters.Interpreter(str(write_layer(kind, 6, tmp_path / "a.tflite", side=9)))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.transpose(0, 2, 3, 1))
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    summed = x.sum(axis=1) if kind == "pointwise" else x[:, 2]
    if kind != "dense":
        inside = 0.01 * (summed[:, 4, 4] if kind == "pointwise" else summed[:, 3:6, 3:6].sum(axis=(1, 2)))
        assert found[0, 2, 4, 4] == pytest.approx(inside[0], rel=1e-5)


def test_layers_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="'grouped' is no kind of convolution"):
        write_layer("grouped", 8, tmp_path / "layer.onnx")
    with pytest.raises(DeviceError, match=r"as \.onnx and \.tflite, not as '\.pte'"):
        write_layer("dense", 8, tmp_path / "layer.pte")


def test_all_kinds_are_measured_and_decided_apart() -> None:
    tables = {
        "dense": slow_below("dense", 8),
        "pointwise": slow_below("pointwise", 4),
        "depthwise": slow_below("depthwise", 1),
    }

    def script(name: str, number: int) -> list[float]:
        kind, _, width = name.partition("-")
        return [tables[kind][int(width)]]

    device = ScriptedDevice(script)
    seen: list[tuple[int, int]] = []
    found = channel_steps(device, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert {kind: one.step for kind, one in found.items()} == {"dense": 8, "pointwise": 4, "depthwise": 1}
    total = 3 * 2 * len(widths())
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_the_caller_may_make_the_files(tmp_path: Path) -> None:
    device = ScriptedDevice(steady)
    asked: list[tuple[str, int]] = []

    def make(kind: str, channels: int) -> Path:
        asked.append((kind, channels))
        path = tmp_path / f"{kind}{channels}.onnx"
        path.touch()
        return path

    channel_steps(device, make=make, kinds=["dense"], rounds=2)
    assert asked == [("dense", width) for width in widths()]


def test_the_real_host_runs_all_layers(suffix: str) -> None:
    runtime = {".onnx": "onnxruntime", ".tflite": "litert"}[suffix]
    device = open_device(replace(load_profile("host"), runtime=runtime, format=suffix[1:]))
    found = channel_steps(device, kinds=["depthwise"], rounds=2, min_runs=1, min_seconds=0.0)
    assert found["depthwise"].step in (*CANDIDATES, 32)
    assert all(ms > 0 for ms in found["depthwise"].latency_ms.values())
