"""What a device is to the measuring protocol: something that describes itself and times files, one round at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from device_profiles.profile import DeviceProfile
from device_profiles.robust import quantile


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is. runtimes: file suffix (".onnx") -> runtime with version, for what it can run right now."""

    name: str
    kind: str
    title: str
    soc: str
    cores: int
    os: str
    runtimes: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceInfo:
        return cls(**data)


@dataclass(frozen=True)
class DeviceState:
    """How a device is doing at one moment; None where it does not tell.

    busy: share of the processors (0 to 1) that other programs keep busy, sampled while ours waits. load_1m: the
    one-minute load average. governor: of the first core's clock. temperature_c: the hottest sensor, degrees Celsius.
    """

    cores: int
    busy: float | None = None
    load_1m: float | None = None
    governor: str | None = None
    temperature_c: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceState:
        return cls(**data)


@dataclass(frozen=True)
class Loaded:
    """A file that is ready to run. init_ms: time to build the runtime's session; runtime: with version."""

    init_ms: float
    runtime: str


@dataclass(frozen=True)
class Round:
    """One round of one file: the runs' minimum, median and 90th percentile in milliseconds, and how many they were.

    peak_memory_mb: the most memory (10^6 bytes, resident) the process that runs the file has taken so far, with its
    runtime, where the device tells.
    """

    minimum_ms: float
    p50_ms: float
    p90_ms: float
    runs: int
    peak_memory_mb: float | None = None

    @classmethod
    def of(cls, times_ms: Sequence[float], peak_memory_mb: float | None = None) -> Round:
        return cls(min(times_ms), quantile(times_ms, 0.5), quantile(times_ms, 0.9), len(times_ms), peak_memory_mb)


@dataclass(frozen=True)
class Predicted:
    """The latency of a file on a device that is not there, in milliseconds.

    low_ms, high_ms: where it lies by the guaranteed error of the prediction. relative_std: standard deviation of its
    error, relative to it. runtime: what it is predicted for. warning: a sentence for the user on how wrong it may be.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    relative_std: float
    runtime: str
    warning: str


class Session(ABC):
    """Files loaded on a device, ready to be timed in any order."""

    @abstractmethod
    def loaded(self, name: str) -> Loaded:
        """How loading went for the file of that name."""

    @abstractmethod
    def time_round(self, name: str, *, min_runs: int, min_seconds: float) -> Round:
        """Run the file one after the other until both `min_runs` and `min_seconds` are reached; raises DeviceError."""


class Device(ABC):
    """A place where artifacts run. Every method may raise DeviceError, with a sentence for the user."""

    profile: DeviceProfile

    @abstractmethod
    def describe(self) -> DeviceInfo:
        """What the device is and which runtimes it has."""

    @abstractmethod
    def state(self) -> DeviceState:
        """How the device is doing now."""

    @abstractmethod
    def session(self, files: Mapping[str, Path], *, threads: int, timeout_s: float) -> AbstractContextManager[Session]:
        """Load the files and hold them until the context ends, which leaves nothing of them on the device.

        timeout_s: how long any single answer (one load, one round) may take before the device counts as hanging.
        """

    def predictions(self, files: Mapping[str, Path], *, threads: int) -> dict[str, Predicted] | None:
        """The latencies of the files without running them, from a device that only predicts; else None."""
        return None

    @abstractmethod
    def clean_up(self) -> None:
        """End and remove whatever this object may have left on the device; harmless when there is nothing."""
