"""Heat, before: a device is measured when it is cool, and left to cool first where it is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from device_profiles.devices.base import Device, DeviceState
from device_profiles.errors import DeviceError

_POLL_S = 5.0


@dataclass(frozen=True)
class Gate:
    """What a device must be like before it is measured.

    cool_down_s: how long a hot one may take to cool; 0 refuses it at once. waiting: called with (seconds waited, why)
    while it does. sleep: stands in for `time.sleep`.
    """

    cool_down_s: float = 300.0
    waiting: Callable[[float, str], None] | None = None
    sleep: Callable[[float], None] = time.sleep


def wait_until_ready(device: Device, gate: Gate) -> tuple[DeviceState, float]:
    """The device's state once it is cool, and the seconds it was waited for.

    Raises DeviceError for a device that stays hot for longer than the gate allows, or that saves power.
    """
    waited = 0.0
    while True:
        state = device.state()
        name = device.profile.name
        if state.power_saver:
            raise DeviceError(f"{name} has its battery saver on, which slows the processor down; switch it off")
        why = state.hot
        if why is None:
            return state, waited
        if waited >= gate.cool_down_s:
            within = f"and did not cool down within {gate.cool_down_s:g} s" if gate.cool_down_s else "so it is too hot"
            raise DeviceError(
                f"{name} {why} {within}: latencies would be too long; take it off the charger and out of the sun, "
                "and give the same command again when it is cool (timing files and profiling a device can be given "
                "more time, --cool-down)"
            )
        if gate.waiting:
            gate.waiting(waited, f"{name} {why}")
        pause = min(_POLL_S, gate.cool_down_s - waited)
        gate.sleep(pause)
        waited += pause
