"""Report: report.html from what the journal holds."""

from __future__ import annotations

import shlex

from mobileprune.report.page import page
from mobileprune.request import words_of
from mobileprune.run import Run, write_text
from mobileprune.stages.context import Context
from mobileprune.stages.evidence import evidence
from mobileprune.stages.records import scale_key
from mobileprune.stages.solve import chosen, chosen_scale, current_budgets
from mobileprune.stages.summary import summarise


def report(ctx: Context) -> None:
    """Write ``report.html`` for the current budgets into the run folder."""
    run = ctx.run
    path, summary = run.path / "report.html", summarise(run)
    found, missing = evidence(ctx)
    write_text(path, page(summary, found, chosen(run)["lines"], run.asked, command_of(run), missing))
    ctx.display.stage("report", str(path))
    run.journal.append("report", scale_key(chosen_scale(run)), path=path.name)


def command_of(run: Run) -> str:
    """The command line that makes the run again, for its current budgets."""
    if run.asked["model"]["library"] == "module":
        texts = ", ".join(repr(budget.text) for budget in current_budgets(run))
        return f"mobileprune.optimize(model, data, normalisation=(mean, std), budget=({texts},), **options)"
    budgets = [word for budget in current_budgets(run) for word in ("--budget", budget.text)]
    return shlex.join(["mobileprune", "optimize", *words_of(run.asked), *budgets])
