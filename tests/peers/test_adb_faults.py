"""Every way in which a phone can fail, on the real adb and the real adbd."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from phones import PORT, SERIAL, Phone

sys.path.insert(0, str(Path(__file__).parent.parent / "device_profiles"))
from conformance import QUICK

from device_profiles.benchmark import benchmark
from device_profiles.devices import adb
from device_profiles.devices.adb import AdbDevice
from device_profiles.errors import DeviceError
from device_profiles.profile import DeviceProfile, write_profile
from device_profiles.runners import bundle

OURS = "/data/local/tmp/mobileprune"


def test_without_a_bundle_it_says_how_to_make_one(
    device: AdbDevice, tflite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path))
    (listed,) = adb.connected()
    assert "python tools/build_bundle.py makes it" in listed.obstacles[0]
    with (
        pytest.raises(DeviceError, match=r"no runtime for '\.tflite' files; .*build_bundle\.py"),
        AdbDevice(device.profile).session({"a": tflite}, threads=1, timeout_s=60),
    ):
        pass


def test_a_damaged_bundle_is_not_pushed(
    device: AdbDevice, tflite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle.folder(), tmp_path / "bundles" / "arm64")
    with (tmp_path / "bundles" / "arm64" / "libc.so.6").open("r+b") as file:
        file.write(b"\0")
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path))
    damaged = AdbDevice(device.profile)
    with (
        pytest.raises(DeviceError, match=r"libc\.so\.6: a file of the bundle is missing or damaged"),
        damaged.session({"a": tflite}, threads=1, timeout_s=60),
    ):
        pass
    damaged.clean_up()


def test_a_file_that_arrives_damaged(device: AdbDevice, tflite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send = device.remote.send

    def spoil(local: Path, remote: str, *, timeout_s: float) -> None:
        send(local, remote, timeout_s=timeout_s)
        if remote.endswith(".tflite"):
            device.remote.run(["sh", "-c", f"printf x >> {remote}"])

    monkeypatch.setattr(device.remote, "send", spoil)
    with (
        pytest.raises(DeviceError, match=r"net.*arrived damaged on the phone"),
        device.session({"a": tflite}, threads=1, timeout_s=60),
    ):
        pass


def after_the_start(phone: Phone, act: Callable[[psutil.Process], None]) -> threading.Thread:
    """Acts on the runner a second after it came up."""

    def wait() -> None:
        runner = phone.wait_for_runner()
        time.sleep(1)
        act(runner)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_adbd_is_killed_in_the_middle_of_a_round_and_comes_back(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    killer = after_the_start(phone, lambda _: phone.stop(PORT))
    with pytest.raises(DeviceError, match=rf"net.*: (the connection to )?the phone {SERIAL} (broke|is)") as caught:
        benchmark(device, {"a": tflite}, rounds=2, min_runs=1, min_seconds=60)
    killer.join()
    assert "\n" not in str(caught.value)
    phone.start(PORT)
    assert benchmark(device, {"a": tflite}, **QUICK).measurements["a"].runs >= 6
    assert phone.models() != []  # of the measurement that broke off: the phone was gone by then
    device.clean_up()
    assert phone.models() == []


def test_a_phone_that_goes_between_push_and_run(
    device: AdbDevice, phone: Phone, tflite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = device.remote.push_all

    def push_and_go(files: Any, **options: Any) -> None:
        push(files, **options)
        if any(name.endswith(".tflite") for name in files):
            phone.stop(PORT)

    monkeypatch.setattr(device.remote, "push_all", push_and_go)
    with (
        pytest.raises(DeviceError, match=rf"the phone {SERIAL} is not connected: plug it in"),
        device.session({"a": tflite}, threads=1, timeout_s=60),
    ):
        pass
    with pytest.raises(DeviceError, match=rf"the phone {SERIAL} is not connected: plug it in"):
        device.describe()
    with pytest.raises(DeviceError, match="no phone is connected"):
        adb.only_serial()
    phone.start(PORT)
    device.clean_up()
    assert phone.models() == []


def test_a_full_phone(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    full = AdbDevice(device.profile)
    phone.mount("/data/local/tmp", megabytes=1)
    try:
        with pytest.raises(DeviceError, match=rf"has no space left in {OURS} .*free some") as caught:
            benchmark(full, {"a": tflite}, **QUICK)
        assert "\n" not in str(caught.value)
        full.clean_up()
        assert phone.call("shell", "ls -A /data/local/tmp").strip() == ""
    finally:
        phone.unmount("/data/local/tmp")


def test_a_run_that_hangs_is_ended_there_too(
    device: AdbDevice, phone: Phone, tflite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(DeviceError, match=r"net.*no answer within 2.1 s, so the run counts as hanging"),
        device.session({"a": tflite}, threads=1, timeout_s=100) as session,
    ):
        monkeypatch.setattr(device._running[-1], "_timeout_s", 2)  # loading may take long here
        (runner,) = phone.runners()
        runner.send_signal(signal.SIGSTOP)
        session.time_round("a", min_runs=1, min_seconds=0.1)
    phone.wait_for_no_runner()
    assert phone.models() == []


def test_a_runner_that_crashes(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    killer = after_the_start(phone, lambda runner: runner.send_signal(signal.SIGKILL))
    with pytest.raises(DeviceError, match=r"net.*the worker process that ran it was ended by SIGKILL"):
        benchmark(device, {"a": tflite}, rounds=2, min_runs=1, min_seconds=60)
    killer.join()
    assert phone.models() == []


def test_answers_that_are_cut_short(device: AdbDevice) -> None:
    half = device.remote.open(["sh", "-c", "read line; printf '{\"times_us\": [1.0, 2'"], "net.onnx")
    with pytest.raises(DeviceError, match=r"net\.onnx: the answer was cut short or is no JSON"):
        half.ask({"do": "round"}, timeout_s=20)
    gone = device.remote.open(["sh", "-c", "read line; printf '{\"times_us\": [1.0, 2'; kill -9 $PPID"], "net.onnx")
    with pytest.raises(DeviceError, match=rf"net\.onnx: the connection to the phone {SERIAL} broke off"):
        gone.ask({"do": "round"}, timeout_s=20)
    # A shell that dies takes the exit status along: what it said so far is not believed.
    with pytest.raises(DeviceError, match="broke off"):
        device.remote.script("printf half; kill -9 $$")


def test_an_interrupted_measurement_leaves_nothing(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(device, {"a": tflite}, **QUICK, progress=interrupt)
    assert phone.models() == []


def test_a_killed_caller_leaves_no_process_and_its_files_go_with_the_next_measurement(
    device: AdbDevice, phone: Phone, tflite: Path, tmp_path: Path
) -> None:
    device.clean_up()
    write_profile(device.profile, tmp_path / "phone.toml")
    code = (
        "import sys; from pathlib import Path; from device_profiles.devices import open_device\n"
        "device = open_device(Path(sys.argv[1]))\n"
        "with device.session({'a': Path(sys.argv[2])}, threads=1, timeout_s=60): print('up', flush=True); input()"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "phone.toml"), str(tflite)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"up\n"
    phone.wait_for_runner()
    caller.kill()
    caller.communicate()
    phone.wait_for_no_runner()
    (left,) = phone.call("shell", f"ls {OURS}").split()
    # Of another machine nobody knows whether its process lives: what it left goes after a day.
    days = {"old": "2 days ago", "young": "20 hours ago"}
    phone.call("shell", "; ".join(f"mkdir {OURS}/{name}; touch -d '{day}' {OURS}/{name}" for name, day in days.items()))
    benchmark(device, {"a": tflite}, **QUICK)
    assert {"young", left, "old"} & {*phone.call("shell", f"ls {OURS}").split()} == {"young"}
    phone.call("shell", f"rm -r {OURS}/young")


def test_without_adb(profile: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEPRUNE_ADB", "/no/such/adb -H somewhere")
    with pytest.raises(DeviceError, match="the program '/no/such/adb' is not found: install adb"):
        adb.connected()
    with pytest.raises(DeviceError, match="is not found"):
        AdbDevice(profile).describe()
