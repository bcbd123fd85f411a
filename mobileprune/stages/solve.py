"""Solve: the best scale for the budgets, from the journal alone; nothing here imports torch, so it answers at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mobileprune.budget import Budget, budgets_key, parse_budgets, shown
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.run import Entry, Run
from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.probes import THRESHOLD, initial_probes, next_probe
from mobileprune.search.solver import Field, Indifferent, Solution, survey
from mobileprune.search.solver import solve as solve_problem
from mobileprune.stages.losses import loss_curves
from mobileprune.stages.problem import Problem
from mobileprune.stages.records import (
    probe_limit,
    scale_key,
    scale_of,
)
from mobileprune.words import counted

_INITIAL_PROBES = 6
_WORTH_MEASURING = 0.2  # the probability of keeping the budgets from which a better scale is worth a few seconds
# Of a guess's loss: resnet20 recovers from losing 3 of 7 blocks (2.4 nats of 2.3), MobileNetV1 from none (2.3).
_BEARABLE = 2.0
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


def chosen(run: Run) -> Entry:
    """What was settled on for the current budgets: its scale, its solution and the lines that describe it."""
    answer = run.journal.get("answer", budgets_key(current_budgets(run)))
    if answer is None:
        raise MobilepruneError(f"{run.path} has no pruned network yet; run `mobileprune prune {run.path}` first")
    return answer


def chosen_scale(run: Run) -> Scale:
    """The scale that was settled on for the current budgets."""
    return scale_of(chosen(run))


def solve_run(
    run: Run,
    budgets: Sequence[Budget],
    confidence: float | None = None,
    surrogate: str = "auto",
    among: Collection[Scale] | None = None,
) -> Solution:
    """The scale whose result should be the most accurate that keeps ``budgets``; those measured to miss are out.

    confidence: the probability, by the prediction, that the budgets are kept; by default what the run was asked.
    surrogate: the form of the accuracy. among: the scales to choose from, by default all. Raises UsageError where no
    scale can, naming the smallest reachable, and where the base already keeps them.
    """
    problem = Problem(run, tuple(budgets), surrogate)
    allowed = {scale for scale in problem.candidates if among is None or scale in among}
    confidence = confidence or float(run.asked["confidence"])
    every = problem.costs.candidates  # a scale that misses these budgets may be the best under looser ones
    solution = solve_problem(problem.results, problem.constraints, every, confidence, among=allowed)
    if solution.base_suffices:
        raise UsageError(_nothing_to_do(problem))
    return solution


def worth_measuring(run: Run, budgets: Sequence[Budget], count: int) -> list[Scale]:
    """At most ``count`` scales that may keep ``budgets`` and were not measured well enough yet, the best first.

    None that a measured scale which keeps them is as accurate as, by prediction. One that was measured in few rounds
    and lies at a budget is not known to keep it nor to miss it. Measuring takes seconds and training
    minutes, so a scale that the fitted latency is unsure of is not given up unmeasured.
    """
    problem = Problem(run, tuple(budgets))
    field = survey(problem.results, problem.constraints, problem.candidates)
    measured, kept = _known(problem, field)
    least = field.mean[kept].max(initial=-np.inf)
    found = [i for i in field.ranking() if not measured[i] and _may_keep(field)[i] and field.mean[i] > least]
    return [field.scales[i] for i in found[:count]]


def worth_hoping(run: Run, budgets: Sequence[Budget], count: int) -> list[Scale]:
    """At most ``count`` scales that may be worth a probe, if only they keep ``budgets``, which is not measured yet.

    The first is the one of the largest expected improvement on the best scale that is known to keep them, times its
    probability of keeping them; either with what a probe of its own would add to its result.
    """
    problem = Problem(run, tuple(budgets))
    field = survey(problem.results, problem.constraints, problem.candidates)
    measured, kept = _known(problem, field)
    probed = {scale_of(entry) for entry in run.journal.all("probe")}
    own = np.where([scale in probed for scale in field.scales], 0.0, problem.results.gain(field.scales))
    hoped = field.mean + own
    lead = hoped - hoped[kept].max(initial=0.0)
    spread = np.maximum(field.std, 1e-9)
    improvement = spread * (lead / spread * norm.cdf(lead / spread) + norm.pdf(lead / spread))
    promise = np.where(~measured & _may_keep(field), field.joint * improvement, 0.0)
    return [field.scales[i] for i in np.argsort(-promise, kind="stable")[:count] if promise[i] >= THRESHOLD]


def _known(problem: Problem, field: Field) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each scale (n,): whether it was measured well enough, and whether it is known to keep the budgets by that."""
    timed = {scale_of(entry) for entry in problem.run.journal.all("latency")}
    measured = np.array([scale in timed and not problem.undecided(scale) for scale in field.scales], dtype=bool)
    return measured, measured & (field.joint >= float(problem.run.asked["confidence"]))


