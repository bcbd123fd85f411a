"""Waiting for a hot device, and throttling curves; clocks are scripts, too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import ScriptedDevice, steady

from device_profiles import sustained as module
from device_profiles.devices import open_device
from device_profiles.devices.base import DeviceState
from device_profiles.errors import DeviceError
from device_profiles.sustained import Sustained, sustained
from device_profiles.thermal import Gate, wait_until_ready

COOL = DeviceState(cores=2, busy=0.0)


class Clock:
    """Time passes only by sleeping, or by the rounds of a scripted device."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "hot",
    [
        replace(COOL, thermal_status=2),
        replace(COOL, throttled=True),
        replace(COOL, temperature_c=78.5, temperature_limit_c=80.0),
    ],
)
def test_a_hot_device_is_waited_for(hot: DeviceState) -> None:
    clock, seen = Clock(), []
    gate = Gate(60.0, lambda waited, why: seen.append((waited, why)), clock.sleep)
    state, waited = wait_until_ready(ScriptedDevice(steady, hot, hot, hot, COOL), gate)
    assert (state, waited) == (COOL, 15.0)
    assert [waited for waited, _ in seen] == [0.0, 5.0, 10.0]
    assert seen[0][1] == f"host {hot.hot}"


def test_a_device_that_stays_hot_is_refused_after_the_limit() -> None:
    clock = Clock()
    hot = replace(COOL, thermal_status=3)
    with pytest.raises(DeviceError, match=r"thermal status 3 .* did not cool down within 12 s") as caught:
        wait_until_ready(ScriptedDevice(steady, hot), Gate(12.0, sleep=clock.sleep))
    assert clock.slept == [5.0, 5.0, 2.0]
    assert "\n" not in str(caught.value)
    assert "give the same command again when it is cool" in str(caught.value)  # most have no --cool-down
    with pytest.raises(DeviceError, match="so it is too hot"):
        wait_until_ready(ScriptedDevice(steady, hot), Gate(0.0, sleep=clock.sleep))


def test_a_battery_saver_is_refused_at_once() -> None:
    clock = Clock()
    with pytest.raises(DeviceError, match=r"battery saver on, .*switch it off"):
        wait_until_ready(ScriptedDevice(steady, replace(COOL, power_saver=True)), Gate(sleep=clock.sleep))
    assert clock.slept == []


@pytest.mark.parametrize(
    "cool",
    [
        COOL,
        replace(COOL, thermal_status=0, throttled=False),
        replace(COOL, temperature_c=95.0),
        replace(COOL, battery_percent=3),
    ],
)
def test_what_is_not_known_to_be_hot_is_measured(cool: DeviceState) -> None:
    assert wait_until_ready(ScriptedDevice(steady, cool), Gate(0.0)) == (cool, 0.0)


class Curve:
    """Runs a scripted device whose rounds take the time they are asked for on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        monkeypatch.setattr(module.time, "monotonic", self.clock.monotonic)

    def run(self, latency: list[float], *states: DeviceState) -> Sustained:
        """latency: of 60 points of one second."""

        def script(name: str, number: int) -> list[float]:
            self.clock.now += 1.0
            return [latency[number + 1]]

        device = ScriptedDevice(script, *states)
        found = sustained(device, self.path, 60.0)
        assert device.open == 0
        return found


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Curve:
    path = tmp_path / "net.onnx"
    path.touch()
    return Curve(monkeypatch, path)


def test_a_device_that_keeps_its_speed(curve: Curve) -> None:
    found = curve.run([10.0] * 60)
    assert (len(found.points), found.first_ms, found.last_ms, found.throttled_after_s) == (60, 10.0, 10.0, None)
    assert found.points[-1].time_s == 60.0
    assert found.verdict == "scripted keeps its speed: from 10 to 10 ms (+0%) over 1 min"


def test_a_device_that_throttles_says_when_and_by_how_much(curve: Curve) -> None:
    found = curve.run([10.0] * 24 + [13.0] * 36)
    assert (found.first_ms, found.last_ms, found.throttled_after_s) == (10.0, 13.0, 25.0)
    assert found.verdict == "scripted throttles after 25 s: from 10 to 13 ms (+30%) over 1 min"


def test_a_disturbance_is_no_throttling(curve: Curve) -> None:
    assert curve.run([10.0] * 30 + [50.0] + [10.0] * 29).throttled_after_s is None
    curve.clock.now = 0.0
    found = curve.run([10.0] * 20 + [14.0] * 20 + [10.0] * 20)
    assert found.throttled_after_s is None
    curve.clock.now = 0.0
    assert curve.run([10.0] * 24 + [13.0] * 20 + [10.0] + [13.0] * 15).throttled_after_s == 25.0


def test_the_temperature_is_asked_for_now_and_then(curve: Curve) -> None:
    found = curve.run([10.0] * 60, COOL, replace(COOL, temperature_c=61.0))
    assert [one.temperature_c for one in found.points if one.temperature_c is not None] == [61.0, 61.0]


def test_a_curve_goes_through_json(curve: Curve) -> None:
    found = curve.run([10.0] * 24 + [13.0] * 36)
    data = json.loads(json.dumps(found.to_dict()))
    assert Sustained.from_dict(data) == found
    assert data["verdict"] == found.verdict


def test_what_makes_no_curve_is_refused(tmp_path: Path, small_onnx: Path) -> None:
    device = ScriptedDevice(steady)
    with pytest.raises(DeviceError, match="3 s are too short"):
        sustained(device, small_onnx, 3.0)
    with pytest.raises(DeviceError, match="no such file"):
        sustained(device, tmp_path / "none.onnx", 60.0)
    with pytest.raises(DeviceError, match="pixel is predicted, so nothing can be run"):
        sustained(open_device("pixel"), small_onnx, 60.0)
    assert device.sessions == []


def test_the_real_host_gives_a_curve(small_onnx: Path) -> None:
    seen: list[float] = []
    found = sustained(open_device("host"), small_onnx, 4.0, progress=seen.append)
    assert found.points[-1].time_s >= 4.0
    assert all(one.latency_ms > 0 and one.runs > 0 for one in found.points)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0, abs=0.2)
