"""The journey: profile, probe, solve, prune, finetune, export, bench, report."""

from __future__ import annotations

from mobileprune.stages.bench import bench
from mobileprune.stages.context import Context
from mobileprune.stages.export import export
from mobileprune.stages.finetune import finetune
from mobileprune.stages.probe import probe
from mobileprune.stages.profile import profile
from mobileprune.stages.prune import prune
from mobileprune.stages.report import report
from mobileprune.stages.settle import kept, settle

_TRIES = 3  # how often a result that misses its budget when it is measured at the end is replaced


def optimize(ctx: Context) -> bool:
    """Take the run from wherever it stands to a measured result that keeps its budgets, and its report.

    What the journal already holds is not done again. Returns whether the result, as measured, keeps the budgets.
    Raises UsageError where no scale can keep them.
    """
    profile(ctx)
    probe(ctx)
    for _ in range(_TRIES):
        settle(ctx)
        prune(ctx)
        finetune(ctx)
        export(ctx)
        bench(ctx)
        if kept(ctx.run):
            break
        ctx.display.say("the measured result misses the budget: its sample is added and the problem solved again")
    report(ctx)
    return kept(ctx.run)
