"""The kinds of device. A new kind is one new file and one line in `_KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles.profile import DeviceProfile, load_profile

if TYPE_CHECKING:
    from device_profiles.devices.base import Device


def _host(profile: DeviceProfile) -> Device:
    from device_profiles.devices.host import HostDevice

    return HostDevice(profile)


def _predicted(profile: DeviceProfile) -> Device:
    from device_profiles.devices.predicted import PredictedDevice

    return PredictedDevice(profile)


_KINDS: dict[str, Callable[[DeviceProfile], Device]] = {"host": _host, "predicted": _predicted}


def open_device(profile: DeviceProfile | str | Path) -> Device:
    """The device a profile, or the name or path of one, stands for; raises ProfileError when there is none."""
    if not isinstance(profile, DeviceProfile):
        profile = load_profile(profile)
    return _KINDS[profile.kind](profile)
