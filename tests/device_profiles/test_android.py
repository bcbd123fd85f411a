"""What an Android phone tells of itself, in the words of several phones."""

from __future__ import annotations

import subprocess

import pytest

from device_profiles.devices import android
from device_profiles.devices.base import DeviceState

PIXEL = """
=== properties
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 8]
[ro.soc.model]: [Tensor G3]
[ro.build.version.release]: [15]
[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a,armeabi]
[ro.hardware]: [shiba]
[persist.note]: [a ] and
two lines]
=== cores
0-8
"""
# Cut from what phones print: sensors from the cache and from the hardware, thresholds, other services' lines between.
THERMAL = """
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
Thermal Status: 1
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=BIG, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=47.2, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=51.8, mType=0, mName=MID, mStatus=0}
\tTemperature{mValue=33.1, mType=3, mName=SKIN, mStatus=1}
\tTemperature{mValue=28.0, mType=2, mName=battery, mStatus=0}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=0, mName=BIG, mHotThrottlingThresholds=[NaN, NaN, NaN, 95.0, NaN, NaN, 120.0]}
\tTemperatureThreshold{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, 39.0, 43.0, NaN, NaN, NaN, 55.0]}
"""
BATTERY = "Current Battery Service state:\n  USB powered: true\n  level: 43\n  scale: 50\n  temperature: 305\n"


def told(**sections: str) -> str:
    return "".join(f"=== {name}\n{text}\n" for name, text in sections.items())


def test_what_a_phone_is() -> None:
    facts = android.facts(PIXEL)
    assert android.title(facts) == "Google Pixel 8"
    assert android.abis(facts) == ["arm64-v8a", "armeabi-v7a", "armeabi"]
    assert android.cores(facts) == 9
    assert not android.emulated(facts)
    assert facts["soc"] == "Tensor G3"


@pytest.mark.parametrize(
    ("properties", "emulated"),
    [
        ("[ro.kernel.qemu]: [1]", True),
        ("[ro.boot.qemu]: [1]", True),
        ("[ro.hardware]: [ranchu]", True),
        ("[ro.boot.qemu]: [0]\n[ro.hardware]: [qcom]", False),
    ],
)
def test_emulators_are_recognized(properties: str, emulated: bool) -> None:
    assert android.emulated(android.facts(told(properties=properties))) is emulated


@pytest.mark.parametrize(
    ("maker", "model", "title"),
    [
        ("samsung", "SM-G991B", "samsung SM-G991B"),
        ("OnePlus", "ONEPLUS A6003", "ONEPLUS A6003"),
        ("", "", "an Android phone"),
    ],
)
def test_the_maker_is_named_once(maker: str, model: str, title: str) -> None:
    assert android.title({"maker": maker, "model": model}) == title


@pytest.mark.parametrize(
    ("ranges", "count"), [("0-7", 8), ("0", 1), ("0-3,6", 5), ("", 1), ("junk", 1), ("0-99999999", 4096)]
)
def test_cores(ranges: str, count: int) -> None:
    assert android.cores({"cores": ranges}) == count


def test_how_a_phone_is_doing() -> None:
    state = android.state(
        told(
            battery=BATTERY,
            thermal=THERMAL,
            saver="1",
            governor="sched_pixel",
            cores="0-8",
            load="3.25 2.00 1.00 2/999 12345",
            before="cpu  100 0 50 800 50 0 0 0 0 0",
            after="cpu  130 0 60 850 60 0 0 0 0 0",
        )
    )
    assert state == DeviceState(
        cores=9,
        busy=pytest.approx(0.4),  # 40 of 100 ticks were neither idle nor waiting
        load_1m=3.25,
        governor="sched_pixel",
        temperature_c=47.2,  # of the only sensor that has a limit, as the hardware tells it now
        temperature_limit_c=95.0,
        thermal_status=1,
        battery_percent=86.0,
        power_saver=True,
    )


def test_a_phone_that_tells_nothing() -> None:
    assert android.state("") == DeviceState(cores=1)
    assert android.state(told(battery="", thermal="Can't find service: thermalservice", saver="null")) == DeviceState(
        cores=1, power_saver=False
    )


def test_each_sensor_is_held_against_its_own_limit() -> None:
    """A sensor that may grow hotter than another does not slow the phone down at the other's limit."""
    more = (
        "\tTemperatureThreshold{mType=0, mName=MID, mHotThrottlingThresholds=[NaN, NaN, NaN, 60.0, NaN, NaN, 90.0]}\n"
    )
    state = android.state(told(thermal=THERMAL + more))
    assert (state.temperature_c, state.temperature_limit_c) == (51.8, 60.0)
    hot = THERMAL.replace("mValue=47.2", "mValue=93.0") + more
    assert android.state(told(thermal=hot)).temperature_c == 93.0  # 2 °C below its limit, MID 8 °C
    bare = "\n".join(line for line in THERMAL.splitlines() if "Threshold" not in line)
    state = android.state(told(thermal=bare))
    assert (state.temperature_c, state.temperature_limit_c) == (51.8, None)


def test_without_sensors_of_the_processor_the_skin_counts_and_then_the_battery() -> None:
    skin = "\n".join(line for line in THERMAL.splitlines() if "mType=0" not in line)
    state = android.state(told(thermal=skin))
    assert (state.temperature_c, state.temperature_limit_c) == (33.1, 39.0)
    assert android.state(told(battery=BATTERY)).temperature_c == 30.5


@pytest.mark.parametrize("script", [android.DESCRIBE, android.STATE])
def test_the_scripts_run_in_any_shell_and_their_sections_are_found(script: str) -> None:
    """Here, where getprop and dumpsys are missing, as services are on some phones."""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = android.sections(done.stdout)
    names = {"properties", "cores"} if script is android.DESCRIBE else {"battery", "load", "before", "after"}
    assert names <= set(found)
    assert android.cores(found) >= 1
    if script is android.STATE:
        assert android.state(done.stdout).busy is not None
