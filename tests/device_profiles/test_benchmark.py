"""The protocol on a device whose times are a script, so that every figure is known beforehand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import ScriptedDevice, steady

from device_profiles.benchmark import Measurement, Report, benchmark, drift
from device_profiles.devices.base import Delegation, DeviceState, Predicted
from device_profiles.errors import DeviceError
from device_profiles.thermal import Gate


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.onnx" for name in ("a", "b", "c")}
    for path in paths.values():
        path.touch()
    return paths


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


def test_a_share_is_of_the_same_rounds(files: dict[str, Path]) -> None:
    """The clock has two speeds and changes between rounds, once in the middle of one."""
    slow = {"a": [1.0, 1.1, 1.1, 1.0, 1.1, 1.0, 1.0], "b": [1.0, 1.1, 1.1, 1.1, 1.1, 1.0, 1.0]}
    device = ScriptedDevice(lambda name, number: [{"a": 2.0, "b": 4.0}[name] * slow[name][number]])
    found = benchmark(device, {name: files[name] for name in slow}).measurements
    assert found["a"].latency_ms / found["b"].latency_ms == pytest.approx(0.5 / 1.1)  # by chance off by a tenth
    share, low, high = found["a"].share_of(found["b"])
    assert share == pytest.approx(0.5)
    assert low == pytest.approx(0.5 / 1.1 + 11 / 15 * (0.5 - 0.5 / 1.1)) and high == pytest.approx(0.5)
    assert found["a"].share_of(found["a"]) == (1.0, 1.0, 1.0)


def test_the_share_of_a_prediction_is_that_of_the_latencies() -> None:
    half, base = (
        Measurement.predicted(Predicted(ms, 0.9 * ms, 1.1 * ms, 0.05, "a runtime", ""), threads=1) for ms in (4.0, 8.0)
    )
    assert half.share_of(base) == pytest.approx((0.5, 0.45, 0.55))


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
    device = ScriptedDevice(steady, *(DeviceState(cores=2, busy=one) for one in busy))
    assert any("70% of the processor busy" in one for one in benchmark(device, files).warnings)


def test_a_device_that_does_not_tell_how_busy_it_is_is_not_called_busy(files: dict[str, Path]) -> None:
    assert benchmark(ScriptedDevice(steady, DeviceState(cores=2)), files).warnings == []


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


def test_what_ran_the_graph_is_told(files: dict[str, Path]) -> None:
    report = benchmark(ScriptedDevice(steady), files)
    assert report.measurements["a"].delegation == Delegation("XNNPACK", 0.5, 8)
    assert report.to_dict()["measurements"]["a"]["delegation"] == {"name": "XNNPACK", "share": 0.5, "nodes": 8}


def test_a_measurement_written_before_delegates_were_told_is_read(files: dict[str, Path]) -> None:
    report = benchmark(ScriptedDevice(steady), files)
    data = json.loads(json.dumps(report.to_dict()))
    for key in ("delegate", "core_mask", "waited_s"):
        del data[key]
    for one in data["measurements"].values():
        del one["delegation"]
    for key in ("delegates", "abi", "emulated", "hints"):
        del data["device"][key]
    old = Report.from_dict(data)
    assert old.measurements["a"].latency_ms == report.measurements["a"].latency_ms
    assert old.measurements["a"].delegation is None


def test_delegate_and_cores_reach_the_device(files: dict[str, Path]) -> None:
    device = ScriptedDevice(steady)
    device.info = replace(device.info, delegates=("cpu", "gpu"))
    report = benchmark(device, files, delegate="gpu", core_mask=0xF0, threads=2)
    assert (report.delegate, report.core_mask) == ("gpu", 0xF0)
    asked = device.asked[0]
    assert (asked["delegate"], asked["core_mask"], asked["threads"]) == ("gpu", 0xF0, 2)


@pytest.mark.parametrize(("delegate", "said"), [("gpu", "runs files on its cpu only, not on gpu"), ("npu", "does not")])
def test_a_delegate_that_is_not_there_is_refused(files: dict[str, Path], delegate: str, said: str) -> None:
    device = ScriptedDevice(steady)
    with pytest.raises(DeviceError, match=said):
        benchmark(device, files, delegate=delegate)
    assert device.sessions == []


def test_a_missing_runtime_comes_with_its_remedy(tmp_path: Path) -> None:
    device = ScriptedDevice(steady)
    device.info = replace(device.info, hints=(".pte files: pip install executorch",))
    (tmp_path / "net.pte").touch()
    with pytest.raises(DeviceError, match=r"no runtime for '\.pte' files; .*for \.pte files: pip install executorch"):
        benchmark(device, {"a": tmp_path / "net.pte"})


def test_an_emulated_device_is_labelled(files: dict[str, Path]) -> None:
    device = ScriptedDevice(steady)
    device.info = replace(device.info, emulated=True)
    report = benchmark(device, files)
    assert {one.origin for one in report.measurements.values()} == {"emulated"}
    assert report.warnings == ["scripted is emulated: its times say nothing of a real device"]


COOL = DeviceState(cores=2, busy=0.0, temperature_c=50.0, temperature_limit_c=80.0)
HOT = replace(COOL, temperature_c=79.0)


def test_a_device_that_throttled_on_the_way_is_refused(files: dict[str, Path]) -> None:
    device = ScriptedDevice(lambda name, number: [1.1 if number > 3 else 1.0], COOL, HOT)
    with pytest.raises(DeviceError, match=r"scripted throttled .* is at 79 °C and slows down at 80 °C, .* 10% slower"):
        benchmark(device, files)


def test_a_device_that_became_hot_without_slowing_down_is_said(files: dict[str, Path]) -> None:
    warnings = benchmark(ScriptedDevice(steady, COOL, HOT), files).warnings
    assert warnings == ["the device became hot: it is at 79 °C and slows down at 80 °C; later latencies may be longer"]


def test_a_hot_device_is_left_to_cool_and_the_wait_is_told(files: dict[str, Path]) -> None:
    device = ScriptedDevice(steady, HOT, HOT, COOL)
    assert benchmark(device, files, gate=Gate(sleep=lambda seconds: None)).waited_s == 10.0


def test_a_strict_measurement_refuses_drift_and_disagreement(files: dict[str, Path]) -> None:
    def drifting(name: str, number: int) -> list[float]:
        return [1.5 if (number + 1) % 8 > 4 else 1.0]  # again in each try of 7 rounds and a warm-up

    def torn(name: str, number: int) -> list[float]:
        return [1.0 + 9 * (name == "b" and number % 2)]

    with pytest.raises(DeviceError, match=r"scripted drifted by \+50% .* \(3 tries were made\)") as caught:
        benchmark(ScriptedDevice(drifting), files, strict=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match=r"b: the rounds disagree by ±\d+%"):
        benchmark(ScriptedDevice(torn), files, rounds=8, strict=True)
    for script in (drifting, torn):
        assert benchmark(ScriptedDevice(script), files, rounds=8).warnings
    assert benchmark(ScriptedDevice(steady), files, strict=True).warnings == []


def test_a_strict_measurement_begins_anew_once_the_device_has_come_to_rest(files: dict[str, Path]) -> None:
    def slower_for_good(name: str, number: int) -> list[float]:
        return [1.5 if number > 3 else 1.0]

    device = ScriptedDevice(slower_for_good, COOL, HOT, COOL)
    report = benchmark(device, files, strict=True, gate=Gate(sleep=lambda seconds: None))
    assert {one.latency_ms for one in report.measurements.values()} == {1.5}
    assert (report.before, report.waited_s, report.warnings) == (COOL, 5.0, [])
    assert all(len(one.round_minima_ms) == 7 for one in report.measurements.values())
    hot_for_good = ScriptedDevice(slower_for_good, COOL, HOT)
    with pytest.raises(DeviceError, match="did not cool down"):
        benchmark(hot_for_good, files, strict=True, gate=Gate(sleep=lambda seconds: None))
