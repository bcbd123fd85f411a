"""A phone behind the real adb and the real adbd: what it tells, and what runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from phones import PORT, SERIAL, Phone, benchmark_tool

sys.path.insert(0, str(Path(__file__).parent.parent / "device_profiles"))
from conformance import QUICK, RunningDeviceConformance

from device_profiles.benchmark import benchmark
from device_profiles.devices import adb, open_device
from device_profiles.devices.adb import AdbDevice, AdbRemote
from device_profiles.errors import DeviceError, ProfileError
from device_profiles.profile import write_profile
from device_profiles.runners import bundle
from device_profiles.thermal import Gate


class TestConformance(RunningDeviceConformance):
    origin = "emulated"

    @pytest.fixture
    def net(self, tflite: Path) -> Path:
        return tflite


def test_a_phone_describes_itself(device: AdbDevice) -> None:
    info, state = device.describe(), device.state()
    assert info.title == "mobileprune Test phone (emulated)"
    assert (info.soc, info.os, info.abi, info.cores) == ("qemu", "Android 16", "arm64-v8a", 2)
    assert info.emulated
    assert info.runtimes == {".onnx": "onnxruntime 1.31.1", ".tflite": "ai-edge-litert 2.3.0"}
    assert any("benchmark_model" in hint for hint in info.hints)
    assert (state.temperature_c, state.thermal_status, state.battery_percent) == (31.5, 0, 87.0)
    assert (state.governor, state.power_saver, state.cores) == ("schedutil", False, 2)
    assert state.busy is not None


def test_its_address_alone_gives_a_profile_that_is_read_back(device: AdbDevice, tflite: Path, tmp_path: Path) -> None:
    found = adb.profile_of("adb")
    assert (found.kind, found.address, found.name) == ("adb", SERIAL, "mobileprune-test-phone-emulated")
    assert adb.profile_of(f"adb://{SERIAL}") == found
    write_profile(found, tmp_path / "phone.toml")
    opened = open_device(tmp_path / "phone.toml")
    assert opened.profile == found
    assert isinstance(opened, AdbDevice)
    assert opened.describe().soc == "qemu"


def test_tflite_gives_the_outputs_of_this_machine(device: AdbDevice, tflite: Path, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    x = np.random.RandomState(1).standard_normal((1, 3, 9, 9)).astype(np.float32)
    here = Interpreter(str(tflite))
    here.allocate_tensors()
    here.set_tensor(here.get_input_details()[0]["index"], x)
    here.invoke()
    wanted = here.get_tensor(here.get_output_details()[0]["index"])
    x.tofile(tmp_path / "x.raw")
    (there,) = device.outputs(tflite, tmp_path / "x.raw").values()
    np.testing.assert_allclose(np.frombuffer(there, np.float32), wanted.ravel(), atol=1e-4)
    assert np.ptp(wanted) > 0.01  # or any two outputs would agree


def test_onnx_gives_the_outputs_of_this_machine(device: AdbDevice, tmp_path: Path) -> None:
    path = tmp_path / "two outputs.onnx"
    write_two_outputs(path)
    x = np.random.RandomState(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = dict(zip([one.name for one in session.get_outputs()], session.run(None, {"x": x}), strict=True))
    x.tofile(tmp_path / "x.raw")
    there = device.outputs(path, tmp_path / "x.raw")
    assert [*there] == [*wanted] == ["y", "class"]
    np.testing.assert_allclose(np.frombuffer(there["y"], np.float32), wanted["y"].ravel(), atol=1e-4)
    assert np.frombuffer(there["class"], np.int64).tolist() == wanted["class"].ravel().tolist()


def write_two_outputs(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.RandomState(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["class"], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 1, 1]),
        helper.make_tensor_value_info("class", TensorProto.INT64, ["batch", 1, 1]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    graph = helper.make_graph(nodes, "two", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_outputs_need_inputs_of_the_right_size(device: AdbDevice, tflite: Path, tmp_path: Path) -> None:
    for size in (9 * 9 * 3 * 4 - 1, 9 * 9 * 3 * 4 + 1):
        (tmp_path / "x.raw").write_bytes(b"x" * size)
        with pytest.raises(DeviceError, match=r"in\.raw does not hold what the model's tensors do"):
            device.outputs(tflite, tmp_path / "x.raw")


def test_it_tells_how_much_of_the_graph_xnnpack_took(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    with device.session({"a": tflite}, threads=1, timeout_s=60) as session:
        one = session.loaded("a").delegation
        assert one is not None
        assert one.name == "XNNPACK"
        assert one.nodes is not None
        assert one.share == pytest.approx((one.nodes - 1) / one.nodes, abs=1e-5)
        assert len(phone.models()) == 1  # under a name of ours
        assert phone.models()[0].endswith("/0.tflite")
        assert session.time_round("a", min_runs=1, min_seconds=0).peak_memory_mb > 5  # type: ignore[operator]
    assert phone.models() == []


def test_names_never_reach_a_shell(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    report = benchmark(device, {"a; touch /gotcha": tflite}, **QUICK)
    assert list(report.measurements) == ["a; touch /gotcha"]
    odd = [
        "it's",
        '"two"',
        "$(touch /gotcha)",
        "`touch /gotcha`",
        "; touch /gotcha",
        "a  b",
        "*",
        "\\n",
        "",
        "-n",
        "ä\t",
    ]
    told = device.remote.run(["printf", "[%s]", *odd])
    assert told.stdout.decode() == "".join(f"[{one}]" for one in odd)
    assert device.remote.run(["sh", "-c", "cat; exit 7"], stdin=b"\0\xff\r\n x").status == 7
    assert device.remote.run(["cat"], stdin=b"\0\xff\r\n x").stdout == b"\0\xff\r\n x"
    assert [name for name in phone.written() if "gotcha" in name] == []
    with pytest.raises(ProfileError, match="no serial number"):
        AdbRemote("-e reboot")


def test_a_core_mask_is_kept(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    with device.session({"a": tflite}, threads=1, timeout_s=60, core_mask=0b10):
        assert phone.wait_for_runner().cpu_affinity() == [1]
    with (
        pytest.raises(DeviceError, match="core mask 0x800000000000 names core 47, which is not there"),
        device.session({"a": tflite}, threads=1, timeout_s=60, core_mask=1 << 47),
    ):
        pass


def test_the_phones_that_are_connected_and_what_stands_in_the_way(device: AdbDevice, phone: Phone) -> None:
    other, locked, silent = PORT + 2, PORT + 4, PORT + 6
    serials = [phone.start(other), phone.start_closed(locked, state="unauthorized")]
    serials.append(phone.start_closed(silent, state="offline"))
    try:
        listed = {one.serial: one for one in adb.connected()}
        assert [*listed] == [SERIAL, *serials]
        assert [one.state for one in listed.values()] == ["device", "device", "unauthorized", "offline"]
        assert listed[SERIAL].obstacles == ()
        assert listed[serials[0]].info is not None
        assert "allow USB debugging" in listed[serials[1]].obstacles[0]
        assert "plug it in again" in listed[serials[2]].obstacles[0]
        with pytest.raises(DeviceError, match=rf"4 phones are connected, so say which .* adb://{SERIAL} and"):
            adb.only_serial()
        for serial, words in ((serials[1], "is unauthorized: unlock it"), (serials[2], "is offline: unplug it")):
            with pytest.raises(DeviceError, match=f"the phone {serial} {words}"):
                AdbDevice(replace(device.profile, address=serial)).describe()
    finally:
        for port in (other, locked, silent):
            phone.stop(port)
    assert adb.only_serial() == SERIAL


def test_a_phone_that_is_hot_or_saves_power_is_not_measured(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    never = Gate(cool_down_s=0)
    with phone.telling("dumpsys/thermalservice", "Thermal Status: 0", "Thermal Status: 3"):
        (listed,) = adb.connected()
        assert "reports the thermal status 3 (0 is cool): let it cool" in listed.obstacles[0]
        with pytest.raises(DeviceError, match="phone reports the thermal status 3"):
            benchmark(device, {"a": tflite}, gate=never, **QUICK)
    with phone.telling("settings/global/low_power", "0", "1"):
        (listed,) = adb.connected()
        assert "battery saver is on" in listed.obstacles[0]
        with pytest.raises(DeviceError, match="battery saver"):
            benchmark(device, {"a": tflite}, gate=never, **QUICK)
    assert phone.models() == []


def test_a_phone_of_another_kind_of_processor(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    with phone.telling("properties", "arm64-v8a", "x86_64"):
        (listed,) = adb.connected()
        assert "it runs x86_64, and files can be timed on arm64-v8a only" in listed.obstacles[0]
        with pytest.raises(DeviceError, match=r"no runtime for '\.tflite'|x86_64") as caught:
            benchmark(AdbDevice(device.profile), {"a": tflite}, **QUICK)
        assert "\n" not in str(caught.value)


def test_benchmark_model_is_preferred_where_the_user_has_it(
    device: AdbDevice, phone: Phone, tflite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that prints what Google's does, and hangs when it is asked for the GPU."""
    tool = benchmark_tool(tmp_path)
    monkeypatch.setenv("MOBILEPRUNE_BENCHMARK_MODEL", str(tool))
    theirs = AdbDevice(device.profile)
    info = theirs.describe()
    assert info.runtimes[".tflite"] == "benchmark_model"
    assert info.delegates == ("cpu", "gpu", "nnapi")
    one = benchmark(theirs, {"a": tflite}, **QUICK).measurements["a"]
    assert (one.latency_ms, one.init_ms, one.peak_memory_mb) == (1.0, 2.5, 12.5)
    assert one.delegation is not None
    assert one.delegation.share == pytest.approx(5 / 6)
    began = time.monotonic()
    with (
        pytest.raises(DeviceError, match=r"net.*no answer within 2 s, so the run counts as hanging"),
        theirs.session({"a": tflite}, threads=1, timeout_s=2, delegate="gpu"),
    ):
        pass
    assert time.monotonic() - began < 60
    assert phone.runners() == []
    theirs.clean_up()
    monkeypatch.setenv("MOBILEPRUNE_BENCHMARK_MODEL", sys.executable)
    with pytest.raises(DeviceError, match="no program for 64-bit ARM"):
        AdbDevice(device.profile).describe()


