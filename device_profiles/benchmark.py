"""The measuring protocol: several files, interleaved in shuffled rounds, and what their times mean.

One number from one run is worth little on a machine that does other things, too. Here every file is warmed up, then all
of them are timed once per round in an order shuffled anew, so that whatever the machine does meanwhile falls on all
alike. A round of a file is at least `min_runs` runs and at least `min_seconds`; its minimum is the time without
disturbance; the median of these minima over the rounds is the latency. Repeats agree to 0.7 % (median) and 2.8 %
(90th percentile) on a machine whose clock has two speeds; gaps below 5 % should not be believed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from device_profiles.devices.base import (
    Delegation,
    Device,
    DeviceInfo,
    DeviceState,
    Loaded,
    Predicted,
    Round,
    Session,
    check_delegate,
)
from device_profiles.errors import DeviceError
from device_profiles.robust import median, median_interval, sign_confidence
from device_profiles.thermal import Gate, wait_until_ready

DRIFT_LIMIT = 0.05  # what two halves of a measurement may differ by
SPREAD_LIMIT = 0.05  # half-width of the interval, relative, from which on a latency is called uncertain
# From here on a strict measurement is refused: such numbers are off by more than any choice between networks matters.
_DRIFT_REFUSED = 0.25
_SPREAD_REFUSED = 0.5
_TRIES = 3  # of a strict measurement, before it is refused
_ROUNDS_FOR_95 = 6  # order statistics of fewer values cannot carry 95 %
_WARM_UP_S = 0.1


@dataclass(frozen=True)
class Protocol:
    """How often files are timed.

    rounds: at least 2; 6 or more for a 95 % interval. A round of a file is at least min_runs runs and at least
    min_seconds. seed: of the order within the rounds. Raises DeviceError for values that make no measurement.
    """

    rounds: int = 7
    min_runs: int = 8
    min_seconds: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 2), ("min_runs", 1)):
            if getattr(self, name) < least:
                raise DeviceError(f"{name} = {getattr(self, name)} is too few: a measurement needs at least {least}")
        if not 0 <= self.min_seconds < math.inf:
            raise DeviceError(f"min_seconds = {self.min_seconds} is not a time a round can take")


@dataclass(frozen=True)
class Measurement:
    """The latency of one file, in milliseconds.

    latency_ms: median of the rounds' minima. low_ms, high_ms: 95 % interval of that median, from order statistics
    interpolated after Hettmansperger & Sheather (`robust.median_interval`); their range below six rounds. spread: half
    the interval's width, relative to the latency. p50_ms, p90_ms: median over the rounds of the rounds' median and 90th
    percentile over single runs, disturbances included. runs: timed runs in all. init_ms: time to load the file.
    peak_memory_mb: most memory (10^6 bytes, resident) of a process that runs this file alone, runtime included.

    delegation: what ran the graph and how much of it; None where the runtime does not tell.

    origin: "measured"; "emulated" for times of an emulator, which say nothing of a real device; or "predicted" for a
    device that is not there. Then nothing ran: there are no rounds and no runs, p50_ms and p90_ms are the latency
    itself, low_ms and high_ms come from the guaranteed error of the prediction, and init_ms is 0.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    p50_ms: float
    p90_ms: float
    round_minima_ms: tuple[float, ...]
    runs: int
    init_ms: float
    peak_memory_mb: float | None
    runtime: str
    threads: int
    origin: str = "measured"
    delegation: Delegation | None = None

    @property
    def spread(self) -> float:
        return (self.high_ms - self.low_ms) / 2 / self.latency_ms

    def share_of(self, other: Measurement) -> tuple[float, float, float]:
        """This latency as a share of another's from the same rounds, with the ends of its 95 % interval.

        The median of the rounds' shares, not the share of the medians: a clock that changes its speed between rounds
        falls on both of a pair, and the interval holds what is uncertain about either. A prediction has no rounds: the
        share is that of the latencies, and the interval its own.
        """
        if not self.round_minima_ms:
            latency, low, high = (ms / other.latency_ms for ms in (self.latency_ms, self.low_ms, self.high_ms))
            return latency, low, high
        shares = [a / b for a, b in zip(self.round_minima_ms, other.round_minima_ms, strict=True)]
        return median(shares), *median_interval(shares)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "round_minima_ms": list(self.round_minima_ms), "spread": self.spread}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        fields = {key: value for key, value in data.items() if key != "spread"}  # derived
        delegation = Delegation.of(fields.get("delegation"))
        return cls(**{**fields, "round_minima_ms": tuple(data["round_minima_ms"]), "delegation": delegation})

    @classmethod
    def of(cls, rounds: list[Round], loaded: Loaded, threads: int, origin: str) -> Measurement:
        minima = tuple(one.minimum_ms for one in rounds)
        low, high = median_interval(minima)
        return cls(
            latency_ms=median(minima),
            low_ms=low,
            high_ms=high,
            p50_ms=median([one.p50_ms for one in rounds]),
            p90_ms=median([one.p90_ms for one in rounds]),
            round_minima_ms=minima,
            runs=sum(one.runs for one in rounds),
            init_ms=loaded.init_ms,
            peak_memory_mb=max((one.peak_memory_mb for one in rounds if one.peak_memory_mb is not None), default=None),
            runtime=loaded.runtime,
            threads=threads,
            origin=origin,
            delegation=loaded.delegation,
        )

    @classmethod
    def predicted(cls, one: Predicted, *, threads: int) -> Measurement:
        return cls(
            latency_ms=one.latency_ms,
            low_ms=one.low_ms,
            high_ms=one.high_ms,
            p50_ms=one.latency_ms,
            p90_ms=one.latency_ms,
            round_minima_ms=(),
            runs=0,
            init_ms=0.0,
            peak_memory_mb=None,
            runtime=one.runtime,
            threads=threads,
            origin="predicted",
        )


