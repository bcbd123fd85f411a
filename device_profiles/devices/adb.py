"""Android phones, reached by the `adb` program: any phone with USB debugging on, and nothing installed on it.

    adb://SERIAL                # as `adb devices` lists it; just `adb` where a single phone is connected

Which program that is can be said in $MOBILEPRUNE_ADB, as a command with arguments.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from device_profiles.devices import android
from device_profiles.devices.base import DeviceInfo, DeviceState, check_delegate
from device_profiles.devices.remote import Remote, RemoteDevice, Runner
from device_profiles.errors import DeviceError, ProfileError, UnreachableError
from device_profiles.profile import DeviceProfile
from device_profiles.runners import benchmark_model, bundle, google

_SCHEME = "adb://"
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
_LIST_S = 30.0
_NO_LINK = re.compile(
    r"device '.*' not found|no devices/emulators|device (still )?(offline|unauthorized|authorizing|connecting)"
    r"|protocol fault|error: closed|cannot connect to daemon|connection reset|failed to get feature set"
)
# State, as adb calls it -> what is to be done.
_REMEDIES = {
    "unauthorized": "unlock it and allow USB debugging for this computer",
    "authorizing": "unlock it and allow USB debugging for this computer",
    "offline": "unplug it and plug it in again, or restart its USB debugging",
    "connecting": "wait until it is connected",
    "no permissions": "this user may not use the USB device: add the udev rules of the Debian package "
    "android-sdk-platform-tools-common",
    "recovery": "restart it into Android",
    "sideload": "restart it into Android",
    "bootloader": "restart it into Android",
}


@dataclass(frozen=True)
class Connected:
    """A phone that adb lists. state: as adb calls it ("device" is well); info: only of a phone that can be asked.

    obstacles: what stands in the way of measuring on it, each a sentence with its remedy.
    """

    serial: str
    state: str
    info: DeviceInfo | None = None
    device_state: DeviceState | None = None
    obstacles: tuple[str, ...] = ()


class AdbRemote(Remote):
    """The way to the phone with that serial number."""

    parent = "/data/local/tmp/mobileprune"

    def __init__(self, serial: str) -> None:
        if not _SERIAL.fullmatch(serial):
            raise ProfileError(f"{serial!r} is no serial number that adb could list; `adb devices` shows them")
        self.serial = serial
        self.label = f"the phone {serial}"

    def command(self, script: str) -> list[str]:
        return [*program(), "-s", self.serial, "shell", script]

    def send(self, local: Path, remote: str, *, timeout_s: float) -> None:
        try:
            command = [*program(), "-s", self.serial, "push", str(local.resolve()), remote]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{local}: was not on {self.label} within {timeout_s:.0f} s; check the cable") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            gone = _NO_LINK.search(said) or self.status() != "device"
            raise DeviceError(self.lost(said) if gone else f"{local}: {self.refusal(_why(said))}")

    def lost(self, stderr: str) -> str:
        state = self.status()
        if state is None:
            return f"{self.label} is not connected: plug it in (`adb devices` must list it), then run this again"
        if state != "device":
            return f"{self.label} is {state}: {_remedy(state)}"
        said = f" ({_last_line(stderr)})" if stderr else ""
        return f"the connection to {self.label} broke off{said}: check the cable, then run this again"

    def is_away(self, stderr: str) -> bool:
        return self.status() is None

    def status(self) -> str | None:
        """What adb calls its state now, None for a phone that adb does not list. Raises as `connected` does."""
        return dict(_listed()).get(self.serial)


class AdbDevice(RemoteDevice):
    """The phone with the profile's address as its serial number; the only one connected where that is left out."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.remote: AdbRemote
        super().__init__(profile, AdbRemote(profile.address or only_serial()))
        self._runners: dict[str, Runner] = {}
        self._info: DeviceInfo | None = None

    def describe(self) -> DeviceInfo:
        told = android.facts(self.remote.script(android.DESCRIBE).text)
        kinds = android.abis(told)
        fits = any(kind in bundle.ABIS for kind in kinds)
        emulated = android.emulated(told)
        runtimes, delegates, hints = _abilities() if fits else ({}, ("cpu",), (_wrong_abi(kinds),))
        self._info = DeviceInfo(
            name=self.profile.name,
            kind=self.profile.kind,
            title=android.title(told) + (" (emulated)" if emulated else ""),
            soc=told.get("soc") or told.get("platform") or told.get("hardware") or "not known",
            cores=android.cores(told),
            os=f"Android {told.get('release') or 'of unknown version'}",
            runtimes=runtimes,
            delegates=delegates,
            abi=kinds[0] if kinds else None,
            emulated=emulated,
            hints=hints,
        )
        return self._info

    def state(self) -> DeviceState:
        """Takes a quarter of a second on the phone, in which it watches what other programs do."""
        return android.state(self.remote.script(android.STATE).text)

    def runner(self, suffix: str, delegate: str) -> Runner:
        info = self._info or self.describe()
        check_delegate(delegate, info)
        if suffix not in info.runtimes:
            hint = f"; {'; '.join(info.hints)}" if info.hints else ""
            raise DeviceError(f"{self.remote.label} has no runtime for {suffix!r} files{hint}")
        if suffix not in self._runners:
            self._runners[suffix] = _runner(suffix)
        return self._runners[suffix]


