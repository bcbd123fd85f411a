"""What every kind of device must do alike. A test module of a kind subclasses one of these and gives `device`.

`DeviceConformance` holds for all; `RunningDeviceConformance` is for those on which files really run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from device_profiles.benchmark import Report, benchmark
from device_profiles.devices.base import Device, DeviceInfo, DeviceState
from device_profiles.errors import DeviceError

QUICK: dict[str, Any] = {"rounds": 2, "min_runs": 3, "min_seconds": 0.01}


class DeviceConformance:
    """damaged: what is said of a file that is none. `net`: a file that the device can be asked about."""

    damaged = "."
    origin = "measured"

    @pytest.fixture
    def net(self, small_onnx: Path) -> Path:
        return small_onnx

    def test_describes_itself(self, device: Device) -> None:
        info = device.describe()
        assert info.name == device.profile.name
        assert info.kind == device.profile.kind
        assert info.soc
        assert info.os
        assert info.cores >= 1
        assert f".{device.profile.format}" in info.runtimes
        assert DeviceInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info

    def test_tells_its_state(self, device: Device) -> None:
        state = device.state()
        assert state.busy is None or 0 <= state.busy <= 1
        assert DeviceState.from_dict(json.loads(json.dumps(state.to_dict()))) == state

    def test_gives_a_report_that_goes_through_json(self, device: Device, net: Path) -> None:
        report = benchmark(device, {"a": net}, **QUICK)
        assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
        one = report.measurements["a"]
        assert 0 < one.low_ms <= one.latency_ms <= one.high_ms
        assert 0 <= one.spread < 1
        assert one.origin == self.origin
        assert one.runtime == report.device.runtimes[net.suffix]

    def test_takes_threads(self, device: Device, net: Path) -> None:
        assert benchmark(device, {"a": net}, threads=2, **QUICK).measurements["a"].threads == 2

    @pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
    def test_refuses_a_damaged_file_and_takes_the_next(
        self, device: Device, net: Path, tmp_path: Path, suffix: str
    ) -> None:
        if suffix not in device.describe().runtimes:
            pytest.skip(f"this device has no runtime for {suffix} files")
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(b"this is no model" * 10)
        with pytest.raises(DeviceError, match=rf"broken{suffix}: .*({self.damaged})") as caught:
            benchmark(device, {"good": net, "bad": path}, **QUICK)
        assert "\n" not in str(caught.value)
        benchmark(device, {"good": net}, **QUICK)

    def test_refuses_a_format_it_has_no_runtime_for(self, device: Device, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        path.touch()
        with pytest.raises(DeviceError, match=r"weights\.pth"):
            benchmark(device, {"a": path}, **QUICK)

    def test_cleans_up_as_often_as_one_likes(self, device: Device, net: Path) -> None:
        device.clean_up()
        device.clean_up()
        benchmark(device, {"a": net}, **QUICK)
        device.clean_up()


class RunningDeviceConformance(DeviceConformance):
    damaged = "cannot run it|was ended by SIG"

    def test_predicts_nothing(self, device: Device, net: Path) -> None:
        assert device.predictions({"a": net}, threads=1) is None

    def test_times_rounds_in_any_order(self, device: Device, net: Path) -> None:
        with device.session({"a": net, "b": net}, threads=1, timeout_s=60) as session:
            for name in ("b", "a", "b", "b"):
                one = session.time_round(name, min_runs=4, min_seconds=0.0)
                assert 0 < one.minimum_ms <= one.p50_ms <= one.p90_ms
                assert one.runs >= 4
            assert session.loaded("a").init_ms > 0
            assert session.loaded("a").runtime == device.describe().runtimes[net.suffix]

    def test_runs_at_least_as_long_as_asked(self, device: Device, net: Path) -> None:
        with device.session({"a": net}, threads=1, timeout_s=60) as session:
            one = session.time_round("a", min_runs=1, min_seconds=0.2)
        assert one.runs > 10  # a network of a few microseconds

    def test_measures_every_round(self, device: Device, net: Path) -> None:
        one = benchmark(device, {"a": net}, **QUICK).measurements["a"]
        assert len(one.round_minima_ms) == QUICK["rounds"]
        assert one.runs >= QUICK["rounds"] * QUICK["min_runs"]

    def test_a_session_refuses_a_format_without_a_runtime(self, device: Device, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        path.touch()
        with (
            pytest.raises(DeviceError, match=r"weights\.pth"),
            device.session({"a": path}, threads=1, timeout_s=60),
        ):
            pass

    def test_cleans_up_inside_a_session(self, device: Device, net: Path) -> None:
        with device.session({"a": net}, threads=1, timeout_s=60):
            device.clean_up()
        benchmark(device, {"a": net}, **QUICK)