def test_the_runner_answers_what_it_cannot_do(device: AdbDevice, tflite: Path, tmp_path: Path) -> None:
    with device.session({"a": tflite}, threads=1, timeout_s=60):  # the bundle is there now
        runner = device.runner(".tflite", "cpu")
        assert isinstance(runner, bundle.BundleRunner)
        client = device.remote.open(runner.command(device._folders[-1]), "net")
        for request, words in [
            ({"do": "round", "min_runs": 1}, "no file is loaded yet"),
            ({"do": "run", "input": "x", "output": "y"}, "no file is loaded yet"),
            ({"do": "dance"}, "unknown request 'dance'"),
            ({"path": 'odd "do": "load"'}, "does not say what to do"),
            ({"do": "load", "path": "weights.pth"}, "only .onnx and .tflite files can be run"),
            ({"do": "load", "path": "/no/such.tflite"}, "ai-edge-litert 2.3.0 cannot run it: "),
        ]:
            with pytest.raises(DeviceError, match=words):
                client.ask(request, timeout_s=30)
        client.close()


def test_nothing_outside_can_reach_the_phone(phone: Phone) -> None:
    inside = phone.enter("ip", "-oneline", "link", stdout=subprocess.PIPE, text=True)
    links, _ = inside.communicate()
    assert [line.split()[1] for line in links.splitlines()] == ["lo:"]


def test_the_manifest_says_what_the_bundle_holds() -> None:
    told = json.loads((bundle.folder() / bundle.MANIFEST).read_text())
    assert set(told["packages"]) == {"libc6", "libgcc-s1", "libstdc++6"}
    assert set(told["files"]) | {bundle.MANIFEST} == set(os.listdir(bundle.folder()))  # noqa: PTH208
