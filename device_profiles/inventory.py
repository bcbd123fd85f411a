"""What there is to measure on now: connected phones and boards, this machine, and the profiles without a device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from device_profiles.devices import adb, open_device, ssh
from device_profiles.devices.base import DeviceInfo, DeviceState
from device_profiles.errors import DeviceError
from device_profiles.profile import DeviceProfile, catalog, load_profile, user_profiles


@dataclass(frozen=True)
class Known:
    """Something that --device takes. name: how it is asked for. place: "connected", "host", "own" or "catalog".

    latency: "measured", "predicted", "emulated", or "none" where nothing can be timed now. runtimes: file suffix ->
    runtime. threads: the profile's. typical_error, guaranteed_error: of predictions. obstacles: what stands in the way
    of measuring, and what else could be had, each a sentence with its remedy.
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
    typical_error: float | None = None
    guaranteed_error: float | None = None
    obstacles: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "delegates": list(self.delegates), "obstacles": list(self.obstacles)}


def inventory(hosts: Sequence[str] = ()) -> list[Known]:
    """Everything, what is connected first. hosts: addresses of boards, besides those in MOBILEPRUNE_SSH.

    Nothing is raised: what cannot be asked is listed with the reason.
    """
    boards = [_board(address) for address in dict.fromkeys([*hosts, *ssh.known_hosts()])]
    known = [_profile(name, "own") for name in user_profiles()] + [_profile(name, "catalog") for name in catalog()]
    return [*_phones(), *boards, _host(), *(one for one in known if one.name != "host")]


def _phones() -> Iterator[Known]:
    try:
        phones = adb.connected()
    except DeviceError as error:
        yield Known("adb", "connected", "Android phones", "none", {}, obstacles=(str(error),))
        return
    if not phones:
        advice = "plug one in with USB debugging on: `adb devices` must list it"
        yield Known("adb", "connected", "no phone is connected", "none", {}, obstacles=(advice,))
    for phone in phones:
        name = f"adb://{phone.serial}"
        if phone.info is None:
            yield Known(name, "connected", f"a phone that is {phone.state}", "none", {}, obstacles=phone.obstacles)
        else:
            yield _measured(name, "connected", phone.info, phone.obstacles)


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
    found = []
    if state.power_saver:
        found.append("its battery saver is on, which slows it down: switch it off")
    if state.hot:
        found.append(f"it {state.hot}: let it cool")
    if state.busy is not None and state.busy > 0.5:
        found.append(f"other programs keep {state.busy:.0%} of it busy: close them")
    return tuple(found)


def _profile(name: str, place: str) -> Known:
    try:
        profile = load_profile(name)
    except DeviceError as error:
        return Known(name, place, "a profile that cannot be read", "none", {}, obstacles=(str(error),))
    models = {model.threads: model for model in profile.latency}
    model = models.get(profile.threads)
    runtime = f"{profile.runtime}" if model is None else model.runtime
    return Known(
        name=name,
        place=place,
        title=profile.title.removesuffix(" (predicted)"),
        latency="predicted" if profile.kind == "predicted" else "measured",
        runtimes={f".{profile.format}": runtime},
        soc=profile.soc,
        cores=profile.cores,
        precision=profile.precision,
        threads=profile.threads,
        typical_error=model.typical_error if model else None,
        guaranteed_error=model.guaranteed_error if model else None,
    )
