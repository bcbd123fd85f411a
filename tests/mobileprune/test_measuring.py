"""What the command line shows of devices and files, on the real host."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from device_profiles.devices.base import Device, DeviceInfo, DeviceState
from device_profiles.layers import write_layer
from device_profiles.operators import count
from device_profiles.profile import DeviceProfile, load_profile
from device_profiles.runners import google
from device_profiles.sustained import Point, Sustained
from device_profiles.thermal import Gate
from mobileprune import measuring, profiling
from mobileprune.errors import UsageError
from mobileprune.progress import Quiet

TINY = Path(__file__).parent / "tiny_net.py"


@pytest.fixture(autouse=True)
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEPRUNE_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.delenv(google.VARIABLE, raising=False)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_layer("dense", width, tmp_path / f"{width}.onnx", side=64) for width in (8, 16, 24, 32)]


def shown(what: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(what)
    return out.getvalue()


@pytest.mark.parametrize(("text", "mask"), [("f0", 0xF0), ("0xF0", 0xF0), ("1", 1)])
def test_core_masks(text: str, mask: int) -> None:
    assert measuring.parse_core_mask(text) == mask


@pytest.mark.parametrize("text", ["", "0", "-1", "g", "f" * 300])
def test_what_is_no_core_mask(text: str) -> None:
    with pytest.raises(UsageError, match="no hexadecimal number above 0"):
        measuring.parse_core_mask(text)


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("90", 90), ("1.5h", 5400), ("2 min", 120)])
def test_durations(text: str, seconds: float) -> None:
    assert measuring.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5s", "10 days", "1e3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is no time such as"):
        measuring.parse_duration(text)


def test_a_benchmark_binary_is_used_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(google.VARIABLE, "before")
    measuring.use_benchmark_binary(None)
    with pytest.raises(UsageError, match="there is no such benchmark_model"):
        measuring.use_benchmark_binary(tmp_path / "none")
    binary = tmp_path / "benchmark_model"
    binary.write_bytes(b"\x7fELF\x02" + bytes(13) + b"\xb7\x00" + bytes(40))
    measuring.use_benchmark_binary(binary)
    assert google.find() == binary


def test_a_report_is_shown_with_what_ran_the_file_and_how_the_device_was(files: list[Path]) -> None:
    report = measuring.bench_files(files[:1], "host", rounds=2, round_seconds=0.0, display=Quiet(), threads=1)
    text = shown(measuring.bench_table(report, [*report.measurements]))
    assert "CPUExecutionProvider, all of the graph" in text
    assert "1 thread, measured" in text
    states = measuring.states_line(report.before, report.after)
    assert states is not None
    assert "before: " in states
    assert "busy" in states


def test_a_throttling_curve_is_shown_with_its_verdict(files: list[Path]) -> None:
    real = measuring.sustain_file(files[0], "host", 4.0, display=Quiet())
    assert real.points
    host = DeviceInfo("board", "ssh", "a board", "soc", 4, "Linux")
    points = tuple(Point(float(s), 10.0 if s < 100 else 13.0, 9, 60.0 + s / 20) for s in range(5, 305, 5))
    state = DeviceState(cores=4)
    found = Sustained(host, "net", "litert", 1, "measured", points, 10.0, 13.0, 100.0, state, state)
    text = shown(measuring.sustained_table(found))
    assert "board throttles after 100 s: from 10 to 13 ms (+30%)" in text
    assert "+30%" in text
    assert len(text.splitlines()) < 20


def test_devices_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(measuring.devices_table())
    for words in ("this machine", "without a device", "pixel-3a", "predicted ±", "onnxruntime"):
        assert words in text
    assert {one["name"] for one in measuring.known_devices()} >= {"host", "pixel"}


def test_the_real_host_is_profiled_and_its_profile_is_found(files: list[Path], tmp_path: Path) -> None:
    named = {path.stem: path for path in files}
    found, path = profiling.profile_connected(
        "host", named, name="my-host", output=None, display=Quiet(), rounds=2, round_seconds=0.0
    )
    assert path == tmp_path / "profiles" / "my-host.toml"
    assert load_profile("my-host") == found
    assert found.channel_steps is not None
    assert found.kind == "host"


def test_a_model_is_written_at_several_sizes(tmp_path: Path) -> None:
    found = profiling.network_files(f"{TINY}:tiny", tmp_path, format="onnx", image_size=16, shares=(1.0, 0.99, 0.5))
    assert set(found) == {"tiny-16", "tiny-8"}  # a size that comes twice is written once
    small, large = (count(found[name]).macs for name in ("tiny-8", "tiny-16"))
    assert 0 < 3 * small < large


def test_a_calibrated_profile_is_written_where_it_is_wanted(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, list[Path]]] = []

    def calibrated(
        shipped: DeviceProfile, device: Device, anchors: dict[str, Path], *, name: str, **how: object
    ) -> DeviceProfile:
        asked.append((shipped.name, device.profile.name, list(anchors.values())))
        return replace(shipped, name=name)

    monkeypatch.setattr(profiling, "calibrate_profile", calibrated)
    found, path = profiling.calibrate_connected(
        "pixel-3", "host", files[:2], name="mine", output=tmp_path / "mine.toml", display=Quiet()
    )
    assert asked == [("pixel-3", "host", files[:2])]
    assert load_profile(path) == found == replace(load_profile("pixel-3"), name="mine")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["/far/away/a.onnx", "/far/away/b.tflite"], ["a.onnx", "b.tflite"]),
        (["runs/one/model.onnx", "runs/two/model.onnx"], ["one/model.onnx", "two/model.onnx"]),
        (["model.onnx"], ["model.onnx"]),
        (["/far/model.onnx", "away/model.onnx"], ["far/model.onnx", "here/away/model.onnx"]),
        (["/here/one/model.onnx", "two/model.onnx"], ["one/model.onnx", "two/model.onnx"]),
    ],
)
def test_files_are_named_by_what_tells_them_apart(
    names: list[str], labels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/here")
    assert measuring.labels([Path(name) for name in names]) == labels


def test_a_file_that_is_named_in_two_ways_is_named_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a file was named twice"):
        measuring.by_name([Path("net.onnx"), tmp_path / "net.onnx"])


@pytest.mark.parametrize("kind", ["profile_device", "calibrate_profile"])
def test_a_hot_device_is_waited_for_with_a_word(kind: str, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said, gates = [], []

    def measured(*given: object, gate: Gate, **how: object) -> DeviceProfile:
        assert gate.waiting is not None
        gate.waiting(0.0, "host is hot")
        gates.append(gate)
        return replace(load_profile("host"), name="mine")

    class Heard(Quiet):
        def say(self, text: str, style: str = "") -> None:
            said.append(text)

    monkeypatch.setattr(profiling, kind, measured)
    monkeypatch.setattr(profiling, "_networks", lambda *_: {path.stem: path for path in files})
    if kind == "profile_device":
        profiling.profile_with("host", [], display=Heard(), name="mine", cool_down=90.0)
    else:
        profiling.calibrate_with("pixel", "host", ["net"], display=Heard(), name="mine", cool_down=90.0)
    assert [gate.cool_down_s for gate in gates] == [90.0]
    assert said == ["host is hot: waiting for it to cool (0 of 90 s)"]
