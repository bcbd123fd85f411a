"""What a run knows and what must hold: the surrogates and the constraints that are solved, from the journal alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from mobileprune.budget import Budget
from mobileprune.errors import MobilepruneError
from mobileprune.run import Entry, Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import AccuracySurrogate
from mobileprune.search.latency import LatencySurrogate, fit_latency
from mobileprune.search.recovery import Recovery, ResultAccuracy, fit_recovery
from mobileprune.search.solver import Constraint, Predict, counted_constraint, latency_constraint
from mobileprune.stages.accuracies import accuracy_samples, result_epochs
from mobileprune.stages.records import (
    Costs,
    base_latency_ms,
    latency_samples,
    profile_of,
    read_costs,
    scale_key,
)

_PREDICTED_MARGIN = 0.1  # share of a latency budget that is left free where no device can be measured
_MEGA = 1e6
_MEASURED = ("latency", "size")
_CAREFUL = 4  # times the rounds asked for: seven do not tell 5 % apart on a clock of two speeds


@dataclass(frozen=True)
class Problem:
    """What is known of a run: measured latencies, counted costs, probed accuracies; and what must hold."""

    run: Run
    budgets: tuple[Budget, ...]
    surrogate: str = "auto"
    without: Scale | None = None  # a result that is not to count

    @cached_property
    def costs(self) -> Costs:
        return read_costs(self.run)

    @cached_property
    def base_ms(self) -> float:
        return base_latency_ms(self.run)

    @cached_property
    def latency(self) -> LatencySurrogate:
        """Latency in ms: shares of the base's, measured in the same rounds, times the base's newest latency."""
        samples = latency_samples(self.run)
        return fit_latency(
            [s.scale for s in samples],
            [s.share * self.base_ms for s in samples],
            [s.std * self.base_ms for s in samples],
            [self.costs.features(s.scale) for s in samples],
        )

    @property
    def accuracy(self) -> AccuracySurrogate:
        """Validation accuracy as a fraction, of a network that was trained as probes are."""
        return self.recovery.surrogate

    @cached_property
    def recovery(self) -> Recovery:
        """The accuracy by all that was trained, each with its binomial error, and what more training does to it."""
        samples = accuracy_samples(self.run, self.without)
        if len(samples) < 2:
            raise MobilepruneError(f"{self.run.path} has no probes yet; run `mobileprune probe {self.run.path}` first")
        return fit_recovery(
            [s.scale for s in samples],
            [s.accuracy for s in samples],
            [s.std for s in samples],
            [s.epochs for s in samples],
            self.surrogate,
        )

    @cached_property
    def results(self) -> ResultAccuracy:
        """Validation accuracy as a fraction, of results: what is chosen by."""
        epochs = partial(result_epochs, self.run)
        return ResultAccuracy(self.recovery, epochs, float(np.median(epochs(self.costs.candidates))))

    def expected(self, scale: Scale) -> tuple[float, float]:
        """Mean and standard deviation (fractions) of the accuracy of the result at ``scale``, when it is trained."""
        mean, std = self.results.estimate([scale])
        return float(mean[0]), float(std[0])

    @cached_property
    def constraints(self) -> list[Constraint]:
        return [self._constraint(budget) for budget in self.budgets]

    def _constraint(self, budget: Budget) -> Constraint:
        limit = self.limit(budget)
        if budget.quantity == "latency":
            fitted = latency_constraint("latency", limit, self.latency, self.costs.features)
            return replace(fitted, predict=self._with_measured(fitted.predict))
        if budget.quantity == "size":
            return counted_constraint("size", limit / _MEGA, "MB", lambda s: self.size_bytes(s) / _MEGA)
        name = budget.quantity
        unit = {"macs": "MMACs", "params": "MParams", "memory": "MB"}[name]
        return counted_constraint(name, limit / _MEGA, unit, lambda s: self.costs[s][name] / _MEGA)

    def _with_measured(self, predict: Predict) -> Predict:
        """``predict``, but a scale that was measured takes what was measured, with the error of the measurement."""
        known = {s.scale: (s.share * self.base_ms, s.std * self.base_ms) for s in latency_samples(self.run)}

        def told(scales: Sequence[Scale]) -> tuple[np.ndarray, np.ndarray]:
            mean, std = predict(scales)
            for i, scale in enumerate(scales):
                if scale in known:
                    mean[i], std[i] = known[scale]
            return mean, std

        return told

    @staticmethod
    def share(constraint: Constraint) -> float:
        """The limit as a share of what the base takes."""
        return constraint.limit / float(constraint.predict([BASE])[0][0])

    @cached_property
    def predicted(self) -> bool:
        """Whether latencies come from a profile and not from a device."""
        return profile_of(self.run).kind == "predicted"

    @cached_property
    def origin(self) -> str:
        """Where latencies come from: "measured", "predicted", or "emulated" by a device that is not real."""
        newest = self.run.journal.newest("latency")
        return str(newest["measurement"]["origin"]) if newest else "predicted" if self.predicted else "measured"

    def limit(self, budget: Budget) -> float:
        """What the solver may use of the budget, in ms, MACs, parameters or bytes: less a margin where predicted."""
        margin = _PREDICTED_MARGIN if self.predicted and budget.quantity == "latency" else 0.0
        return budget.limit(self.base_ms) / (1 + margin)

    @cached_property
    def _size_by_params(self) -> tuple[float, float]:
        """Bytes per parameter and bytes besides, of the files that were exported for timing."""
        samples = latency_samples(self.run)
        params = [self.costs[s.scale]["params"] for s in samples]
        grows, fixed = np.polyfit(params, [s.size_bytes for s in samples], 1)
        return float(grows), float(fixed)

    def size_bytes(self, scale: Scale) -> float:
        """What a file of ``scale`` takes, estimated from the files that were exported for timing."""
        grows, fixed = self._size_by_params
        return fixed + grows * float(self.costs[scale]["params"])

    def value(self, budget: Budget, scale: Scale) -> float:
        """What ``scale`` takes of the budget's quantity, in its base unit: measured where it was, else predicted."""
        if budget.quantity in ("latency", "size") and (entry := self.run.journal.get("latency", scale_key(scale))):
            if budget.quantity == "size":
                return float(entry["size_bytes"])
            return float(entry["share"][0]) * self.base_ms
        constraint = next(c for c in self.constraints if c.name == budget.quantity)
        value = float(constraint.predict([scale])[0][0])
        return value if budget.quantity == "latency" else value * _MEGA

    def missed(self, scale: Scale) -> bool:
        """Whether ``scale`` was measured and takes more than a budget by more than the measured spread."""
        entry = self.run.journal.get("latency", scale_key(scale))
        if entry is None:
            return False
        return any(self._interval(entry, b)[0] > self.limit(b) for b in self.budgets if b.quantity in _MEASURED)

    def undecided(self, scale: Scale) -> bool:
        """Whether ``scale`` was measured in few rounds and may keep the budgets as well as miss one."""
        entry = self.run.journal.get("latency", scale_key(scale))
        if entry is None or self.missed(scale):
            return False
        rounds = len(entry["measurement"].get("round_minima_ms", ()))
        over = any(self._interval(entry, b)[1] > self.limit(b) for b in self.budgets if b.quantity in _MEASURED)
        return over and 0 < rounds < careful_rounds(self.run)

    def _interval(self, entry: Entry, budget: Budget) -> tuple[float, float]:
        """The ends of what was measured of the budget's quantity, in ms or bytes; alike where it was predicted.

        As a share of the base in the same rounds for a relative latency, as measured for an absolute one.
        """
        if budget.quantity == "size":
            return entry["size_bytes"], entry["size_bytes"]
        found = entry["measurement"]
        if budget.relative:
            share, low, high = (self.base_ms * part for part in entry["share"])
        else:
            share, low, high = (found[name] for name in ("latency_ms", "low_ms", "high_ms"))
        return (share, share) if self.predicted else (low, high)


def careful_rounds(run: Run) -> int:
    """In how many rounds a scale is measured that may just keep a budget or just miss it."""
    return _CAREFUL * int(run.asked["measuring"]["rounds"])
