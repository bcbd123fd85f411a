"""Profiles measured on a made-up device that follows a known law, shared, read back, and predicted from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import helper
from scripted import Script, ScriptedDevice, steady

from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from device_profiles.devices import resolve as module
from device_profiles.devices.adb import Connected, connected
from device_profiles.devices.base import DeviceInfo
from device_profiles.devices.resolve import resolve
from device_profiles.errors import DeviceError, ProfileError
from device_profiles.operators import count
from device_profiles.predict import predict
from device_profiles.profile import (
    DeviceProfile,
    from_table,
    load_profile,
    read_profile,
    save_profile,
    to_table,
    user_profiles,
    write_profile,
)
from device_profiles.profiling import calibrate_profile, profile_device

PIXEL = load_profile("pixel")
PHONE = DeviceInfo(
    "phone", "adb", "Google Pixel 3a", "sdm670", 8, "Android 12", {".tflite": "litert 2"}, abi="arm64-v8a"
)


@pytest.fixture(autouse=True)
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of profiles, empty, and no phone."""
    folder = tmp_path / "profiles"
    monkeypatch.setenv("MOBILEPRUNE_PROFILES", str(folder))
    monkeypatch.setattr(module.adb, "connected", list)
    return folder


@pytest.fixture
def networks(save_onnx: Callable[..., Path]) -> dict[str, Path]:
    """Six networks for 224 pixels: a stem, a depthwise and a 1x1 convolution, of several widths and sizes."""

    def network(width: int, side: int) -> Path:
        nodes = [
            helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "depth"], ["c"], pads=[1] * 4, group=width),
            helper.make_node("Conv", ["c", "point"], ["y"]),
        ]
        weights = {"stem": (width, 3, 3, 3), "depth": (width, 1, 3, 3), "point": (2 * width, width, 1, 1)}
        shapes = ([1, 3, side, side], [1, 2 * width, side, side])
        return save_onnx(nodes, *shapes, weights, name=f"net-{width}-{side}.onnx")

    return {f"{width}@{side}": network(width, side) for width in (16, 32, 64) for side in (112, 192)}


def follows(profile: DeviceProfile, files: dict[str, Path], factor: float = 1.0) -> Script:
    """Times by the profile's own model; single convolutions take 1 ms per channel."""
    model = profile.latency[0]
    ms = {name: factor * predict(count(path), model).latency_ms for name, path in files.items()}
    return lambda name, number: [ms[name] if name in ms else float(name.rpartition("-")[2])]


