"""The kinds of device. A new kind is one new file and one line in `_KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles.profile import DeviceProfile

if TYPE_CHECKING:
    from device_profiles.devices.base import Device


def _host(profile: DeviceProfile) -> Device:
    from device_profiles.devices.host import HostDevice

    return HostDevice(profile)


def _predicted(profile: DeviceProfile) -> Device:
    from device_profiles.devices.predicted import PredictedDevice

    return PredictedDevice(profile)


def _ssh(profile: DeviceProfile) -> Device:
    from device_profiles.devices.ssh import SshDevice

    return SshDevice(profile)


def _adb(profile: DeviceProfile) -> Device:
    from device_profiles.devices.adb import AdbDevice

    return AdbDevice(profile)


_KINDS: dict[str, Callable[[DeviceProfile], Device]] = {
    "host": _host,
    "predicted": _predicted,
    "ssh": _ssh,
    "adb": _adb,
}


def open_device(profile: DeviceProfile | str | Path) -> Device:
    """The device a profile stands for, or a name, path or address (see devices/resolve.py).

    Raises ProfileError where there is none of that name, DeviceError where one of that address cannot be reached.
    """
    if not isinstance(profile, DeviceProfile):
        from device_profiles.devices.resolve import resolve

        profile = resolve(profile)
    return _KINDS[profile.kind](profile)
