"""``mobileprune solve``: the best scale under a budget, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mobileprune.commands.common import budget_option, json_option, print_lines
from mobileprune.errors import UsageError


@click.command(short_help="The best scale under a budget, without training.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False), metavar="[RUN]", required=False)
@click.option("--accuracy", type=click.Path(path_type=Path), help="A table: depth,width,resolution,accuracy[,std].")
@click.option("--latency", type=click.Path(path_type=Path), help="A table: depth,width,resolution,latency_ms[,device].")
@budget_option()
@click.option(
    "--choose-from",
    type=click.Choice(["latency", "space"]),
    default="latency",
    show_default=True,
    help="With tables: a row of the latency table, or any scale between them.",
)
@click.option("--confidence", type=click.FloatRange(0, 1, True, True), help="That the budget is kept.  [default: 0.8]")
@click.option("--surrogate", default="auto", show_default=True, help="auto, polynomial (the paper's) or another form.")
@json_option
def solve(
    run: Path | None, accuracy: Path | None, latency: Path | None, budgets: tuple[str, ...], as_json: bool, **how: Any
) -> None:
    """Say which scale is best under a budget, at once and without training: of RUN's journal, or of your own tables.

    \b
    Example:  mobileprune solve runs/demo --budget 30%
              mobileprune solve --accuracy acc.csv --latency lat.csv --budget 24ms
    """
    how = {name: value for name, value in how.items() if value is not None}
    if run is None:
        if accuracy is None or latency is None:
            raise UsageError("nothing to solve: name a run folder, or give both --accuracy and --latency tables")
        from mobileprune.search.tables import solve_tables
        from mobileprune.search.words import describe_answer

        answer = solve_tables(accuracy, latency, budgets, **how)
        lines = describe_answer(answer)
    else:
        if accuracy is not None or latency is not None:
            raise UsageError(f"both the run {run} and tables were given: solve one or the other")
        from mobileprune.budget import parse_budgets
        from mobileprune.run import Run
        from mobileprune.stages.solve import current_budgets, describe_solution, solution_dict, solve_run

        opened = Run.open(run)
        asked = parse_budgets(budgets) or current_budgets(opened)
        solution = solve_run(opened, asked, how.get("confidence"), how["surrogate"])
        answer = solution_dict(opened, solution)
        lines = describe_solution(opened, solution, asked, how["surrogate"])
    print_lines([json.dumps(answer, indent=1)] if as_json else lines)
