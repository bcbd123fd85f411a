"""Candidates: scales that may be the answer are timed, untrained, as that takes seconds."""

from __future__ import annotations

from collections.abc import Sequence

from mobileprune.budget import Budget, shown
from mobileprune.scale import BASE, Scale
from mobileprune.stages.context import Context
from mobileprune.stages.problem import Problem, careful_rounds
from mobileprune.stages.profile import export_for_timing, measure, record, shaped
from mobileprune.stages.records import scale_key
from mobileprune.stages.solve import worth_hoping, worth_measuring

_TOGETHER = 3  # candidates measured in the same rounds
_HOPES = 3  # times that those are measured before a probe that may be worth it
_TRIES = 12  # times that candidates are measured on end, at most: seconds each, as weights do not matter for time


def to_be_measured(budgets: Sequence[Budget]) -> bool:
    """Whether candidates must be measured at all: what is counted is known."""
    return any(budget.quantity in ("latency", "size") for budget in budgets)


def measure_hopefuls(ctx: Context, budgets: Sequence[Budget]) -> None:
    """Time the scales that may be worth a probe, if only they keep the budgets."""
    for _ in range(_HOPES):
        candidates = worth_hoping(ctx.run, budgets, _TOGETHER)
        if not candidates:
            return
        measure_candidates(ctx, candidates, budgets)


def measure_the_best(ctx: Context, budgets: Sequence[Budget]) -> None:
    """Time candidates until the best of those that keep the budgets, by its predicted accuracy, is a measured one."""
    for _ in range(_TRIES):
        candidates = worth_measuring(ctx.run, budgets, _TOGETHER)
        if not candidates:
            return
        measure_candidates(ctx, candidates, budgets)


def measure_candidates(ctx: Context, scales: Sequence[Scale], budgets: Sequence[Budget]) -> None:
    """Time ``scales`` and the base in the same rounds, in more of them where one was; the samples go to the journal."""
    again = any(ctx.run.journal.get("latency", scale_key(scale)) for scale in scales)
    folder = ctx.folder("profile")
    files = {scale_key(s): folder / f"{scale_key(s)}.{ctx.timing_format}" for s in (BASE, *scales)}
    for which, path in zip((BASE, *scales), files.values(), strict=True):
        model, size = shaped(ctx, which)
        export_for_timing(ctx, model, size, path)
    measured = measure(ctx, files, scale_key(BASE), careful_rounds(ctx.run) if again else 0).measurements
    record(ctx, measured, {scale_key(s): (s, files[scale_key(s)].stat().st_size) for s in scales})
    for path in files.values():
        path.unlink()
    problem = Problem(ctx.run, tuple(budgets))
    for scale in scales:
        found = measured[scale_key(scale)]
        kept = "keeps the budget" if problem.probably_kept(scale) else "may keep the budget or miss it"
        verdict = "misses the budget" if problem.missed(scale) else kept
        ctx.display.say(f"{scale} {found.origin}: {shown('latency', found.latency_ms)}, {verdict}")