def test_a_profile_is_measured_written_and_read_back(networks: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    profile = profile_device(
        ScriptedDevice(follows(PIXEL, networks)),
        networks,
        name="my-phone",
        rounds=3,
        progress=lambda *one: seen.append(one),
    )
    path = tmp_path / "mine.toml"
    write_profile(profile, path)
    assert read_profile(path) == profile
    assert profile.channel_steps is not None
    assert set(profile.channel_steps) == {"dense", "pointwise", "depthwise"}
    assert profile.channel_step == max(profile.channel_steps.values())
    assert {what for what, _, _ in seen} == {"layers", "files"}
    for words in ("Measured on a script (none", "Channel step", "16@112", "each left out in turn was off by"):
        assert words in profile.provenance
    (model,) = profile.latency
    assert model.rows == 6
    assert model.typical_error < 0.05
    for file in networks.values():  # the law is found again
        assert predict(count(file), model).latency_ms == pytest.approx(
            predict(count(file), PIXEL.latency[0]).latency_ms, rel=0.05
        )


def test_few_files_make_a_profile_without_a_model(networks: dict[str, Path]) -> None:
    two = dict(list(networks.items())[:2])
    profile = profile_device(ScriptedDevice(follows(PIXEL, two)), two, name="mine", rounds=2)
    assert profile.latency == ()
    assert "There is no latency model: 2 of 4 files" in profile.provenance
    assert (
        "no files were measured"
        in profile_device(ScriptedDevice(follows(PIXEL, {})), {}, name="m", rounds=2).provenance
    )


def test_what_is_not_there_is_not_profiled(networks: dict[str, Path]) -> None:
    with pytest.raises(DeviceError, match="pixel is predicted, so nothing can be measured on it"):
        profile_device(open_device("pixel"), networks, name="mine")
    emulated = ScriptedDevice(steady)
    emulated.info = replace(emulated.info, emulated=True)
    with pytest.raises(DeviceError, match=r"is emulated: .* make no profile"):
        profile_device(emulated, networks, name="mine")
    with pytest.raises(DeviceError, match="is emulated"):
        calibrate_profile(PIXEL, emulated, networks, name="mine")


def test_a_shipped_profile_is_calibrated_by_anchors(networks: dict[str, Path], tmp_path: Path) -> None:
    anchors = {name: networks[name] for name in ("16@192", "64@192")}
    profile = calibrate_profile(PIXEL, ScriptedDevice(follows(PIXEL, anchors, 1.7)), anchors, name="mine", rounds=2)
    for path in networks.values():
        was, now = (predict(count(path), one.latency[0]).latency_ms for one in (PIXEL, profile))
        assert now == pytest.approx(1.7 * was)
    assert [model.threads for model in profile.latency] == [1]
    assert profile.kind == "predicted"
    assert profile.latency[0].runtime == "scripted 1.0"
    assert profile.latency[0].typical_error == PIXEL.latency[0].typical_error
    assert "The profile pixel rescaled to a script" in profile.provenance
    assert "times 1.7" in profile.provenance
    write_profile(profile, tmp_path / "mine.toml")
    assert read_profile(tmp_path / "mine.toml") == profile


def test_what_cannot_be_calibrated(networks: dict[str, Path]) -> None:
    device = ScriptedDevice(follows(PIXEL, networks))
    with pytest.raises(DeviceError, match="nothing to calibrate for 3"):
        calibrate_profile(PIXEL, device, networks, name="mine", threads=3)
    with pytest.raises(DeviceError, match="predicts for no threads"):
        calibrate_profile(load_profile("host"), device, networks, name="mine")
    with pytest.raises(DeviceError, match="two measured networks or more"):
        calibrate_profile(PIXEL, device, {"16@112": networks["16@112"]}, name="mine", rounds=2)


# ---- the user's own profiles


def test_a_saved_profile_is_found_under_its_name(own_profiles: Path) -> None:
    assert user_profiles() == ()
    profile = replace(load_profile("host"), name="my-board", channel_steps={"dense": 8, "depthwise": 1})
    path = save_profile(profile)
    assert path == own_profiles / "my-board.toml"
    assert user_profiles() == ("my-board",)
    assert load_profile("my-board") == profile
    with pytest.raises(ProfileError, match=r"did you mean my-board.*catalog has: .*my-board"):
        load_profile("my-bord")
    with pytest.raises(ProfileError, match="'pixel' is one of the catalog's"):
        save_profile(replace(profile, name="pixel"))


def test_a_folder_that_cannot_be_made(own_profiles: Path) -> None:
    own_profiles.touch()
    with pytest.raises(ProfileError, match="cannot be"):
        save_profile(replace(load_profile("host"), name="mine"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("[channel_steps]\ndense = 0", "dense = 0 must be from 1 to 256"),
        ("[channel_steps]\ndense = true", "dense = True must be a whole number"),
        ("[channel_steps]\nconv = 8", "has 'conv', which is no kind of convolution with a step"),
        ("[channel_steps]", "must be a table with a number"),
        ("channel_steps = 8", "channel_steps = 8 must be a table"),
        ('address = "-oProxyCommand=id"', "does not start with '-'"),
        ('address = "ssh://a\\nb"', "must be a line of text"),
        ("address = 5", "must be a line of text"),
        ('kind = "sh"', "is not valid TOML"),  # twice
    ],
)
def test_hostile_additions_are_refused(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    write_profile(load_profile("host"), path)
    path.write_text(f"{path.read_text()}\n{lines}\n")
    with pytest.raises(ProfileError, match=said):
        read_profile(path)


def test_a_hostile_address_reaches_no_program(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    write_profile(replace(load_profile("host"), kind="ssh", address="ssh://$(touch gotcha)"), path)
    with pytest.raises(ProfileError, match="strange host"):
        open_device(path)
    write_profile(replace(load_profile("host"), kind="ssh"), path)
    with pytest.raises(ProfileError, match="has no address"):
        open_device(path)


# ---- which device is meant


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Phones that adb lists from now on."""

    def plug(*phones: Connected) -> None:
        monkeypatch.setattr(module.adb, "connected", lambda: list(phones))
        by_serial = {one.serial: one.info for one in phones if one.info}

        def profile_of(text: str) -> DeviceProfile:
            serial = text.removeprefix("adb://")
            host = load_profile("host")
            return replace(
                host,
                name="phone",
                title=by_serial[serial].title,
                kind="adb",
                runtime="litert",
                format="tflite",
                address=serial,
            )

        monkeypatch.setattr(module.adb, "profile_of", profile_of)

    return plug


def test_without_a_phone_a_pixel_is_predicted() -> None:
    assert resolve("pixel") == PIXEL
    assert open_device("pixel").profile.kind == "predicted"


@pytest.mark.parametrize(
    ("name", "title", "is_meant"),
    [
        ("pixel", "Google Pixel 3a", True),
        ("pixel", "Google Pixel 9 Pro", True),
        ("pixel", "Samsung SM-G960F", False),
        ("pixel-3a", "Google Pixel 3a", True),
        ("pixel-3", "Google Pixel 3a", False),
        ("pixel-1", "Google Pixel", True),
        ("raspberry-pi-4", "Google Pixel 3a", False),
    ],
)
def test_a_connected_phone_is_taken_where_it_is_meant(
    plug_in: Callable[..., None], name: str, title: str, is_meant: bool
) -> None:
    plug_in(Connected("8A1X", "device", replace(PHONE, title=title)))
    found = resolve(name)
    shipped = load_profile(name)
    assert found.kind == ("adb" if is_meant else "predicted")
    if is_meant:
        assert (found.address, found.threads) == ("8A1X", shipped.threads)
        assert f"those of the profile {name}" in found.provenance
    assert from_table(to_table(found)) == found  # what a run keeps


def test_several_phones_that_may_be_meant(plug_in: Callable[..., None]) -> None:
    plug_in(Connected("A", "device", PHONE), Connected("B", "device", replace(PHONE, title="Google Pixel 4")))
    with pytest.raises(
        DeviceError, match="2 phones are connected that pixel may mean; say which one: adb://A and adb://B"
    ):
        resolve("pixel")
    assert resolve("pixel-4").address == "B"


@pytest.mark.parametrize("state", ["unauthorized", "offline", "no permissions", "device"])
def test_a_phone_that_cannot_be_asked_is_no_prediction(plug_in: Callable[..., None], state: str) -> None:
    plug_in(Connected("A", state, obstacles=(f"it is {state}: mend it",)))
    with pytest.raises(DeviceError, match=rf"the phone A cannot be asked what it is: it is {state}: mend it, or"):
        resolve("pixel")
    assert resolve("host").kind == "host"


def test_an_emulated_phone_is_never_taken_for_a_pixel(plug_in: Callable[..., None]) -> None:
    plug_in(Connected("A", "device", replace(PHONE, emulated=True)))
    assert resolve("pixel") == PIXEL


def test_a_measured_profile_predicts_where_its_phone_is_not_connected(
    plug_in: Callable[..., None], networks: dict[str, Path], tmp_path: Path
) -> None:
    own = replace(PIXEL, name="mine", title="Google Pixel 3a", kind="adb")
    path = tmp_path / "mine.toml"
    write_profile(own, path)
    assert resolve(path).kind == "predicted"
    assert resolve(str(path)).title == "Google Pixel 3a (predicted)"
    assert resolve(path).unreached == "no Google Pixel 3a is connected"
    assert benchmark(open_device(path), {"a": networks["32@112"]}).measurements["a"].origin == "predicted"
    plug_in(Connected("8A1X", "device", PHONE))
    assert resolve(path) == replace(own, address="8A1X")
    plug_in(Connected("8A1X", "device", replace(PHONE, title="Google Pixel 4")))
    assert resolve(path).kind == "predicted"
    write_profile(replace(own, latency=()), path)
    with pytest.raises(DeviceError, match="no Google Pixel 3a is connected"):
        resolve(path)


@pytest.fixture
def adb_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A program in place of adb, given as lines of shell."""

    def stand_in(script: str) -> None:
        monkeypatch.setattr(module.adb, "connected", connected)
        monkeypatch.setenv("MOBILEPRUNE_ADB", str(program(tmp_path / "adb", script)))

    return stand_in


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_without_adb_a_pixel_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.adb, "connected", connected)
    assert resolve("pixel") == PIXEL


def test_an_adb_that_does_not_answer_is_no_prediction(adb_that: Callable[[str], None]) -> None:
    adb_that("echo cannot connect to daemon >&2; exit 1")
    with pytest.raises(DeviceError, match="adb cannot list the phones: cannot connect to daemon"):
        resolve("pixel")


@pytest.mark.parametrize(("state", "away"), [("", True), ("8A1X\tunauthorized", False), ("8A1X\toffline", False)])
def test_a_measured_phone_that_is_there_but_cannot_be_asked_is_no_prediction(
    adb_that: Callable[[str], None], tmp_path: Path, state: str, away: bool
) -> None:
    adb_that(f"case $1 in devices) printf 'List\\n{state}\\n';; *) echo 'error: device' >&2; exit 1;; esac")
    write_profile(replace(PIXEL, name="mine", kind="adb", address="8A1X"), tmp_path / "mine.toml")
    if away:
        assert "the phone 8A1X is not connected: plug it in" in str(resolve(tmp_path / "mine.toml").unreached)
    else:
        with pytest.raises(DeviceError, match=f"the phone 8A1X is {state.split()[1]}: "):
            resolve(tmp_path / "mine.toml")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The profile of a measured board, and an ssh in place of the real one that fails with these words."""

    def fails(said: str) -> Path:
        (tmp_path / "bin").mkdir()
        program(tmp_path / "bin" / "ssh", f"echo '{said}' >&2; exit 255")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        write_profile(replace(PIXEL, name="mine", kind="ssh", address="ssh://pi@desk"), tmp_path / "mine.toml")
        return tmp_path / "mine.toml"

    return fails


@pytest.mark.parametrize("said", ["Connection refused", "Could not resolve hostname desk", "Network is unreachable"])
def test_a_measured_board_that_cannot_be_reached_is_predicted_with_the_reason(
    board: Callable[[str], Path], networks: dict[str, Path], said: str
) -> None:
    found = resolve(board(f"ssh: connect to host desk port 22: {said}"))
    assert found.kind == "predicted"
    assert from_table(to_table(found)) == found
    report = benchmark(open_device(found), {"a": networks["32@112"]})
    assert (
        f"not measured (the board pi@desk cannot be reached: ssh: connect to host desk port 22: {said};"
        in (report.warnings[0])
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("pi@desk: Permission denied (publickey).", "refuses the login"),
        ("Host key verification failed.", "has a host key that is not known yet"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "another host key"),
        ("/home/me/.ssh/config: line 1: Bad configuration option: x", "cannot be reached: .*Bad configuration"),
        ("", "the ssh link to pi@desk was lost"),
    ],
)
def test_a_measured_board_that_is_there_but_cannot_be_asked_is_no_prediction(
    board: Callable[[str], Path], said: str, reason: str
) -> None:
    with pytest.raises(DeviceError, match=reason):
        resolve(board(said))


def test_gpu_on_a_device_that_is_not_there(networks: dict[str, Path]) -> None:
    with pytest.raises(DeviceError, match=r"latency of pixel on gpu is not predicted.*connect the phone and measure"):
        benchmark(open_device("pixel"), networks, delegate="gpu")
    with pytest.raises(ProfileError, match="gpu latencies are not predicted"):
        resolve("pixel-gpu")
