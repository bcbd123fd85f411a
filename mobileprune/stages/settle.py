"""The closed loop: solve, measure what was chosen, learn from the sample, solve again until the choice stands."""

from __future__ import annotations

from collections.abc import Sequence

from mobileprune.budget import Budget, budgets_key
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.run import Run
from mobileprune.search.solver import Solution
from mobileprune.stages.candidates import measure_the_best, to_be_measured
from mobileprune.stages.context import Context
from mobileprune.stages.problem import Problem
from mobileprune.stages.records import scale_of
from mobileprune.stages.solve import current_budgets, describe_solution, solve_run


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
    if not to_be_measured(budgets):
        _accept(ctx, budgets, solve_run(run, budgets))
        return
    measure_the_best(ctx, budgets)
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
    lines = describe_solution(ctx.run, solution, budgets)
    for line in lines:
        ctx.display.say(line)
    found = {name: value for name, value in solution.to_dict().items() if name not in ("scale", "frontier")}
    ctx.run.journal.append("answer", budgets_key(budgets), scale=solution.scale.as_tuple(), solution=found, lines=lines)


def kept(run: Run) -> bool:
    """Whether the answer's final files, as measured, keep the current budgets within the measured spread."""
    problem = Problem(run, current_budgets(run))
    answer = run.journal.get("answer", budgets_key(problem.budgets))
    return answer is not None and not problem.missed(scale_of(answer))
