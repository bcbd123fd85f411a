"""Heat, after: what latency a device can keep up for minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from device_profiles.benchmark import check_files
from device_profiles.devices.base import Delegation, Device, DeviceInfo, DeviceState, Session
from device_profiles.errors import DeviceError
from device_profiles.robust import median
from device_profiles.thermal import Gate, wait_until_ready

THROTTLED = 0.05  # slower than at first by so much, for good: gaps below are noise
_POINTS = 120  # of a throttling curve at most
_SHORTEST_POINT_S = 0.5
_STATE_EVERY_S = 30.0  # asking for the state lets the device rest for a moment
_FEWEST_POINTS = 8


@dataclass(frozen=True)
class Point:
    """A stretch of a sustained run that ended time_s after its start: the median latency of its runs.

    temperature_c: the device's then, as in `DeviceState`, where it was asked for.
    """

    time_s: float
    latency_ms: float
    runs: int
    temperature_c: float | None = None


@dataclass(frozen=True)
class Sustained:
    """A file run without a pause. first_ms, last_ms: median over the first tenth and the last quarter of the points.

    throttled_after_s: from when on every point was more than 5 % slower than first_ms, if that ever came. before,
    after: the device's state around the run. delegation: what ran the graph. delegate, core_mask: what was asked for.
    waited_s: how long the device was left to cool before.
    """

    device: DeviceInfo
    file: str
    runtime: str
    threads: int
    origin: str
    points: tuple[Point, ...]
    first_ms: float
    last_ms: float
    throttled_after_s: float | None
    before: DeviceState
    after: DeviceState
    delegation: Delegation | None = None
    delegate: str = "cpu"
    core_mask: int | None = None
    waited_s: float = 0.0

    @property
    def verdict(self) -> str:
        """What the curve says, in one sentence."""
        seconds = self.points[-1].time_s
        long = f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.2g} min"
        change = self.last_ms / self.first_ms - 1
        told = f"from {self.first_ms:.3g} to {self.last_ms:.3g} ms ({round(change, 2) + 0.0:+.0%}) over {long}"
        if self.throttled_after_s is not None:
            return f"{self.device.name} throttles after {self.throttled_after_s:.0f} s: {told}"
        if abs(change) > THROTTLED:
            return f"{self.device.name} is unsteady but slows down for no reason that lasts: {told}"
        return f"{self.device.name} keeps its speed: {told}"

    def to_dict(self) -> dict[str, Any]:
        ends = {"before": self.before.to_dict(), "after": self.after.to_dict(), "device": self.device.to_dict()}
        return {**asdict(self), **ends, "points": [asdict(one) for one in self.points], "verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sustained:
        parts = {
            "device": DeviceInfo.from_dict(data["device"]),
            "before": DeviceState.from_dict(data["before"]),
            "after": DeviceState.from_dict(data["after"]),
            "points": tuple(Point(**one) for one in data["points"]),
            "delegation": Delegation.of(data.get("delegation")),
        }
        return cls(**{key: value for key, value in {**data, **parts}.items() if key != "verdict"})


def sustained(
    device: Device,
    path: Path,
    seconds: float,
    *,
    threads: int | None = None,
    delegate: str = "cpu",
    core_mask: int | None = None,
    gate: Gate | None = None,
    progress: Callable[[float], None] | None = None,
    timeout_s: float = 120.0,
) -> Sustained:
    """Run one file for so long without a pause and see how its latency goes; the options are those of `benchmark`.

    progress: called with the share of the time that has passed. Raises DeviceError for a device that only predicts,
    that cannot run the file, or that fails on the way.
    """
    if not seconds >= _FEWEST_POINTS * _SHORTEST_POINT_S:
        raise DeviceError(
            f"{seconds:g} s are too short for a throttling curve; give it {_FEWEST_POINTS * _SHORTEST_POINT_S:g} s or "
            "more (phones take some minutes to become hot)"
        )
    info = device.describe()
    check_files({path.name: path}, info)
    threads = device.profile.threads if threads is None else threads
    before, waited_s = wait_until_ready(device, gate or Gate())
    how = {"threads": threads, "delegate": delegate, "core_mask": core_mask}
    with device.session({path.name: path}, timeout_s=timeout_s, **how) as session:  # type: ignore[arg-type]
        points = _curve(device, session, path.name, seconds, progress)
        loaded = session.loaded(path.name)
    first = median([one.latency_ms for one in points[: max(1, len(points) // 10)]])
    return Sustained(
        device=info,
        file=str(path),
        runtime=loaded.runtime,
        threads=threads,
        origin="emulated" if info.emulated else "measured",
        points=tuple(points),
        first_ms=first,
        last_ms=median([one.latency_ms for one in points[-max(1, len(points) // 4) :]]),
        throttled_after_s=_throttled_after(points, first),
        before=before,
        after=device.state(),
        delegation=loaded.delegation,
        delegate=delegate,
        core_mask=core_mask,
        waited_s=waited_s,
    )


def _curve(
    device: Device, session: Session, name: str, seconds: float, progress: Callable[[float], None] | None
) -> list[Point]:
    length = max(_SHORTEST_POINT_S, seconds / _POINTS)
    points: list[Point] = []
    began = time.monotonic()
    asked = began
    while (now := time.monotonic()) < began + seconds or not points:
        one = session.time_round(name, min_runs=1, min_seconds=length)
        temperature = None
        if time.monotonic() - asked >= _STATE_EVERY_S:
            temperature, asked = device.state().temperature_c, time.monotonic()
        points.append(Point(time.monotonic() - began, one.p50_ms, one.runs, temperature))
        if progress:
            progress(min(1.0, (now + length - began) / seconds))
    return points


def _throttled_after(points: list[Point], first_ms: float) -> float | None:
    """When the latency passed the limit for good: at least the last quarter of the points lies behind it.

    Single points are compared as medians of three neighbours, so that one disturbance neither makes nor ends it.
    """
    smooth = [median([one.latency_ms for one in points[max(0, i - 1) : i + 2]]) for i in range(len(points))]
    slow = [one > first_ms * (1 + THROTTLED) for one in smooth]
    start = len(slow)
    while start and slow[start - 1]:
        start -= 1
    if len(points) - start < max(2, len(points) // 4):
        return None
    return points[start].time_s
