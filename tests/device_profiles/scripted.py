"""A device whose times are a script, so that every figure is known beforehand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from device_profiles.devices.base import Delegation, Device, DeviceInfo, DeviceState, Loaded, Round, Session
from device_profiles.profile import load_profile

Script = Callable[[str, int], list[float]]  # file name and number of its round -> the times of its runs, ms


class ScriptedSession(Session):
    """Answers from the script; the warm-up is round -1."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, int, float]] = []

    def loaded(self, name: str) -> Loaded:
        return Loaded(init_ms=5.0, runtime="scripted 1.0", delegation=Delegation("XNNPACK", 0.5, 8))

    def time_round(self, name: str, *, min_runs: int, min_seconds: float) -> Round:
        number = sum(one[0] == name for one in self.asked) - 1
        self.asked.append((name, min_runs, min_seconds))
        return Round.of(self.script(name, number), peak_memory_mb=10.0 + max(number, 0))


class ScriptedDevice(Device):
    """script: the times; states: what the device says of itself, one after the other, the last one again and again."""

    def __init__(self, script: Script, *states: DeviceState, info: DeviceInfo | None = None) -> None:
        self.profile = load_profile("host")
        self.script = script
        self.states = list(states) or [DeviceState(cores=2, busy=0.0)]
        self.info = info or DeviceInfo("scripted", "host", "a script", "none", 2, "none", {".onnx": "scripted 1.0"})
        self.sessions: list[ScriptedSession] = []
        self.asked: list[dict[str, object]] = []
        self.open = 0

    def describe(self) -> DeviceInfo:
        return self.info

    def state(self) -> DeviceState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    @contextlib.contextmanager
    def session(self, files: Mapping[str, Path], **how: object) -> Iterator[Session]:  # type: ignore[override]
        self.asked.append(how)
        self.sessions.append(ScriptedSession(self.script))
        self.open += 1
        try:
            yield self.sessions[-1]
        finally:
            self.open -= 1

    def clean_up(self) -> None:
        self.open = 0


def steady(name: str, number: int) -> list[float]:
    return [2.0, 1.0, 4.0]
