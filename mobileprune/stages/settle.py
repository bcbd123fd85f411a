"""The closed loop: solve, measure what was chosen, learn from the sample, solve again until the choice stands."""

from __future__ import annotations

from collections.abc import Sequence

from mobileprune.budget import Budget, budgets_key, shown
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.run import Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.solver import Solution
from mobileprune.stages.context import Context
from mobileprune.stages.profile import export_for_timing, measure, record, shaped
from mobileprune.stages.records import scale_key, scale_of
from mobileprune.stages.solve import Problem, current_budgets, describe_solution, solve_run, worth_measuring

_TRIES = 8  # times that candidates are measured per answer, at most: seconds each, as weights do not matter for time
_TOGETHER = 3  # candidates measured in the same rounds


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
    if not any(b.quantity in ("latency", "size") for b in budgets):  # what is counted need not be measured
        _accept(ctx, budgets, solve_run(run, budgets))
        return
    for _ in range(_TRIES):
        candidates = worth_measuring(run, budgets, _TOGETHER)
        if not candidates:
            break
        _measure_candidates(ctx, candidates, budgets)
    _accept(ctx, budgets, _best_measured(run, budgets))


def _best_measured(run: Run, budgets: Sequence[Budget]) -> Solution:
    measured = {scale_of(entry) for entry in run.journal.all("latency")}
    try:
        return solve_run(run, budgets, among=measured)
    except UsageError as error:
        solve_run(run, budgets)  # says so itself where no scale can keep them
        raise MobilepruneError(
            f"no scale that was measured keeps {' and '.join(map(str, budgets))}, though some should: the device is "
            "noisier than its profile; run the same command again on a quieter machine"
        ) from error


def _accept(ctx: Context, budgets: Sequence[Budget], solution: Solution) -> None:
    for line in describe_solution(ctx.run, solution, budgets):
        ctx.display.say(line)
    ctx.run.journal.append("answer", budgets_key(budgets), scale=solution.scale.as_tuple(), solution=solution.to_dict())


def _measure_candidates(ctx: Context, scales: Sequence[Scale], budgets: Sequence[Budget]) -> None:
    """Time ``scales`` and the base in the same rounds; the samples go to the journal."""
    folder = ctx.folder("profile")
    files = {scale_key(s): folder / f"{scale_key(s)}.{ctx.timing_format}" for s in (BASE, *scales)}
    for which, path in zip((BASE, *scales), files.values(), strict=True):
        model, size = shaped(ctx, which)
        export_for_timing(ctx, model, size, path)
    measured = measure(ctx, files, scale_key(BASE)).measurements
    record(ctx, measured, {scale_key(s): (s, files[scale_key(s)].stat().st_size) for s in scales})
    for path in files.values():
        path.unlink()
    problem = Problem(ctx.run, tuple(budgets))
    for scale in scales:
        found = measured[scale_key(scale)]
        verdict = "misses the budget" if problem.missed(scale) else "keeps the budget"
        ctx.display.say(f"{scale} {found.origin}: {shown('latency', found.latency_ms)}, {verdict}")


def kept(run: Run) -> bool:
    """Whether the answer's final files, as measured, keep the current budgets within the measured spread."""
    problem = Problem(run, current_budgets(run))
    answer = run.journal.get("answer", budgets_key(problem.budgets))
    return answer is not None and not problem.missed(scale_of(answer))
