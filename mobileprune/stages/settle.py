"""The closed loop: solve, measure what was chosen, learn from the sample, solve again until the choice stands."""

from __future__ import annotations

from collections.abc import Sequence

from mobileprune.budget import Budget, budgets_key, shown
from mobileprune.errors import MobilepruneError
from mobileprune.run import Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.solver import Solution
from mobileprune.stages.context import Context
from mobileprune.stages.profile import export_for_timing, measure, record, shaped
from mobileprune.stages.records import scale_key, scale_of
from mobileprune.stages.solve import Problem, current_budgets, describe_solution, solve_run

_TRIES = 4  # measured candidates per answer; each takes seconds, as weights do not matter for time


def settle(ctx: Context) -> None:
    """Record the answer to the current budgets: a scale whose untrained network was measured and keeps them.

    An answer that stands is kept; one whose final measurement missed a budget is replaced.
    Raises MobilepruneError where every candidate that was measured missed.
    """
    run, budgets = ctx.run, current_budgets(ctx.run)
    key = budgets_key(budgets)
    answer = run.journal.get("answer", key)
    if answer is not None and not Problem(run, tuple(budgets)).missed(scale_of(answer)):
        return
    ctx.display.stage("solve", f"the best scale under {' and '.join(map(str, budgets))}")
    needs_device = any(b.quantity in ("latency", "size") for b in budgets)  # what is counted need not be measured
    tried: list[Scale] = []
    for _ in range(_TRIES):
        solution = solve_run(run, budgets)
        if needs_device and scale_key(solution.scale) not in _measured(run):
            tried.append(solution.scale)
            _measure_candidate(ctx, solution.scale, budgets)
            continue  # the new sample may change the choice
        _accept(ctx, budgets, solution)
        return
    standing = [s for s in tried if not Problem(run, tuple(budgets)).missed(s)]
    if not standing:
        raise MobilepruneError(
            f"none of the {len(tried)} scales measured keeps {' and '.join(map(str, budgets))}: "
            "the device is noisier than its profile; run the same command again on a quieter machine"
        )
    accuracy = Problem(run, tuple(budgets)).accuracy
    best = max(standing, key=lambda s: float(accuracy.estimate([s])[0][0]))
    run.journal.append("answer", key, scale=best.as_tuple(), solution=solution.to_dict())


def _measured(run: Run) -> set[str]:
    return {entry["key"] for entry in run.journal.all("latency")}


def _accept(ctx: Context, budgets: Sequence[Budget], solution: Solution) -> None:
    for line in describe_solution(ctx.run, solution, budgets):
        ctx.display.say(line)
    ctx.run.journal.append("answer", budgets_key(budgets), scale=solution.scale.as_tuple(), solution=solution.to_dict())


def _measure_candidate(ctx: Context, scale: Scale, budgets: Sequence[Budget]) -> None:
    """Time ``scale`` and the base in the same rounds; the sample goes to the journal."""
    folder = ctx.folder("profile")
    files = {scale_key(s): folder / f"{scale_key(s)}.{ctx.timing_format}" for s in (BASE, scale)}
    for which, path in zip((BASE, scale), files.values(), strict=True):
        model, size = shaped(ctx, which)
        export_for_timing(ctx, model, size, path)
    measured = measure(ctx, files).measurements
    record(ctx, measured, {scale_key(scale): (scale, files[scale_key(scale)].stat().st_size)})
    for path in files.values():
        path.unlink()
    problem = Problem(ctx.run, tuple(budgets))
    found = measured[scale_key(scale)]
    verdict = "misses the budget" if problem.missed(scale) else "keeps the budget"
    ctx.display.say(f"{scale} {found.origin}: {shown('latency', found.latency_ms)}, {verdict}")


def kept(run: Run) -> bool:
    """Whether the answer's final files, as measured, keep the current budgets within the measured spread."""
    problem = Problem(run, current_budgets(run))
    answer = run.journal.get("answer", budgets_key(problem.budgets))
    return answer is not None and not problem.missed(scale_of(answer))
