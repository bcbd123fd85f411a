"""What there is to measure on now: connected phones and boards, this machine, and the profiles without a device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from device_profiles.devices import adb, open_device, ssh
from device_profiles.devices.base import DeviceInfo, DeviceState
from device_profiles.devices.resolve import meant, resolve
from device_profiles.errors import DeviceError
from device_profiles.profile import DeviceProfile, catalog, load_profile, user_profiles

PLACES = ("connected", "host", "own", "catalog")  # where something is found, in the order in which it is listed
_PLUG_IN = "plug one in with USB debugging on: `adb devices` must list it"


@dataclass(frozen=True)
class Known:
    """Something that --device takes. name: how it is asked for. place: one of `PLACES`; a profile whose device is
    connected is "connected", too.

    latency: "measured", "predicted", "emulated", or "none" where nothing can be timed now. runtimes: file suffix ->
    runtime. threads: the profile's; thread_choices: what else may be asked for, any number where that is empty.
    typical_error, guaranteed_error: of predictions. obstacles: what stands in the way of measuring, and what else could
    be had, each a sentence with its remedy.
    """

    name: str
    place: str
    title: str
    latency: str
    runtimes: dict[str, str]
    delegates: tuple[str, ...] = ("cpu",)
    soc: str | None = None
    os: str | None = None
    abi: str | None = None
    cores: int | None = None
    precision: str = "float32"
    threads: int | None = None
    thread_choices: tuple[int, ...] = ()
    typical_error: float | None = None
    guaranteed_error: float | None = None
    obstacles: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        lists = {name: list(getattr(self, name)) for name in ("delegates", "thread_choices", "obstacles")}
        return {**asdict(self), **lists}


def inventory(hosts: Sequence[str] = ()) -> list[Known]:
    """Everything, what is connected first. hosts: addresses of boards, besides those in MOBILEPRUNE_SSH, with or
    without their ssh://.

    Nothing is raised: what cannot be asked is listed with the reason.
    """
    try:
        phones = adb.connected()
        listed = [_phone(one) for one in phones] or [_no_phone("no phone is connected", _PLUG_IN)]
    except DeviceError as error:
        phones, listed = [], [_no_phone("Android phones", str(error))]
    boards = [_board(address) for address in dict.fromkeys(map(_address, [*hosts, *ssh.known_hosts()]))]
    named = [(name, "own") for name in user_profiles()] + [(name, "catalog") for name in catalog() if name != "host"]
    known = [*listed, *boards, _host(), *(_profile(name, place, phones) for name, place in named)]
    return sorted(known, key=lambda one: PLACES.index(one.place))


def _phone(phone: adb.Connected) -> Known:
    name = f"adb://{phone.serial}"
    if phone.info is None:
        return Known(name, "connected", f"a phone that is {phone.state}", "none", {}, obstacles=phone.obstacles)
    return _measured(name, "connected", phone.info, phone.obstacles)


def _no_phone(title: str, advice: str) -> Known:
    return Known("adb", "connected", title, "none", {}, obstacles=(advice,))


def _address(host: str) -> str:
    """USER@HOST, as ssh itself takes it, as the address that --device takes; other addresses stay as they are."""
    return host if "://" in host.partition("?")[0] else f"ssh://{host}"


def _board(address: str) -> Known:
    # What follows the ? holds paths of this machine and may be long.
    shown = re.sub(r"\?.*", "", address)
    try:
        device = ssh.SshDevice(ssh.profile_of(address))
        info, state = device.describe(), device.state()
    except DeviceError as error:
        return Known(shown, "connected", "a board that cannot be asked", "none", {}, obstacles=(str(error),))
    return _measured(shown, "connected", info, _in_the_way(state))


def _host() -> Known:
    device = open_device("host")
    info = device.describe()
    return _measured("host", "host", info, _in_the_way(device.state()), device.profile)


def _measured(
    name: str, place: str, info: DeviceInfo, obstacles: Sequence[str], profile: DeviceProfile | None = None
) -> Known:
    latency = ("emulated" if info.emulated else "measured") if info.runtimes else "none"
    return Known(
        name=name,
        place=place,
        title=info.title,
        latency=latency,
        runtimes=info.runtimes,
        delegates=info.delegates,
        soc=info.soc,
        os=info.os,
        abi=info.abi,
        cores=info.cores,
        threads=profile.threads if profile else 1,
        obstacles=tuple(dict.fromkeys((*obstacles, *info.hints))),
    )


def _in_the_way(state: DeviceState) -> tuple[str, ...]:
    busy = state.busy or 0.0
    others = (f"other programs keep {busy:.0%} of it busy: close them",) if busy > 0.5 else ()
    return state.obstacles + others


def _profile(name: str, place: str, phones: Sequence[adb.Connected]) -> Known:
    """A profile: its device where that is connected, else what it predicts."""
    try:
        profile = load_profile(name)
    except DeviceError as error:
        return Known(name, place, "a profile that cannot be read", "none", {}, obstacles=(str(error),))
    try:
        if profile.kind == "ssh":
            profile = resolve(name)
    except DeviceError as error:
        return Known(name, place, "a board that cannot be asked", "none", {}, obstacles=(str(error),))
    if profile.kind == "host":
        return replace(_host(), name=name, place=place, threads=profile.threads)
    if profile.kind == "ssh" and profile.address:
        return replace(_board(profile.address), name=name, threads=profile.threads)
    found = meant(profile, phones)
    if len(found) == 1 and (info := found[0].info):
        return _measured(name, "connected", info, found[0].obstacles, profile)
    return _prediction(name, place, profile, found)


def _prediction(name: str, place: str, profile: DeviceProfile, phones: Sequence[adb.Connected]) -> Known:
    """What a profile says without its device. phones: several that it may mean, or none."""
    models = {model.threads: model for model in profile.latency}
    model = models.get(profile.threads)
    title = profile.title.removesuffix(" (predicted)")
    obstacles = [profile.unreached] if profile.unreached else []
    if phones:
        names = " or ".join(f"adb://{one.serial}" for one in phones)
        obstacles.append(f"{len(phones)} phones are connected that it may mean: name {names}")
    elif not models:
        obstacles.append(f"no {title} is connected, and the profile predicts no latencies: connect it")
    return Known(
        name=name,
        place=place,
        title=title,
        latency="predicted" if models and not phones else "none",
        runtimes={f".{profile.format}": model.runtime if model else profile.runtime},
        soc=profile.soc,
        cores=profile.cores,
        precision=profile.precision,
        threads=profile.threads,
        thread_choices=tuple(sorted(models)),
        typical_error=model.typical_error if model else None,
        guaranteed_error=model.guaranteed_error if model else None,
        obstacles=tuple(obstacles),
    )
