"""What an Android phone tells of itself: the scripts that ask it, and what their output means. Nothing is run here.

A script prints sections, each headed by a line of its own, so that one question over the cable answers everything. What
a phone does not tell is None: vendors leave out files, services and fields as they like.
"""

from __future__ import annotations

import math
import re

from device_profiles.devices.base import DeviceState

_HEAD = "=== "
_CPU, _SKIN = 0, 3  # Android's numbers for kinds of temperature sensors


# `first FILE` prints the first line of a file without starting a program, which would count as load.
_FIRST = 'first() { if read -r line < "$1"; then echo "$line"; fi; }'


def _script(sections: dict[str, str]) -> str:
    asked = [f"echo '{_HEAD}{name}'; {{ {command}; }} 2>/dev/null" for name, command in sections.items()]
    return "\n".join([_FIRST, *asked, "true"])


def sections(output: str) -> dict[str, str]:
    """What `_script` printed, by section."""
    found: dict[str, str] = {}
    for part in f"\n{output}".split(f"\n{_HEAD}")[1:]:
        name, _, text = part.partition("\n")
        found[name.strip()] = text.strip()
    return found


_PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "model": "ro.product.model",
    "soc": "ro.soc.model",
    "platform": "ro.board.platform",
    "hardware": "ro.hardware",
    "release": "ro.build.version.release",
    "api": "ro.build.version.sdk",
    "abis": "ro.product.cpu.abilist",
    "abi": "ro.product.cpu.abi",
    "qemu": "ro.boot.qemu",
    "old_qemu": "ro.kernel.qemu",
}
DESCRIBE = _script({"properties": "getprop", "cores": "first /sys/devices/system/cpu/possible"})
STATE = _script(
    {
        "battery": "dumpsys battery",
        "thermal": "dumpsys thermalservice",
        "saver": "settings get global low_power",
        "governor": "first /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "cores": "first /sys/devices/system/cpu/online",
        "load": "first /proc/loadavg",
        "before": "first /proc/stat",
        "after": "sleep 0.25; first /proc/stat",
    }
)


def facts(output: str) -> dict[str, str]:
    """What `DESCRIBE` printed: the values of `_PROPERTIES` that are there, and "cores"."""
    told = sections(output)
    values = dict(re.findall(r"^\[([^\]]+)\]: \[(.*)\]\s*$", told.get("properties", ""), re.MULTILINE))
    found = {name: values[key].strip() for name, key in _PROPERTIES.items() if values.get(key, "").strip()}
    return found | {"cores": told.get("cores", "")}


def title(told: dict[str, str]) -> str:
    """Maker and model, the maker once."""
    maker, model = told.get("maker", ""), told.get("model", "")
    both = model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
    return both.strip() or "an Android phone"


def abis(told: dict[str, str]) -> list[str]:
    """What machine code it runs, the preferred kind first."""
    return [one.strip() for one in (told.get("abis") or told.get("abi") or "").split(",") if one.strip()]


def emulated(told: dict[str, str]) -> bool:
    return "1" in (told.get("qemu"), told.get("old_qemu")) or told.get("hardware") in ("goldfish", "ranchu")


def cores(told: dict[str, str]) -> int:
    """How many processors, from the kernel's list of ranges ("0-3,6"); 1 where it does not tell."""
    count = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", told.get("cores", "")):
        count += max(0, int(last or first) - int(first) + 1)
    return min(max(count, 1), 4096)


def state(output: str) -> DeviceState:
    """From what `STATE` printed."""
    told = sections(output)
    thermal, battery = told.get("thermal", ""), told.get("battery", "")
    status = re.search(r"^\s*Thermal Status:\s*(\d+)\s*$", thermal, re.MULTILINE)
    level, scale = _number(battery, "level"), _number(battery, "scale") or 100.0
    saver = told.get("saver", "")
    load = told.get("load", "").split()
    hottest, limit = _temperatures(thermal)
    if hottest is None and (tenths := _number(battery, "temperature")) is not None:
        hottest = tenths / 10
    return DeviceState(
        cores=cores(told),
        busy=_busy(told.get("before", ""), told.get("after", "")),
        load_1m=float(load[0]) if load and re.fullmatch(r"\d+(\.\d+)?", load[0]) else None,
        governor=told.get("governor") or None,
        temperature_c=hottest,
        temperature_limit_c=limit,
        thermal_status=int(status[1]) if status else None,
        battery_percent=None if level is None else max(0.0, min(100.0, 100 * level / scale)),
        power_saver={"0": False, "1": True}.get(saver, False if saver == "null" else None),
    )


def _number(text: str, name: str) -> float | None:
    """Of a line "name: value"."""
    found = re.search(rf"^\s*{name}:\s*(-?\d+(?:\.\d+)?)\s*$", text, re.MULTILINE)
    return float(found[1]) if found else None


def _temperatures(thermal: str) -> tuple[float | None, float | None]:
    """(temperature, from where on the phone slows down) in degrees Celsius, of the processor's sensor that is nearest
    to its own limit, else of its hottest; the skin's where the processor has none. None for what is not told.

    `dumpsys thermalservice` prints the sensors twice, from its cache and freshly, and the thresholds of each as seven
    numbers of growing severity, many of them NaN.
    """
    fresh = thermal.partition("Current temperatures from HAL")[2] or thermal
    for kind in (_CPU, _SKIN):
        found = re.findall(rf"Temperature\{{mValue=(-?\d+(?:\.\d+)?), mType={kind}, mName=([^,]*),", fresh)
        now = {name: float(value) for value, name in found if -40 < float(value) < 200}
        if not now:
            continue
        limits = _thresholds(thermal, kind)
        limited = [(value, limits[name]) for name, value in now.items() if name in limits]
        return min(limited, key=lambda pair: pair[1] - pair[0]) if limited else (max(now.values()), None)
    return None, None


def _thresholds(thermal: str, kind: int) -> dict[str, float]:
    """The lowest temperature at which each sensor of a kind slows the phone down, by the sensor's name."""
    found = re.findall(rf"mType={kind}, mName=([^,]*), mHotThrottlingThresholds=\[([^\]]*)\]", thermal)
    limits = {name: [float(one) for one in re.findall(r"\d+(?:\.\d+)?", text)] for name, text in found}
    usable = {name: [one for one in values if math.isfinite(one) and one > 0] for name, values in limits.items()}
    return {name: min(values) for name, values in usable.items() if values}


def _busy(before: str, after: str) -> float | None:
    """The share of the processors' time that was not idle between two first lines of /proc/stat."""
    first, last = ([int(one) for one in re.findall(r"\b\d+\b", line)[:8]] for line in (before, after))
    if len(first) < 5 or len(last) != len(first) or sum(last) <= sum(first):
        return None
    idle = last[3] + last[4] - first[3] - first[4]
    return min(1.0, max(0.0, 1 - idle / (sum(last) - sum(first))))
