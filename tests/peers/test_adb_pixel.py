"""`--device pixel` with a Pixel behind the real adb, with two, and with none: measured, asked which, predicted.

The phone is the test phone, which says that it was a Pixel 3a. What is measured on it goes into folders of the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import QUESTION, QUICK, call_json, fail, start, words
from phones import PORT, SERIAL, Phone

from device_profiles.layers import write_layer
from device_profiles.profile import load_profile, read_profile

NETWORK = """
from torch import nn

def separable(classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.ReLU(), nn.Conv2d(32, 128, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes),
    )
"""


@pytest.fixture
def pixel(phone: Phone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Phone]:
    monkeypatch.setenv("MOBILEPRUNE_PROFILES", str(tmp_path / "profiles"))
    with phone.posing_as("pixel-3a"):
        yield phone


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """One that the shipped profile can predict."""
    return write_layer("pointwise", 64, tmp_path / "net.onnx", side=56)


def bench(net: Path, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the device, what was found) as `mobileprune bench --json` tells."""
    report = call_json("bench", net, "--device", device, *QUICK)
    (one,) = report["measurements"].values()
    return report["device"], one


def test_the_connected_pixel_is_measured_and_predicted_once_it_is_gone(pixel: Phone, net: Path) -> None:
    known = {one["name"]: one for one in call_json("devices")}
    for name in (f"adb://{SERIAL}", "pixel", "pixel-3a"):
        told = {key: known[name][key] for key in ("place", "title", "latency", "soc", "os", "abi", "cores")}
        assert tuple(told.values()) == (
            "connected", "Google Pixel 3a", "measured", "SDM670", "Android 12", "arm64-v8a", 2,
        )  # fmt: skip
    assert (known["pixel-4"]["place"], known["pixel-4"]["latency"]) == ("catalog", "predicted")
    device, one = bench(net, "pixel")
    assert (device["kind"], device["title"], device["emulated"]) == ("adb", "Google Pixel 3a", False)
    assert (one["origin"], one["runtime"]) == ("measured", "onnxruntime 1.31.1")
    assert one["runs"] >= 16
    plan = words("optimize", "--device", "pixel", *QUESTION, "--run", net.with_name("run"), "--dry-run")
    assert "device Google Pixel 3a, latency measured" in plan
    device, one = bench(net, "pixel-4")  # another Pixel
    assert (device["kind"], one["origin"], one["threads"]) == ("predicted", "predicted", 4)
    pixel.stop(PORT)
    try:
        device, one = bench(net, "pixel")
        assert (device["kind"], one["origin"], one["runs"]) == ("predicted", "predicted", 0)
        shown = words("bench", net, "--device", "pixel")
        assert "1 thread, predicted" in shown
        assert "nothing can be measured on it" in fail(start("profile", "--device", "pixel"))
    finally:
        pixel.start(PORT)


def test_an_emulated_phone_is_no_pixel(phone: Phone, net: Path) -> None:
    assert bench(net, "pixel")[1]["origin"] == "predicted"
    with phone.telling("properties", "[Test phone]", "[Pixel 3a]"):
        assert bench(net, "pixel")[1]["origin"] == "predicted"


def test_two_pixels_and_one_that_may_not_be_asked(pixel: Phone, net: Path) -> None:
    other, locked = PORT + 2, PORT + 4
    serial = pixel.start(other)
    try:
        message = fail(start("bench", net, "--device", "pixel"))
        assert message == (
            f"2 phones are connected that pixel may mean; say which one: adb://{SERIAL} and adb://{serial}"
        )
    finally:
        pixel.stop(other)
    closed = pixel.start_closed(locked, state="unauthorized")
    try:
        message = fail(start("bench", net, "--device", "pixel"))
        assert f"the phone {closed} cannot be asked what it is: it is unauthorized: unlock it" in message
    finally:
        pixel.stop(locked)


def test_the_shipped_profile_is_calibrated_on_the_connected_pixel(pixel: Phone, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    asked = ["--model", f"{tmp_path / 'net.py'}:separable", "--image-size", "160", "--rounds", "2"]
    found = call_json("profile", "--device", "pixel", "--calibrate", *asked, "--name", "my-pixel")
    profile = read_profile(Path(found["path"]))
    assert profile.title == "Google Pixel 3a, calibrated (predicted)"
    assert "The profile pixel rescaled to Google Pixel 3a (SDM670, Android 12) by 2 files" in profile.provenance
    (model,), shipped = profile.latency, load_profile("pixel").latency[0]
    ratios = {kind: model.ms_per_gmac[kind] / shipped.ms_per_gmac[kind] for kind in shipped.ms_per_gmac}
    assert max(ratios.values()) == pytest.approx(min(ratios.values()))
    assert model.runtime == "ai-edge-litert 2.3.0"
    assert pixel.models() == []
    assert call_json("bench", write_layer("pointwise", 64, tmp_path / "b.onnx", side=56), "--device", "my-pixel")
