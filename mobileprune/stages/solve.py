"""Solve: the best scale for the budgets, from the journal alone; nothing here imports torch, so it answers at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mobileprune.budget import Budget, budgets_key, parse_budgets, shown
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.run import Run
from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.accuracy import AccuracySurrogate
from mobileprune.search.latency import LatencySurrogate, fit_latency
from mobileprune.search.probes import initial_probes, next_probe
from mobileprune.search.recovery import Recovery, fit_recovery
from mobileprune.search.solver import Constraint, Predict, Solution, counted_constraint, latency_constraint, survey
from mobileprune.search.solver import solve as solve_problem
from mobileprune.stages.accuracies import accuracy_samples, result_epochs
from mobileprune.stages.records import (
    Costs,
    base_latency_ms,
    latency_samples,
    probe_limit,
    profile_of,
    read_costs,
    scale_key,
    scale_of,
)
from mobileprune.words import counted

_INITIAL_PROBES = 6
_PREDICTED_MARGIN = 0.1  # share of a latency budget that is left free where no device can be measured
_WORTH_MEASURING = 0.2  # the probability of keeping the budgets from which a better scale is worth a few seconds
# Of a guess's loss: resnet20 recovers from losing 3 of 7 blocks (2.4 nats of 2.3), MobileNetV1 from none (2.3).
_BEARABLE = 2.0
_MEGA = 1e6
_REACH = 1.2816  # standard deviations on each side of an 80 % interval


def set_budgets(run: Run, texts: Sequence[str]) -> None:
    """Record what must hold from now on. Raises UsageError for a text that is no budget."""
    budgets = parse_budgets(texts)
    newest = run.journal.newest("question")
    if newest is None or newest["key"] != budgets_key(budgets):
        run.journal.append("question", budgets_key(budgets), budgets=[b.text for b in budgets])


def current_budgets(run: Run) -> tuple[Budget, ...]:
    """What was asked last. Raises UsageError where nothing was."""
    newest = run.journal.newest("question")
    if newest is None:
        raise UsageError(f"{run.path} has no budget yet; say what must hold, for example --budget 50%")
    return parse_budgets(newest["budgets"])


def chosen_scale(run: Run) -> Scale:
    """The scale that was settled on for the current budgets."""
    answer = run.journal.get("answer", budgets_key(current_budgets(run)))
    if answer is None:
        raise MobilepruneError(f"{run.path} has no pruned network yet; run `mobileprune prune {run.path}` first")
    return scale_of(answer)


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

    def expected(self, scale: Scale) -> tuple[float, float]:
        """Mean and standard deviation (fractions) of the accuracy of the result at ``scale``, when it is trained."""
        mean, std = self.accuracy.estimate([scale])
        return self.recovery.after(float(mean[0]), float(std[0]), result_epochs(self.run, scale))

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
        for budget in self.budgets:
            if budget.quantity == "size" and entry["size_bytes"] > self.limit(budget):
                return True
            if budget.quantity == "latency":
                # As a share of the base in the same rounds for a relative budget, as measured for an absolute one.
                share, least_share, _ = entry["share"]
                found = entry["measurement"]
                if budget.relative:
                    least = self.base_ms * (share if self.predicted else least_share)
                else:
                    least = found["latency_ms" if self.predicted else "low_ms"]
                if least > self.limit(budget):
                    return True
        return False


def solve_run(
    run: Run,
    budgets: Sequence[Budget],
    confidence: float | None = None,
    surrogate: str = "auto",
    among: Collection[Scale] | None = None,
) -> Solution:
    """The scale of largest predicted accuracy that keeps ``budgets``; scales measured to miss them are out.

    confidence: the probability, by the prediction, that the budgets are kept; by default what the run was asked.
    surrogate: the form of the accuracy. among: the scales to choose from, by default all. Raises UsageError where no
    scale can, naming the smallest reachable, and where the base already keeps them.
    """
    problem = Problem(run, tuple(budgets), surrogate)
    candidates = [s for s in problem.costs.candidates if not problem.missed(s) and (among is None or s in among)]
    confidence = confidence or float(run.asked["confidence"])
    solution = solve_problem(problem.accuracy, problem.constraints, candidates, confidence=confidence)
    if solution.base_suffices:
        raise UsageError(_nothing_to_do(problem))
    return solution


def worth_measuring(run: Run, budgets: Sequence[Budget], count: int, optimism: float = 0.0) -> list[Scale]:
    """At most ``count`` scales that may keep ``budgets`` and were not measured yet, the most accurate first.

    None that a measured scale which keeps them is as accurate as, by prediction. Measuring takes seconds and training
    minutes, so a scale that the fitted latency is unsure of is not given up unmeasured. optimism: the accuracy that
    counts, in standard deviations above what is predicted; of a measured scale it is what is predicted.
    """
    problem = Problem(run, tuple(budgets))
    field = survey(
        problem.accuracy, problem.constraints, [s for s in problem.costs.candidates if not problem.missed(s)]
    )
    measured = np.array([run.journal.get("latency", scale_key(s)) is not None for s in field.scales])
    kept = measured & (field.joint >= float(run.asked["confidence"]))
    least = field.mean[kept].max(initial=-np.inf)
    hoped = field.mean + optimism * field.std
    found = [i for i in field.ranking() if not measured[i] and field.joint[i] >= _WORTH_MEASURING and hoped[i] > least]
    return [field.scales[i] for i in sorted(found, key=lambda i: -hoped[i])][:count]


def _nothing_to_do(problem: Problem) -> str:
    takes = [f"{b} (it takes {shown(b.quantity, problem.value(b, BASE))})" for b in problem.budgets]
    return f"the base already keeps {' and '.join(takes)}: nothing need be pruned; ask for less"


def check_reachable(run: Run, budgets: Sequence[Budget]) -> None:
    """Before anything is probed: raise UsageError where no scale can keep the budgets, or where the base does."""
    problem = Problem(run, tuple(budgets))
    if all(problem.value(b, BASE) <= problem.limit(b) for b in budgets):
        raise UsageError(_nothing_to_do(problem))
    nothing = _Indifferent()
    confidence = float(run.asked["confidence"])
    solve_problem(nothing, problem.constraints, problem.costs.candidates, confidence, frontier=0, continuous=False)


class _Indifferent:
    """An accuracy surrogate that knows nothing: for asking only what is feasible."""

    def estimate(self, scales: Sequence[Scale]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(scales)), np.zeros(len(scales))

    def smooth(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(len(x))


def plan_probes(run: Run, budgets: Sequence[Budget]) -> list[Scale]:
    """The scales to probe next; none when the plan is done. Follows from the journal alone, so a resumed run agrees.

    All that the design still wants, ancestors first, in whatever order they are then done; after that one at a time,
    while it promises a gain. A later question, when all the probes asked for were made, goes straight to the latter.
    """
    done = [scale_of(e) for e in run.journal.all("probe")]
    if len(done) >= probe_limit(run):
        return []
    if waiting := designed_probes(run, budgets):
        return waiting
    problem = Problem(run, tuple(budgets))
    following = next_probe(
        problem.accuracy, problem.constraints, problem.costs.candidates, done, float(run.asked["confidence"])
    )
    return [] if following is None else [following]


def designed_probes(run: Run, budgets: Sequence[Budget]) -> list[Scale]:
    """What the design still wants of the probes asked for, ancestors first: a spread around the budgets."""
    done = [scale_of(e) for e in run.journal.all("probe")]
    limit = int(run.asked["probes"])
    if len(done) >= limit:
        return []
    problem = Problem(run, tuple(budgets))
    tightest = min(problem.constraints, key=problem.share)
    first = initial_probes(
        _worth_probing(run, _box(problem.costs.candidates)),
        min(limit, _INITIAL_PROBES),
        cost=lambda scales: tightest.predict(scales)[0],
        budget=problem.share(tightest),
    )
    return [scale for scale in first if scale not in done][: limit - len(done)]


def _accuracy_lines(problem: Problem, solution: Solution) -> list[str]:
    """What is predicted after a probe's training, and what is expected of the result's."""
    a, training = solution.accuracy, problem.run.asked["training"]
    probe, result = (counted(training[f"{what}_epochs"], "epoch") for what in ("probe", "result"))
    interval = f"80 % interval {100 * a.low:.1f} to {100 * a.high:.1f}"
    mean, std = problem.expected(solution.scale)
    return [
        f"accuracy   {100 * a.mean:.1f} % predicted after a probe's {probe}, {interval}",
        f"           {100 * mean:.1f} ± {100 * _REACH * std:.1f} % expected after the result's {result}",
    ]


def _rivals(errors: Sequence[tuple[str, str]]) -> list[str]:
    """The forms that were not chosen, with what they would have missed by."""
    return [f"{'':13}against {', '.join(f'{name} {error}' for name, error in errors)}"] if errors else []


def _box(scales: Sequence[Scale]) -> Lattice:
    """The smallest lattice that holds ``scales``."""
    depths, widths, resolutions = (
        tuple(sorted(set(axis))) for axis in zip(*(s.as_tuple() for s in scales), strict=True)
    )
    return Lattice(depths, widths, resolutions)


def _worth_probing(run: Run, box: Lattice) -> Lattice:
    """``box`` without the depths of which a brief training brings little back: probes are better spent elsewhere.

    There the losses that the removed blocks add one by one, before any training, come to more than twice that of
    guessing, the logarithm of the number of classes. One block at least may go.
    """
    ranking, data = run.journal.get("ranking", "blocks"), run.journal.get("data", "fingerprint")
    if not ranking or not data or not ranking["loss_increase"]:
        return box
    added = np.cumsum(sorted(ranking["loss_increase"].values()))
    bearable = np.searchsorted(added, _BEARABLE * np.log(len(data["classes"])))
    least = 1.0 - max(1, int(bearable)) / len(added)
    depths = tuple(depth for depth in box.depths if depth >= least - 1e-9)
    return replace(box, depths=depths if len(depths) > 1 else box.depths[-2:])


def solution_dict(run: Run, solution: Solution, budgets: Sequence[Budget]) -> dict[str, Any]:
    """A solution for JSON: that of the solver, and the accuracy expected of the result (fractions, 80 % interval)."""
    mean, std = Problem(run, tuple(budgets)).expected(solution.scale)
    low, high = max(0.0, mean - _REACH * std), min(1.0, mean + _REACH * std)
    epochs = run.asked["training"]["result_epochs"]
    return {**solution.to_dict(), "expected_accuracy": {"mean": mean, "low": low, "high": high, "epochs": epochs}}


def describe_solution(run: Run, solution: Solution, budgets: Sequence[Budget]) -> list[str]:
    """A solution in lines of text: what was chosen, what it should reach, and what each limit is worth."""
    problem = Problem(run, tuple(budgets))
    lines = [f"scale      {solution.scale}", *_accuracy_lines(problem, solution)]
    for kept in solution.constraints.values():
        v = kept.value
        error = f", 80 % interval {v.low:.3g} to {v.high:.3g}" if v.high > v.low else ""
        timed = kept.name == "latency" and run.journal.get("latency", scale_key(solution.scale))
        origin = timed["measurement"]["origin"] if timed else "predicted" if v.high > v.low else "counted"
        lines.append(f"{kept.name:<10} {v.mean:.3g} {kept.unit} {origin}{error}; limit {kept.limit:.3g}")
    accuracy, latency = problem.accuracy, problem.latency
    lines.append(f"surrogates accuracy by {accuracy.name}, left-out error {100 * accuracy.cv_error:.2f} points")
    lines += _rivals([(c.label, f"{100 * c.cv_error:.2f}") for c in accuracy.candidates if not c.chosen])
    lines.append(f"           latency by {latency.name}, left-out error {100 * latency.cv_error:.1f} %")
    lines += _rivals([(c.name, f"{100 * c.cv_error:.1f} %") for c in latency.candidates if not c.chosen])
    if solution.continuous is not None:
        c = solution.continuous
        lines.append(f"continuous {c.scale}, KKT residual {c.kkt_residual:.1e}")
    return lines + [f"           {price}" for price in solution.prices]
