"""What a device is to the measuring protocol: something that describes itself and times files, one round at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from device_profiles.errors import DeviceError
from device_profiles.profile import DeviceProfile
from device_profiles.robust import quantile

_BELOW_LIMIT_C = 2.0  # a device this close to its limit reaches it in the first rounds

DELEGATES = ("cpu", "gpu", "nnapi")


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is.

    runtimes: file suffix (".onnx") -> runtime with version, for what it can run right now. delegates: of `DELEGATES`,
    what it can run them on. abi: its machine architecture ("arm64-v8a", "aarch64"), where it tells. emulated: its
    times are those of an emulator and mean nothing. hints: sentences on what else it could run, and what that takes.
    """

    name: str
    kind: str
    title: str
    soc: str
    cores: int
    os: str
    runtimes: dict[str, str] = field(default_factory=dict)
    delegates: tuple[str, ...] = ("cpu",)
    abi: str | None = None
    emulated: bool = False
    hints: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "delegates": list(self.delegates), "hints": list(self.hints)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceInfo:
        lists = {key: tuple(data[key]) for key in ("delegates", "hints") if key in data}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class DeviceState:
    """How a device is doing at one moment; None where it does not tell.

    busy: share of the processors (0 to 1) that other programs keep busy, sampled while ours waits. load_1m: the
    one-minute load average. governor: of the first core's clock. temperature_c: of the hottest sensor, or of the one
    nearest to its limit where each has its own, degrees Celsius. temperature_limit_c: from where on the device slows
    itself down. thermal_status: Android's, from 0 (none) to 6 (shutdown). battery_percent: 0 to 100. power_saver:
    whether the battery saver is on. throttled: whether the device says that it is slowing itself down now, for heat or
    for want of power.
    """

    cores: int
    busy: float | None = None
    load_1m: float | None = None
    governor: str | None = None
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    thermal_status: int | None = None
    battery_percent: float | None = None
    power_saver: bool | None = None
    throttled: bool | None = None

    @property
    def hot(self) -> str | None:
        """Why the device is too hot to be measured, as the end of a sentence, or None."""
        if self.thermal_status:
            return f"reports the thermal status {self.thermal_status} (0 is cool)"
        if self.throttled:
            return "says that it is slowing itself down for heat or for want of power"
        if self.temperature_c is not None and self.temperature_limit_c is not None:
            near = self.temperature_limit_c - _BELOW_LIMIT_C
            if self.temperature_c >= near:
                return f"is at {self.temperature_c:.0f} °C and slows down at {self.temperature_limit_c:.0f} °C"
        return None

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why it is not measured as it is, each a sentence with its remedy."""
        saver = "its battery saver is on, which slows it down: switch it off" if self.power_saver else None
        heat = f"it {self.hot}: let it cool" if self.hot else None
        return tuple(one for one in (saver, heat) if one)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceState:
        return cls(**data)


@dataclass(frozen=True)
class Delegation:
    """What really runs a graph. name: as the runtime calls it ("XNNPACK", "GPU", "CPUExecutionProvider").

    share: of the graph's nodes that it took, 0 to 1; nodes: how many the graph has. None where the runtime is silent.
    """

    name: str
    share: float | None = None
    nodes: int | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> Delegation | None:
        """What `asdict` made, or nothing."""
        return None if data is None else cls(**data)

    def __str__(self) -> str:
        if self.share is None:
            return f"{self.name}, share not told"
        if self.nodes is None:
            return f"{self.name}, {'all' if self.share == 1 else format(self.share, '.0%')} of the graph"
        return f"{self.name}, {round(self.share * self.nodes)} of {self.nodes} nodes"


@dataclass(frozen=True)
class Loaded:
    """A file that is ready to run. init_ms: time to build the runtime's session; runtime: with version.

    delegation: what runs it; None where the runtime does not tell.
    """

    init_ms: float
    runtime: str
    delegation: Delegation | None = None


@dataclass(frozen=True)
class Round:
    """One round of one file: the runs' minimum, median and 90th percentile in milliseconds, and how many they were.

    Where the device's program gives no 90th percentile, p90_ms is the next larger figure that it gives: the 95th, or
    the maximum. peak_memory_mb: the most memory (10^6 bytes, resident) the process that runs the file has taken so
    far, with its runtime, where the device tells.
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
    def session(
        self,
        files: Mapping[str, Path],
        *,
        threads: int,
        timeout_s: float,
        delegate: str = "cpu",
        core_mask: int | None = None,
    ) -> AbstractContextManager[Session]:
        """Load the files and hold them until the context ends, which leaves nothing of them on the device.

        timeout_s: how long any single answer (one load, one round) may take before the device counts as hanging.
        delegate: one of `DELEGATES`. core_mask: the cores that may be used, bit 0 the first; None leaves it open.
        """

    def predictions(self, files: Mapping[str, Path], *, threads: int) -> dict[str, Predicted] | None:
        """The latencies of the files without running them, from a device that only predicts; else None."""
        return None

    @abstractmethod
    def clean_up(self) -> None:
        """End and remove whatever this object may have left on the device; harmless when there is nothing."""


def check_delegate(delegate: str, info: DeviceInfo) -> None:
    """Raises DeviceError for a delegate that does not exist or that the device lacks."""
    if delegate in info.delegates:
        return
    if delegate not in DELEGATES:
        raise DeviceError(f"delegate = {delegate!r} does not exist; the delegates are {', '.join(DELEGATES)}")
    can = " and ".join(info.delegates)
    if info.kind == "predicted":
        raise DeviceError(
            f"the latency of {info.name} on {delegate} is not predicted, only that on its {can}, because what is "
            "published cannot carry it; connect the phone and measure"
        )
    raise DeviceError(
        f"the device {info.name} runs files on its {can} only, not on {delegate}; GPU and NNAPI are measured on an "
        "Android phone with Google's benchmark_model (--benchmark-binary)"
    )