def program() -> list[str]:
    """The adb command; raises UnreachableError where it is not installed."""
    words = shlex.split(os.environ.get("MOBILEPRUNE_ADB", "")) or ["adb"]
    if shutil.which(words[0]) is None:
        raise UnreachableError(f"the program {words[0]!r} is not found: install adb (Android's platform tools)")
    return words


def connected() -> list[Connected]:
    """Every phone that adb lists, with what it is and what stands in the way.

    Raises UnreachableError without adb, DeviceError where adb cannot list them.
    """
    return [_look_at(serial, state) for serial, state in _listed()]


def only_serial() -> str:
    """The serial number of the phone that is connected, if it is a single one; else raises DeviceError."""
    listed = _listed()
    if not listed:
        raise DeviceError("no phone is connected: plug one in with USB debugging on (`adb devices` must list it)")
    if len(listed) > 1:
        names = " and ".join(f"{_SCHEME}{serial}" for serial, _ in listed)
        raise DeviceError(f"{len(listed)} phones are connected, so say which one is meant: {names}")
    return listed[0][0]


def is_address(text: str) -> bool:
    return text == "adb" or text.startswith(_SCHEME)


def profile_of(text: str) -> DeviceProfile:
    """The profile of a connected phone, which is asked what it is; `text` is "adb" or "adb://SERIAL".

    Nothing in it is measured yet. Raises DeviceError, and ProfileError for a text that is no address.
    """
    if not is_address(text):
        raise ProfileError(f"{text!r} is no address of a phone; these are written {_SCHEME}SERIAL")
    draft = _draft(text.removeprefix(_SCHEME) if text.startswith(_SCHEME) else only_serial())
    info = AdbDevice(draft).describe()
    name = re.sub(r"[^a-z0-9._-]+", "-", info.title.lower()).strip("-._")[:64] or "phone"
    return replace(draft, name=name, title=info.title, soc=info.soc, cores=info.cores)


def _draft(serial: str) -> DeviceProfile:
    """The profile of a phone that was not asked yet."""
    return DeviceProfile(
        name="phone",
        title=serial,
        kind="adb",
        runtime="litert",
        format="tflite",
        precision="float32",
        threads=1,
        channel_step=8,
        provenance="Asked of the phone itself. Channel step 8 is assumed: `mobileprune profile` measures it.",
        address=serial,
    )


def _listed() -> list[tuple[str, str]]:
    """(serial, state) of each phone; the state "no permissions" comes with an explanation, which is left out."""
    try:
        command = [*program(), "devices"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIST_S)
    except subprocess.TimeoutExpired:
        raise DeviceError("adb does not answer; `adb kill-server` may help") from None
    if done.returncode:
        raise DeviceError(f"adb cannot list the phones: {_last_line(done.stderr)}")
    lines = (line.partition("\t") for line in done.stdout.splitlines())
    return [(serial, re.split(r"[;(]", state)[0].strip()) for serial, tab, state in lines if tab]


def _look_at(serial: str, state: str) -> Connected:
    if state != "device":
        return Connected(serial, state, obstacles=(f"it is {state}: {_remedy(state)}",))
    try:
        device = AdbDevice(_draft(serial))
        info, now = device.describe(), device.state()
    except (DeviceError, ProfileError) as error:
        return Connected(serial, state, obstacles=(str(error),))
    return Connected(serial, state, info, now, (() if info.runtimes else info.hints) + now.obstacles)


def _abilities() -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """(runtimes, delegates, hints) of a phone for which there are runners, by what is in this machine's cache."""
    runtimes: dict[str, str] = {}
    hints = []
    if (ours := bundle.find()) is not None:
        runtimes |= ours.runtimes
    else:
        hints.append(f"the bundle with the runtimes is missing: {bundle.HOW_TO_MAKE}")
    if google.find() is None:
        return runtimes, ("cpu",), (*hints, google.HOW_TO_GET)
    return runtimes | {".tflite": benchmark_model.RUNTIME}, tuple(benchmark_model.DELEGATES), tuple(hints)


def _runner(suffix: str) -> Runner:
    """For a suffix that `_abilities` named."""
    if suffix in benchmark_model.SUFFIXES and (binary := google.find()) is not None:
        return google.GoogleRunner(binary)
    if (ours := bundle.find()) is None:
        raise DeviceError(f"the bundle with the runtimes is missing: {bundle.HOW_TO_MAKE}")
    return bundle.BundleRunner(ours, suffix)


def _wrong_abi(kinds: list[str]) -> str:
    told = ", ".join(kinds) or "nothing that it tells"
    return f"it runs {told}, and files can be timed on arm64-v8a only: use a phone with a 64-bit ARM processor"


def _remedy(state: str) -> str:
    return _REMEDIES.get(state, "`adb devices` must call it a device")


def _why(text: str) -> str:
    """The reason that `adb push` gives; it goes on to say how fast it failed."""
    errors = [line.strip() for line in text.splitlines() if "error:" in line]
    return errors[-1] if errors else _last_line(text)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it gave no reason"