@dataclass(frozen=True)
class Report:
    """What a benchmark found. before, after: the device's state around the rounds. warnings: sentences for the user.

    delegate, core_mask: what was asked for. waited_s: how long the device was left to cool before.
    """

    device: DeviceInfo
    protocol: Protocol
    measurements: dict[str, Measurement]
    before: DeviceState
    after: DeviceState
    warnings: list[str]
    delegate: str = "cpu"
    core_mask: int | None = None
    waited_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device.to_dict(),
            "protocol": asdict(self.protocol),
            "measurements": {name: one.to_dict() for name, one in self.measurements.items()},
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "warnings": list(self.warnings),
            "delegate": self.delegate,
            "core_mask": self.core_mask,
            "waited_s": self.waited_s,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        parts = {
            "device": DeviceInfo.from_dict(data["device"]),
            "protocol": Protocol(**data["protocol"]),
            "measurements": {name: Measurement.from_dict(one) for name, one in data["measurements"].items()},
            "before": DeviceState.from_dict(data["before"]),
            "after": DeviceState.from_dict(data["after"]),
        }
        return cls(**{**data, **parts})


def benchmark(
    device: Device,
    files: Mapping[str, Path],
    *,
    rounds: int = 7,
    min_runs: int = 8,
    min_seconds: float = 0.25,
    threads: int | None = None,
    delegate: str = "cpu",
    core_mask: int | None = None,
    seed: int = 0,
    gate: Gate | None = None,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 120.0,
) -> Report:
    """Measure the files (name -> path) on the device, together.

    rounds, min_runs, min_seconds, seed: see `Protocol`. threads: the profile's unless given. delegate, core_mask: see
    `Device.session`. gate: how long a hot device may cool down before. strict: where other programs disturb the device
    too much, begin the rounds anew and refuse in the end, where else a warning stands in the report. progress: called
    with (file-rounds done, in all). timeout_s: how long one load or one round may take before the device counts as
    hanging.
    A device that only predicts (`Device.predictions`) is asked for that instead, and the rounds are left out.
    Raises DeviceError, with nothing measured, for files the device cannot run, for a device that is or becomes too hot,
    and for one that fails on the way.
    """
    protocol = Protocol(rounds, min_runs, min_seconds, seed)
    threads = device.profile.threads if threads is None else threads
    if threads < 1:
        raise DeviceError(f"threads = {threads} is too few: a file runs in at least 1")
    info = device.describe()
    check_delegate(delegate, info)
    check_files(files, info)
    predicted = device.predictions(files, threads=threads)
    if predicted is not None:
        if core_mask is not None:
            raise DeviceError(f"{info.name} is predicted, for cores that nobody chose: leave the core mask out")
        return _predicted(info, protocol, predicted, device.state(), threads)
    gate = gate or Gate()
    before, waited_s = wait_until_ready(device, gate)
    how = {"threads": threads, "delegate": delegate, "core_mask": core_mask}
    origin = "emulated" if info.emulated else "measured"
    with device.session(files, timeout_s=timeout_s, **how) as session:  # type: ignore[arg-type]
        for left in reversed(range(_TRIES)):
            times = _interleave(session, list(files), protocol, progress)
            loaded = {name: session.loaded(name) for name in files}
            found = {name: Measurement.of(times[name], one, threads, origin) for name, one in loaded.items()}
            trouble = _trouble(info, found) if strict else None
            if trouble is None:
                break
            if not left:
                raise DeviceError(f"{trouble} ({_TRIES} tries were made)")
            before, longer = wait_until_ready(device, gate)  # it may have been heat
            waited_s += longer
    after = device.state()
    _refuse_throttled(info, found, after)
    emulated = [f"{info.name} is emulated: its times say nothing of a real device"] if info.emulated else []
    warnings = emulated + _warnings(found, before, after, threads)
    return Report(info, protocol, found, before, after, warnings, delegate, core_mask, waited_s)


def _predicted(
    info: DeviceInfo, protocol: Protocol, each: Mapping[str, Predicted], state: DeviceState, threads: int
) -> Report:
    found = {name: Measurement.predicted(one, threads=threads) for name, one in each.items()}
    sentences = list(dict.fromkeys(one.warning for one in each.values()))
    return Report(info, protocol, found, state, state, sentences)