def _may_keep(field: Field) -> NDArray[np.bool_]:
    return np.asarray(field.joint >= _WORTH_MEASURING)


def _nothing_to_do(problem: Problem) -> str:
    takes = [f"{b} (it takes {shown(b.quantity, problem.value(b, BASE))})" for b in problem.budgets]
    return f"the base already keeps {' and '.join(takes)}: nothing need be pruned; ask for less"


def check_reachable(run: Run, budgets: Sequence[Budget]) -> None:
    """Before anything is probed: raise UsageError where no scale can keep the budgets, or where the base does."""
    problem = Problem(run, tuple(budgets))
    if all(problem.value(b, BASE) <= problem.limit(b) for b in budgets):
        raise UsageError(_nothing_to_do(problem))
    nothing = Indifferent()
    confidence = float(run.asked["confidence"])
    solve_problem(nothing, problem.constraints, problem.costs.candidates, confidence, frontier=0, continuous=False)


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
    if not problem.candidates:
        return []
    following = next_probe(
        problem.results,
        problem.constraints,
        problem.candidates,
        done,
        float(run.asked["confidence"]),
        gain=problem.results.gain,
        last=len(done) + 1 == probe_limit(run),
    )
    return [] if following is None else [following]


def designed_probes(run: Run, budgets: Sequence[Budget]) -> list[Scale]:
    """What the design still wants of the probes asked for, ancestors first: a spread around the budgets."""
    done = [scale_of(e) for e in run.journal.all("probe")]
    limit = min(int(run.asked["probes"]), _INITIAL_PROBES)
    if len(done) >= limit:
        return []
    curves = loss_curves(run)
    problem = Problem(run, tuple(budgets))
    tightest = min(problem.constraints, key=problem.share)
    first = initial_probes(
        _worth_probing(run, _box(problem.costs.candidates)),
        limit,
        cost=lambda scales: tightest.predict(scales)[0],
        budget=problem.share(tightest),
        loss=curves.together if curves else None,
    )
    return [scale for scale in first if scale not in done][: limit - len(done)]


def _accuracy_lines(problem: Problem, solution: Solution) -> list[str]:
    """What is expected of the result, and what is predicted of a probe there."""
    a, training = solution.accuracy, problem.run.asked["training"]
    probe, result = (counted(training[f"{what}_epochs"], "epoch") for what in ("probe", "result"))
    (mean,), (std,) = problem.recovery.after(*problem.accuracy.estimate([solution.scale]), 1.0)
    return [
        f"accuracy   {100 * a.mean:.1f} % expected after the result's {result}, "
        f"80 % interval {100 * a.low:.1f} to {100 * a.high:.1f}",
        f"           {100 * mean:.1f} ± {100 * _REACH * std:.1f} % predicted after a probe's {probe}",
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


def solution_dict(run: Run, solution: Solution) -> dict[str, Any]:
    """A solution for JSON, with the epochs after which its accuracy is expected."""
    return {**solution.to_dict(), "result_epochs": run.asked["training"]["result_epochs"]}


def describe_solution(run: Run, solution: Solution, budgets: Sequence[Budget], surrogate: str = "auto") -> list[str]:
    """A solution in lines of text: what was chosen, what it should reach, and what each limit is worth.

    surrogate: the form of the accuracy that it was solved with.
    """
    problem = Problem(run, tuple(budgets), surrogate)
    lines = [f"scale      {solution.scale}", *_accuracy_lines(problem, solution)]
    for kept in solution.constraints.values():
        v = kept.value
        error = f", 80 % interval {v.low:.3g} to {v.high:.3g}" if v.high > v.low else ""
        timed = kept.name == "latency" and run.journal.get("latency", scale_key(solution.scale))
        origin = timed["measurement"]["origin"] if timed else "predicted" if v.high > v.low else "counted"
        margin = next(c.margin for c in problem.constraints if c.name == kept.name)
        free = f", {100 * margin:.3g} % left free" if margin else ""
        lines.append(f"{kept.name:<10} {v.mean:.3g} {kept.unit} {origin}{error}; limit {kept.limit:.3g}{free}")
    accuracy, latency = problem.accuracy, problem.latency
    lines.append(f"surrogates accuracy by {accuracy.name}, left-out error {100 * accuracy.cv_error:.2f} points")
    lines += _rivals([(c.label, f"{100 * c.cv_error:.2f}") for c in accuracy.candidates if not c.chosen])
    lines.append(f"           latency by {latency.name}, left-out error {100 * latency.cv_error:.1f} %")
    lines += _rivals([(c.name, f"{100 * c.cv_error:.1f} %") for c in latency.candidates if not c.chosen])
    if solution.continuous is not None:
        c = solution.continuous
        lines.append(f"continuous {c.scale}, KKT residual {c.kkt_residual:.1e}")
    return lines + [f"           {price}" for price in solution.prices]
