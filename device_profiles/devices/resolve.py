"""Which device a --device means: a phone or board that is connected, or a profile.

    host                    this machine
    adb, adb://SERIAL       the connected phone
    ssh://user@host         a board
    pixel, pixel-3, ...     that phone where it is connected, measured; else its shipped profile, predicted
    NAME, path.toml         a profile; one that was measured predicts where its device is not connected

The answer may change with what is plugged in. Who needs the same one tomorrow keeps the profile (`to_table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from device_profiles.devices import adb, ssh
from device_profiles.errors import DeviceError, UnreachableError
from device_profiles.profile import DeviceProfile, load_profile

_PREDICTED = " (predicted)"
_ANY_PIXEL = "pixel"
_FIRST_PIXEL = {"google pixel": "google pixel 1"}  # what the first one calls itself


def resolve(device: str | Path) -> DeviceProfile:
    """The profile of the device that is meant, asked of the device itself where one is connected.

    Raises DeviceError for a device that is named by its address and cannot be reached, for one that is meant and there
    but not usable, where several are meant, and where adb cannot tell; ProfileError for a name that does not exist.
    """
    text = str(device)
    if isinstance(device, str) and adb.is_address(text):
        return adb.profile_of(text)
    if isinstance(device, str) and text.startswith("ssh:"):
        return ssh.profile_of(text)
    profile = load_profile(device)
    if profile.kind == "predicted":
        phone = _only(profile)
        return _connected(profile, phone) if phone else profile
    if profile.kind == "adb" and profile.address is None:
        phone, missing = _only(profile), f"no {profile.title} is connected"
        if phone is None and not profile.latency:
            raise DeviceError(f"{missing}, and the profile {profile.name} predicts no latencies")
        return replace(profile, address=phone.serial) if phone else _predicting(profile, missing)
    if profile.kind in ("adb", "ssh") and profile.latency and (away := _away(profile)):
        return _predicting(profile, away)
    return profile


def meant(profile: DeviceProfile, phones: Sequence[adb.Connected]) -> list[adb.Connected]:
    """Those of the phones that a profile stands for; an emulated one is never taken for a real phone."""
    wanted = profile.title.removesuffix(_PREDICTED).lower()

    def fits(phone: adb.Connected) -> bool:
        if phone.info is None or phone.info.emulated:
            return False
        if profile.address is not None:
            return phone.serial == profile.address
        title = phone.info.title.lower()
        any_fits = profile.name == _ANY_PIXEL and "pixel" in title.split()
        return any_fits or wanted in (title, _FIRST_PIXEL.get(title))

    return [one for one in phones if fits(one)] if profile.kind in ("adb", "predicted") else []


def _only(profile: DeviceProfile) -> adb.Connected | None:
    """The connected phone that a profile stands for, if there is one; raises DeviceError where there are several."""
    if profile.kind == "predicted" and "pixel" not in profile.title.lower():
        return None  # a board, or a phone that is known by another name: adb need not be asked
    found = meant(profile, _phones())
    if len(found) > 1:
        names = " and ".join(f"adb://{one.serial}" for one in found)
        raise DeviceError(f"{len(found)} phones are connected that {profile.name} may mean; say which one: {names}")
    return found[0] if found else None


def _connected(profile: DeviceProfile, phone: adb.Connected) -> DeviceProfile:
    """The profile of a phone that a shipped profile describes, with that one's threads and channel step."""
    asked = adb.profile_of(f"adb://{phone.serial}")
    return replace(
        asked,
        threads=profile.threads,
        channel_step=profile.channel_step,
        provenance=f"{asked.provenance}\nThreads and channel step are those of the profile {profile.name}.",
    )


def _predicting(profile: DeviceProfile, why: str) -> DeviceProfile:
    """The profile of a device that was measured, where it is not connected: `why` is said with what it predicts."""
    return replace(profile, kind="predicted", title=profile.title + _PREDICTED, unreached=why)


def _phones() -> list[adb.Connected]:
    """The phones that adb lists; none where there is no adb.

    A phone that cannot be asked could be the one that is meant, and a prediction in its place would come as a surprise:
    that is an error, and so is an adb that does not answer.
    """
    try:
        phones = adb.connected()
    except UnreachableError:
        return []
    for phone in phones:
        if phone.info is None:
            why = "; ".join(phone.obstacles)
            raise DeviceError(f"the phone {phone.serial} cannot be asked what it is: {why}, or unplug it to predict")
    return phones


def _away(profile: DeviceProfile) -> str | None:
    """Why the device is not there, or None. Raises DeviceError where it is there and cannot be used."""
    from device_profiles.devices import open_device

    try:
        open_device(profile).describe()
    except UnreachableError as error:
        return str(error)
    return None
