"""The protocol on a device whose times are a script, so that every figure is known beforehand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from device_profiles.benchmark import Report, benchmark, drift
from device_profiles.devices.base import Device, DeviceInfo, DeviceState, Loaded, Round, Session
from device_profiles.errors import DeviceError
from device_profiles.profile import load_profile

Script = Callable[[str, int], list[float]]  # file name and number of its round -> the times of its runs, ms


class ScriptedSession(Session):
    """Answers from the script; the warm-up is round -1."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, int, float]] = []

    def loaded(self, name: str) -> Loaded:
        return Loaded(init_ms=5.0, runtime="scripted 1.0")

    def time_round(self, name: str, *, min_runs: int, min_seconds: float) -> Round:
        number = sum(one[0] == name for one in self.asked) - 1
        self.asked.append((name, min_runs, min_seconds))
        return Round.of(self.script(name, number), peak_memory_mb=10.0 + max(number, 0))


class ScriptedDevice(Device):
    def __init__(self, script: Script, busy: tuple[float | None, float | None] = (0.0, 0.0), cores: int = 2) -> None:
        self.profile = load_profile("host")
        self.script = script
        self.busy = list(busy)
        self.cores = cores
        self.sessions: list[ScriptedSession] = []
        self.open = 0

    def describe(self) -> DeviceInfo:
        return DeviceInfo("scripted", "host", "a script", "none", self.cores, "none", {".onnx": "scripted 1.0"})

    def state(self) -> DeviceState:
        return DeviceState(cores=self.cores, busy=self.busy.pop(0))

    @contextlib.contextmanager
    def session(self, files: Mapping[str, Path], *, threads: int, timeout_s: float) -> Iterator[Session]:
        self.sessions.append(ScriptedSession(self.script))
        self.open += 1
        try:
            yield self.sessions[-1]
        finally:
            self.open -= 1

    def clean_up(self) -> None:
        self.open = 0


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.onnx" for name in ("a", "b", "c")}
    for path in paths.values():
        path.touch()
    return paths


def steady(name: str, number: int) -> list[float]:
    return [2.0, 1.0, 4.0]


def test_latency_is_the_median_of_the_round_minima(files: dict[str, Path]) -> None:
    minima = [5.0, 1.0, 4.0, 2.0, 3.0, 7.0, 6.0]
    device = ScriptedDevice(lambda name, number: [minima[number] + extra for extra in (0.5, 0.0, 10.0)])
    one = benchmark(device, {"a": files["a"]}).measurements["a"]
    assert one.round_minima_ms == tuple(minima)
    assert one.latency_ms == 4.0
    assert (one.low_ms, one.high_ms) == (pytest.approx(1 + 11 / 15), pytest.approx(7 - 11 / 15))
    assert one.spread == pytest.approx((6 - 22 / 15) / 2 / 4)
    assert one.p50_ms == 4.5
    assert one.p90_ms == pytest.approx(4 + 0.5 + 0.8 * 9.5)
    assert (one.runs, one.init_ms, one.peak_memory_mb) == (21, 5.0, 16.0)
    assert (one.runtime, one.threads) == ("scripted 1.0", 1)


def test_files_are_warmed_up_and_then_interleaved_in_shuffled_rounds(files: dict[str, Path]) -> None:
    device = ScriptedDevice(steady)
    benchmark(device, files, rounds=20, min_runs=9, min_seconds=0.5)
    asked = device.sessions[0].asked
    assert [name for name, _, _ in asked[:3]] == list(files)
    rounds = [tuple(name for name, _, _ in asked[start : start + 3]) for start in range(3, len(asked), 3)]
    assert len(rounds) == 20
    assert {tuple(sorted(one)) for one in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) == 6  # every order occurs in 20 rounds
    assert {one[1:] for one in asked[3:]} == {(9, 0.5)}


def test_the_seed_fixes_the_order(files: dict[str, Path]) -> None:
    devices = [ScriptedDevice(steady) for _ in range(3)]
    for device, seed in zip(devices, (1, 1, 2), strict=True):
        benchmark(device, files, seed=seed)
    first, same, other = (device.sessions[0].asked for device in devices)
    assert first == same != other