def drift(measurements: Mapping[str, Measurement]) -> float:
    """How much slower (> 0) or faster the second half of the rounds was than the first, over all files jointly.

    Each round's minimum is taken relative to its file's latency, in logarithms; the drift is exp of the difference of
    the medians of the two halves over all files, less 1. The middle one of an odd number of rounds counts in neither.
    """
    first: list[float] = []
    second: list[float] = []
    for one in measurements.values():
        relative = [math.log(minimum / one.latency_ms) for minimum in one.round_minima_ms]
        half = len(relative) // 2
        first += relative[:half]
        second += relative[-half:]
    return math.exp(median(second) - median(first)) - 1


def _interleave(
    session: Session, names: list[str], protocol: Protocol, progress: Callable[[int, int], None] | None
) -> dict[str, list[Round]]:
    for name in names:
        session.time_round(name, min_runs=1, min_seconds=min(_WARM_UP_S, protocol.min_seconds))
    order = random.Random(protocol.seed)
    times: dict[str, list[Round]] = {name: [] for name in names}
    done = 0
    for _ in range(protocol.rounds):
        for name in order.sample(names, len(names)):
            one = session.time_round(name, min_runs=protocol.min_runs, min_seconds=protocol.min_seconds)
            times[name].append(one)
            done += 1
            if progress:
                progress(done, protocol.rounds * len(names))
    return times


def check_files(files: Mapping[str, Path], info: DeviceInfo) -> None:
    """Raises DeviceError for no files, for one that is missing, and for one that the device has no runtime for."""
    if not files:
        raise DeviceError("there is no file to measure: name at least one")
    for path in files.values():
        if not path.is_file():
            raise DeviceError(f"{path}: there is no such file to measure")
        suffix = path.suffix.lower()
        if suffix not in info.runtimes:
            can = ", ".join(f"{suffix} ({runtime})" for suffix, runtime in sorted(info.runtimes.items())) or "nothing"
            remedy = next((f"; for {hint}" for hint in info.hints if hint.startswith(f"{suffix} files")), "")
            raise DeviceError(
                f"{path}: the device {info.name} has no runtime for {suffix!r} files; it runs {can}{remedy}"
            )


def _refuse_throttled(info: DeviceInfo, found: Mapping[str, Measurement], after: DeviceState) -> None:
    """Raises DeviceError for a device that became hot and slower: its numbers would mislead."""
    change = drift(found)
    if change > DRIFT_LIMIT and after.hot:
        raise DeviceError(
            f"{info.name} throttled while it was measured: it {after.hot}, and the second half of the rounds was "
            f"{change:.0%} slower than the first; let it cool, or measure fewer files at a time"
        )


def _trouble(info: DeviceInfo, found: Mapping[str, Measurement]) -> str | None:
    """Why no latency can be told from these rounds, in a sentence, or nothing."""
    change = drift(found)
    if abs(change) > _DRIFT_REFUSED:
        return (
            f"{info.name} drifted by {change:+.0%} from the first to the second half of the rounds, so no latency can "
            "be told; close other programs, let it come to rest and measure again"
        )
    for name, one in found.items():
        if one.spread > _SPREAD_REFUSED:
            return (
                f"{name}: the rounds disagree by ±{one.spread:.0%}, so no latency can be told; close other programs "
                "or ask for more and longer rounds"
            )
    return None


def _warnings(
    measurements: Mapping[str, Measurement], before: DeviceState, after: DeviceState, threads: int
) -> list[str]:
    found = []
    if threads > before.cores:
        found.append(f"{threads} threads were asked for, but the device has {before.cores} cores")
    busiest = max((state.busy for state in (before, after) if state.busy is not None), default=0.0)
    # A quarter of a core is what a desktop does when it does nothing.
    if threads <= before.cores and before.cores * (1 - busiest) < threads - 0.25:
        found.append(
            f"other programs kept {busiest:.0%} of the processor busy; close them, or take the latencies as too high"
        )
    if after.hot:
        found.append(f"the device became hot: it {after.hot}; later latencies may be longer")
    if abs(change := drift(measurements)) > DRIFT_LIMIT:
        way = "slower" if change > 0 else "faster"
        found.append(
            f"the device drifted: the second half of the rounds was {abs(change):.0%} {way} than the first; "
            "let it cool and come to rest, then measure again"
        )
    for name, one in measurements.items():
        if one.spread > SPREAD_LIMIT:
            found.append(f"{name}: the latency is uncertain by ±{one.spread:.0%}; more rounds would narrow it")
    rounds = min(len(one.round_minima_ms) for one in measurements.values())
    if rounds < _ROUNDS_FOR_95:
        confidence = sign_confidence(rounds, 1)
        found.append(f"{rounds} rounds carry an interval of {confidence:.0%} only; {_ROUNDS_FOR_95} carry 95%")
    return found
