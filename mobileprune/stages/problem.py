"""What a run knows and what must hold: the surrogates and the constraints that are solved, from the journal alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from mobileprune.budget import Budget, allowing
from mobileprune.errors import MobilepruneError
from mobileprune.run import Entry, Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import AccuracySurrogate
from mobileprune.search.latency import LatencySurrogate, fit_latency
from mobileprune.search.recovery import Recovery, ResultAccuracy, fit_recovery
from mobileprune.search.solver import (
    Constraint,
    Indifferent,
    Predict,
    counted_constraint,
    latency_constraint,
    survey,
)
from mobileprune.stages.accuracies import accuracy_samples, result_epochs
from mobileprune.stages.losses import loss_curves
from mobileprune.stages.records import (
    Costs,
    base_latency_ms,
    latency_samples,
    profile_of,
    read_costs,
    scale_key,
)
from mobileprune.words import counted

_PREDICTED_MARGIN = 0.1  # share of a latency budget that is left free where no device can be measured
_MEGA = 1e6
_MEASURED = ("latency", "size")
_LEAST_PROBES = 2  # beside the base
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
    def candidates(self) -> list[Scale]:
        """The scales to choose from: all that the network can take but those measured to miss a budget."""
        return [scale for scale in self.costs.candidates if not self.missed(scale)]

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
        """Validation accuracy as a fraction, of a network that was trained for ``recovery.epochs`` probes."""
        return self.recovery.surrogate

    @cached_property
    def recovery(self) -> Recovery:
        """The accuracy by all that was trained, each with its binomial error, and what more training does to it."""
        samples = accuracy_samples(self.run, self.without)
        probed = len({s.scale for s in samples} - {BASE})
        if probed < _LEAST_PROBES:
            raise MobilepruneError(
                f"{self.run.path} has {counted(probed, 'probe')}, and a fit needs {_LEAST_PROBES}; "
                f"run `mobileprune probe {self.run.path}` first"
            )
        return fit_recovery(
            [s.scale for s in samples],
            [s.accuracy for s in samples],
            [s.std for s in samples],
            [s.epochs for s in samples],
            self.surrogate,
            loss_curves(self.run),
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
            return replace(fitted, predict=self._with_measured(fitted.predict), margin=self._margin(budget))
        if budget.quantity == "size":
            return Constraint("size", limit / _MEGA, "MB", self._sizes)
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
        return budget.limit(self.base_ms) * (1 - self._margin(budget))

    def asking(self, limit: float) -> str:
        """The budget that asks for ``limit`` on the first constraint, in its unit."""
        first = self.budgets[0]
        value = limit if first.quantity == "latency" else limit * _MEGA
        return allowing(first.quantity, value / (1 - self._margin(first)))

    def _margin(self, budget: Budget) -> float:
        return _PREDICTED_MARGIN if self.predicted and budget.quantity == "latency" else 0.0

    @cached_property
    def _size_by_params(self) -> tuple[float, float, float]:
        """Bytes per parameter and bytes besides, of the files exported for timing, and the error of what they give."""
        samples = latency_samples(self.run)
        params = [self.costs[s.scale]["params"] for s in samples]
        sizes = [s.size_bytes for s in samples]
        grows, fixed = np.polyfit(params, sizes, 1)
        return float(grows), float(fixed), float(np.std(np.polyval((grows, fixed), params) - sizes))

    def size_bytes(self, scale: Scale) -> tuple[float, float]:
        """What a file of ``scale`` takes, and its standard deviation: 0 where one was exported for timing."""
        if entry := self.run.journal.get("latency", scale_key(scale)):
            return float(entry["size_bytes"]), 0.0
        grows, fixed, error = self._size_by_params
        return fixed + grows * float(self.costs[scale]["params"]), error

    def _sizes(self, scales: Sequence[Scale]) -> tuple[np.ndarray, np.ndarray]:
        mean, std = np.array([self.size_bytes(scale) for scale in scales]).T / _MEGA
        return mean, std

    def value(self, budget: Budget, scale: Scale) -> float:
        """What ``scale`` takes of the budget's quantity, in its base unit: measured where it was, else predicted."""
        if budget.quantity == "latency" and (entry := self.run.journal.get("latency", scale_key(scale))):
            return float(entry["share"][0]) * self.base_ms
        if budget.quantity == "size":
            return self.size_bytes(scale)[0]
        constraint = next(c for c in self.constraints if c.name == budget.quantity)
        value = float(constraint.predict([scale])[0][0])
        return value if budget.quantity == "latency" else value * _MEGA

    def missed(self, scale: Scale) -> bool:
        """Whether ``scale`` was measured and takes more than a budget by more than the measured spread."""
        entry = self.run.journal.get("latency", scale_key(scale))
        if entry is None:
            return False
        return any(self._interval(entry, b)[0] > self.limit(b) for b in self.budgets if b.quantity in _MEASURED)

    def probably_kept(self, scale: Scale) -> bool:
        """Whether ``scale`` keeps all budgets with the probability that was asked for."""
        chances = survey(Indifferent(), self.constraints, [scale]).joint
        return bool(chances[0] >= float(self.run.asked["confidence"]))

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
