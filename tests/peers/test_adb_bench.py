"""`mobileprune bench` on a phone, from the command line: sustained, on chosen cores, on what else than the CPU."""

from __future__ import annotations

import re
from pathlib import Path

from commands import QUICK, call_json, fail, start, words
from phones import SERIAL, Phone, benchmark_tool

from device_profiles.devices.adb import AdbDevice


def test_files_are_timed_on_chosen_cores(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    report = call_json("bench", tflite, "--device", "adb", "--core-mask", "0x2", "--threads", "2", *QUICK)
    assert (report["core_mask"], report["device"]["emulated"], report["after"]["battery_percent"]) == (2, True, 87)
    (one,) = report["measurements"].values()
    assert (one["origin"], one["threads"], one["delegation"]["name"]) == ("emulated", 2, "XNNPACK")
    assert one["init_ms"] > 0
    assert one["peak_memory_mb"] > 5
    shown = words("bench", tflite, "--device", f"adb://{SERIAL}", "--core-mask", "1", *QUICK)
    assert "1 thread on the cores 1, emulated" in shown
    assert "before: 32 °C, thermal status 0" in shown
    for mask, core in (("10", 4), ("1" + 25 * "0", 100)):
        absent = start("bench", tflite, "--device", "adb", "--core-mask", mask)
        assert f"names core {core}, which is not there" in fail(absent)
    assert phone.models() == []


def test_a_file_is_run_without_a_pause(device: AdbDevice, phone: Phone, tflite: Path) -> None:
    shown = words("bench", tflite, "--device", "adb", "--sustained", "4s")
    assert re.search(r" ms \([-+]\d+%\) over \d+ s", shown)
    assert "1 thread, emulated" in shown
    assert "before: 32 °C" in shown
    assert "3 s are too short" in fail(start("bench", tflite, "--device", "adb", "--sustained", "3s"))
    assert phone.models() == []


def test_what_else_than_the_cpu_a_phone_has(device: AdbDevice, phone: Phone, tflite: Path, tmp_path: Path) -> None:
    on_nnapi = ["bench", tflite, "--device", "adb", "--delegate", "nnapi"]
    message = fail(start(*on_nnapi))
    assert "on its cpu only, not on nnapi" in message
    assert "--benchmark-binary" in message
    binary = ["--benchmark-binary", benchmark_tool(tmp_path)]
    report = call_json(*on_nnapi, *binary, "--core-mask", "2", *QUICK)
    (one,) = report["measurements"].values()
    assert (report["delegate"], one["delegation"]["name"], one["delegation"]["nodes"]) == ("nnapi", "NNAPI", 6)
    shown = words(*on_nnapi, *binary, *QUICK)
    assert "NNAPI, 5 of 6 nodes" in shown
    assert "emulated" in shown
    assert "NNAPI, 5 of 6 nodes" in words(*on_nnapi, *binary, "--sustained", "4s")
    assert "benchmark_model cannot run it: taskset" in fail(start(*on_nnapi, *binary, "--core-mask", "10"))
    assert phone.models() == []