def test_progress_counts_every_round_of_every_file(files: dict[str, Path]) -> None:
    seen: list[tuple[int, int]] = []
    benchmark(ScriptedDevice(steady), files, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_a_quiet_device_raises_no_warning(files: dict[str, Path]) -> None:
    assert benchmark(ScriptedDevice(steady), files).warnings == []


def test_drift_is_found_over_all_files_jointly(files: dict[str, Path]) -> None:
    # The middle one of seven rounds belongs to neither half; from the fifth on all is a tenth slower.
    device = ScriptedDevice(lambda name, number: [{"a": 1.0, "b": 10.0, "c": 3.0}[name] * (1.1 if number > 3 else 1.0)])
    report = benchmark(device, files)
    assert drift(report.measurements) == pytest.approx(0.1)
    assert any("second half of the rounds was 10% slower than the first" in one for one in report.warnings)


def test_one_drifting_file_of_three_is_no_drift_of_the_device(files: dict[str, Path]) -> None:
    device = ScriptedDevice(lambda name, number: [1.1 if name == "a" and number > 3 else 1.0])
    assert drift(benchmark(device, files).measurements) == pytest.approx(0.0)


def test_an_uncertain_latency_is_named(files: dict[str, Path]) -> None:
    device = ScriptedDevice(lambda name, number: [1.0 + (0.5 * (number % 2) if name == "b" else 0.0)])
    warnings = benchmark(device, files, rounds=8).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("b: the latency is uncertain by ±20%")


@pytest.mark.parametrize("busy", [(0.7, 0.0), (0.0, 0.7)])
def test_a_busy_device_is_said_before_or_after(files: dict[str, Path], busy: tuple[float, float]) -> None:
    assert any("70% of the processor busy" in one for one in benchmark(ScriptedDevice(steady, busy), files).warnings)


def test_a_device_that_does_not_tell_how_busy_it_is_is_not_called_busy(files: dict[str, Path]) -> None:
    assert benchmark(ScriptedDevice(steady, (None, None)), files).warnings == []


def test_more_threads_than_cores_are_said(files: dict[str, Path]) -> None:
    report = benchmark(ScriptedDevice(steady), files, threads=4)
    assert report.measurements["a"].threads == 4
    assert report.warnings == ["4 threads were asked for, but the device has 2 cores"]


def test_few_rounds_are_said_to_carry_less_than_95_percent(files: dict[str, Path]) -> None:
    assert benchmark(ScriptedDevice(steady), files, rounds=3).warnings == [
        "3 rounds carry an interval of 75% only; 6 carry 95%"
    ]


def test_a_report_goes_through_json(files: dict[str, Path]) -> None:
    report = benchmark(ScriptedDevice(steady), files)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert report.to_dict()["measurements"]["a"]["spread"] == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": 1}, "rounds = 1 is too few"),
        ({"min_runs": 0}, "min_runs = 0 is too few"),
        ({"threads": 0}, "threads = 0 is too few"),
        ({"min_seconds": -1.0}, "min_seconds = -1.0 is not a time"),
        ({"min_seconds": float("nan")}, "min_seconds = nan is not a time"),
        ({"min_seconds": float("inf")}, "min_seconds = inf is not a time"),
    ],
)
def test_requests_that_make_no_measurement(files: dict[str, Path], options: dict[str, float], said: str) -> None:
    device = ScriptedDevice(steady)
    with pytest.raises(DeviceError, match=said):
        benchmark(device, files, **options)  # type: ignore[arg-type]
    assert device.sessions == []


def test_files_that_cannot_be_measured_are_named_before_anything_runs(tmp_path: Path, files: dict[str, Path]) -> None:
    device = ScriptedDevice(steady)
    weights = tmp_path / "weights.pth"
    weights.touch()
    with pytest.raises(DeviceError, match=r"weights.pth: the device scripted has no runtime for '.pth' files; it runs"):
        benchmark(device, {**files, "w": weights})
    with pytest.raises(DeviceError, match=r"none.onnx: there is no such file"):
        benchmark(device, {**files, "n": tmp_path / "none.onnx"})
    with pytest.raises(DeviceError, match="no file to measure"):
        benchmark(device, {})
    assert device.sessions == []


def test_a_device_that_fails_midway_leaves_no_session_open(files: dict[str, Path]) -> None:
    def script(name: str, number: int) -> list[float]:
        if number == 3:
            raise DeviceError("the cable was pulled out")
        return [1.0]

    device = ScriptedDevice(script)
    with pytest.raises(DeviceError, match="cable"):
        benchmark(device, files)
    assert device.open == 0
