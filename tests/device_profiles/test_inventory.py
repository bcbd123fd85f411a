"""What is listed: connected or not, usable or not, each with its remedy and nothing raised."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from device_profiles import inventory as module
from device_profiles.devices.adb import Connected
from device_profiles.devices.base import DeviceInfo, DeviceState
from device_profiles.errors import DeviceError
from device_profiles.inventory import Known, inventory
from device_profiles.profile import catalog, load_profile, save_profile

PHONE = DeviceInfo(
    "phone",
    "adb",
    "Google Pixel 3a",
    "sdm670",
    8,
    "Android 12",
    {".tflite": "litert 2"},
    delegates=("cpu", "gpu"),
    abi="arm64-v8a",
    hints=("the bundle is missing: make it",),
)


@pytest.fixture(autouse=True)
def nothing_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEPRUNE_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("MOBILEPRUNE_SSH", "")
    monkeypatch.setattr(module.adb, "connected", list)


def listed(*hosts: str) -> dict[str, Known]:
    return {one.name: one for one in inventory(hosts)}


def test_the_host_and_the_whole_catalog_are_listed() -> None:
    found = listed()
    assert set(catalog()) <= set(found)
    host, pixel = found["host"], found["pixel"]
    assert (host.place, host.latency, host.typical_error) == ("host", "measured", None)
    assert host.runtimes[".onnx"].startswith("onnxruntime ")
    assert (pixel.place, pixel.latency, pixel.threads, pixel.thread_choices) == ("catalog", "predicted", 1, (1, 2))
    assert pixel.typical_error is not None
    assert pixel.guaranteed_error is not None
    assert 0 < pixel.typical_error <= pixel.guaranteed_error
    assert found["adb"].latency == "none"
    assert "plug one in" in found["adb"].obstacles[0]
    assert json.loads(json.dumps([one.to_dict() for one in found.values()]))[0]["name"] == "adb"


def test_phones_come_with_what_they_are_and_what_stands_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    phones = [
        Connected("A", "device", PHONE, DeviceState(cores=8), ("its battery saver is on: switch it off",)),
        Connected("B", "unauthorized", obstacles=("it is unauthorized: unlock it",)),
        Connected("C", "device", replace(PHONE, emulated=True, hints=())),
        Connected("D", "device", replace(PHONE, runtimes={}, hints=("it runs x86: no",))),
    ]
    monkeypatch.setattr(module.adb, "connected", lambda: phones)
    found = listed()
    good = found["adb://A"]
    assert (good.title, good.soc, good.os, good.abi, good.cores) == (
        "Google Pixel 3a",
        "sdm670",
        "Android 12",
        "arm64-v8a",
        8,
    )
    assert (good.runtimes, good.delegates) == ({".tflite": "litert 2"}, ("cpu", "gpu"))
    assert good.obstacles == ("its battery saver is on: switch it off", "the bundle is missing: make it")
    assert [found[f"adb://{one}"].latency for one in "ABCD"] == ["measured", "none", "emulated", "none"]
    assert found["adb://B"].obstacles == ("it is unauthorized: unlock it",)
    assert "adb" not in found


def test_a_profile_whose_phone_is_connected_is_that_phone(monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(replace(load_profile("pixel-3a"), name="mine", kind="adb", title="Google Pixel 3a", latency=()))
    away = listed()
    assert [away[name].latency for name in ("pixel", "pixel-3a", "mine")] == ["predicted", "predicted", "none"]
    assert "no Google Pixel 3a is connected" in away["mine"].obstacles[0]
    phones = [Connected("A", "device", PHONE)]
    monkeypatch.setattr(module.adb, "connected", lambda: phones)
    there = listed()
    for name in ("pixel", "pixel-3a", "mine"):
        one = there[name]
        assert (one.place, one.latency, one.runtimes, one.typical_error) == (
            "connected",
            "measured",
            {".tflite": "litert 2"},
            None,
        )
    assert (there["pixel-4"].place, there["pixel-4"].latency) == ("catalog", "predicted")
    phones.append(Connected("B", "device", PHONE))
    several = listed()["pixel"]
    assert several.latency == "none"
    assert several.obstacles == ("2 phones are connected that it may mean: name adb://A or adb://B",)


def test_without_adb_the_list_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[Connected]:
        raise DeviceError("the program 'adb' is not found: install adb")

    monkeypatch.setattr(module.adb, "connected", missing)
    assert listed()["adb"].obstacles == ("the program 'adb' is not found: install adb",)


def test_boards_that_cannot_be_asked_are_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEPRUNE_SSH", "ssh://$(id) ssh://-x")
    found = listed("ssh://nowhere.invalid?python=/a/b")
    assert "cannot be reached" in found["ssh://nowhere.invalid"].obstacles[0]
    assert "strange host" in found["ssh://$(id)"].obstacles[0]
    assert "strange host" in found["ssh://-x"].obstacles[0]


def test_boards_may_be_named_as_ssh_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEPRUNE_SSH", "nowhere.invalid:22?python=/a://b ssh://pi@nowhere.invalid http://board")
    found = listed("pi@nowhere.invalid")
    for name in ("ssh://pi@nowhere.invalid", "ssh://nowhere.invalid:22"):
        assert "cannot be reached" in found[name].obstacles[0]
    assert "is no address; an ssh device is written ssh://" in found["http://board"].obstacles[0]
    assert sum("invalid" in name for name in found) == 2


def test_a_measured_board_is_listed_with_the_reason_why_it_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_profile(replace(load_profile("pixel"), name="mine", title="desk", kind="ssh", address="ssh://pi@desk"))
    ssh = tmp_path / "ssh"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for said, latency, title in (
        ("ssh: connect to host desk port 22: Connection refused", "predicted", "desk"),
        ("pi@desk: Permission denied (publickey).", "none", "a board that cannot be asked"),
    ):
        ssh.write_text(f"#!/bin/sh\necho '{said}' >&2; exit 255\n")
        ssh.chmod(0o755)
        found = listed()["mine"]
        assert (found.place, found.latency, found.title) == ("own", latency, title)
        assert said in found.obstacles[0]


def test_own_profiles_are_listed_damaged_or_not(tmp_path: Path) -> None:
    save_profile(replace(load_profile("pixel"), name="mine"))
    (tmp_path / "profiles" / "broken.toml").write_text("name = ")
    found = listed()
    assert (found["mine"].place, found["mine"].latency) == ("own", "predicted")
    assert "not valid TOML" in found["broken"].obstacles[0]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (DeviceState(cores=2, busy=0.9), "other programs keep 90% of it busy"),
        (DeviceState(cores=2, throttled=True), "let it cool"),
        (DeviceState(cores=2, power_saver=True), "battery saver"),
    ],
)
def test_what_stands_in_the_way_of_the_host(monkeypatch: pytest.MonkeyPatch, state: DeviceState, said: str) -> None:
    from device_profiles.devices.host import HostDevice

    monkeypatch.setattr(HostDevice, "state", lambda self: state)
    assert said in listed()["host"].obstacles[0]
