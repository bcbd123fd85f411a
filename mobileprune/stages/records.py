"""What the stages leave for one another, read without torch so that `mobileprune solve` answers at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from device_profiles.profile import DeviceProfile, from_table, load_profile
from mobileprune.errors import MobilepruneError
from mobileprune.run import Entry, Run
from mobileprune.scale import Lattice, Scale

# Relative standard deviation of a share from one measurement to the next, minutes later, beyond what the rounds of
# either tell: 0.9 to 1.4 % by tools/measure_repeats.py, of the runs that it was asked about.
_REPEAT = 0.012
_FURTHER_PROBES = 2  # that a later question may add: the earlier ones lie around another budget


def scale_key(scale: Scale) -> str:
    """A name for a scale that sorts and is fit for a file: ``d0.6667-w0.8125-r0.8750``."""
    return f"d{scale.depth:.4f}-w{scale.width:.4f}-r{scale.resolution:.4f}"


class CostLike(Protocol):
    """What a pruned network takes, counted and not measured."""

    @property
    def macs(self) -> int: ...
    @property
    def params(self) -> int: ...
    @property
    def peak_activation_bytes(self) -> int: ...
    @property
    def features(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Costs:
    """The realisable scales and what each takes: ``macs``, ``params``, ``memory`` (bytes), work per operator kind."""

    lattice: Lattice
    table: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(
        cls, lattice: Lattice, cost: Callable[[Scale], CostLike], covered: Callable[[Scale, CostLike], bool]
    ) -> Costs:
        """Count every scale of the lattice; ``covered`` says whether the device can tell its latency."""
        table = {}
        for scale in lattice:
            c = cost(scale)
            features = {k: round(v, 9) for k, v in c.features.items()}
            table[scale_key(scale)] = {
                "macs": c.macs,
                "params": c.params,
                "memory": c.peak_activation_bytes,
                "covered": covered(scale, c),
                "features": features,
            }
        return cls(lattice, table)

    @classmethod
    def read(cls, path: Path) -> Costs:
        """Read what ``to_dict`` gave. Raises MobilepruneError where the run has no profile yet."""
        if not path.exists():
            run = path.parent.parent
            raise MobilepruneError(f"{run} has no profile yet; run `mobileprune profile {run}` first")
        data = json.loads(path.read_text())
        axes = data["lattice"]
        lattice = Lattice(tuple(axes["depths"]), tuple(axes["widths"]), tuple(axes["resolutions"]))
        return cls(lattice, data["costs"])

    def to_dict(self) -> dict[str, Any]:
        axes = {name: list(getattr(self.lattice, name)) for name in ("depths", "widths", "resolutions")}
        return {"lattice": axes, "costs": self.table}

    def __getitem__(self, scale: Scale) -> Mapping[str, Any]:
        return self.table[scale_key(scale)]

    @property
    def candidates(self) -> list[Scale]:
        """The scales whose latency can be had on the run's device, ascending."""
        return [scale for scale in self.lattice if self[scale]["covered"]]

    def features(self, scale: Scale) -> Mapping[str, float]:
        features: Mapping[str, float] = self[scale]["features"]
        return features


def read_costs(run: Run) -> Costs:
    return Costs.read(run.path / "profile" / "lattice.json")


def profile_of(run: Run) -> DeviceProfile:
    """What is known of the run's device, as it was when the run began."""
    table = run.asked.get("device_profile")
    return from_table(table) if table else load_profile(run.asked["device"])


def require(run: Run, kind: str, key: str, stage: str) -> None:
    """Raise MobilepruneError naming the command to run first where the journal lacks what ``stage`` leaves."""
    if run.journal.get(kind, key) is None:
        raise MobilepruneError(f"{run.path} is not that far; run `mobileprune {stage} {run.path}` first")


def scale_of(entry: Entry) -> Scale:
    return Scale(*entry["scale"])


@dataclass(frozen=True)
class LatencySample:
    """A measured latency as a share of the base's in the same rounds, with its standard error."""

    scale: Scale
    share: float
    std: float
    size_bytes: int


def latency_samples(run: Run) -> list[LatencySample]:
    """All measured scales of a run. Raises MobilepruneError where there is none."""
    samples = []
    for entry in run.journal.all("latency"):
        share, low, high = entry["share"]
        # A 95 % interval is about four standard errors wide. A prediction repeats itself exactly: its error is a
        # common one of the profile, which is kept off the budget as a margin.
        std = math.hypot((high - low) / 4, _REPEAT * share) if entry["measurement"]["origin"] != "predicted" else 0.0
        samples.append(LatencySample(scale_of(entry), share, std, entry["size_bytes"]))
    if not samples:
        raise MobilepruneError(f"{run.path} has no profile yet; run `mobileprune profile {run.path}` first")
    return samples


def probe_limit(run: Run, question: str | None = None) -> int:
    """How many probes the run may come to: those asked for, and a few more for a question that is asked after some.

    question: the key of one that is about to be asked; otherwise it is the newest. One that was answered has enough.
    """
    entries, newest = run.journal.entries, run.journal.newest("question")
    key = question or (newest["key"] if newest else "")
    if run.journal.get("answer", key) is not None:
        return max(int(run.asked["probes"]), len(run.journal.all("probe")))
    new = newest is None or key != newest["key"]
    asked_at = len(entries) if new else max(i for i, e in enumerate(entries) if e["kind"] == "question")
    before = {e["key"] for e in entries[:asked_at] if e["kind"] == "probe"}
    return max(int(run.asked["probes"]), len(before) + _FURTHER_PROBES if before else 0)


def base_latency_ms(run: Run) -> float:
    """The base's latency in the newest rounds it was measured in."""
    newest = run.journal.newest("latency")
    if newest is None:
        raise MobilepruneError(f"{run.path} has no profile yet; run `mobileprune profile {run.path}` first")
    return float(newest["base_ms"])
