"""The commands of single stages (``stages/NAME.py``), and ``status``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mobileprune.commands.common import budget_option, json_option, run_argument, run_stage


def _stage(name: str, short: str, what: str, *steps: str) -> click.Command:
    """The command of one stage (``stages/NAME.py``, or ``steps``): it does on a run folder what is not done yet."""

    def command(run: Path, budgets: tuple[str, ...], as_json: bool) -> None:
        run_stage(run, name, steps or (name,), budgets, as_json)

    command.__doc__ = f"{what}\n\n\b\nExample:  mobileprune {name} runs/demo"
    return click.command(name, short_help=short)(run_argument(budget_option()(json_option(command))))


probe = _stage(
    "probe",
    "Accuracy of a few scales.",
    "Prune and briefly fine-tune a few scales of RUN to learn what accuracy they keep.",
)
prune = _stage(
    "prune",
    "Settle on a scale and cut it.",
    "Settle on a scale of RUN that keeps the budget, measured, and cut it from the nearest probe.",
    "settle",
    "prune",
)
finetune = _stage("finetune", "Train the pruned network.", "Fine-tune the pruned network of RUN.")
report = _stage("report", "Write report.html.", "Write RUN's report.html from what its journal holds.")


@click.command(short_help="How far RUN is, and what comes next.")
@run_argument
@json_option
def status(run: Path, as_json: bool) -> None:
    """Say what RUN has finished, and what comes next; also while another process works on it.

    \b
    Example:  mobileprune status runs/demo
    """
    from mobileprune.run import Run
    from mobileprune.stages.summary import status as status_of

    found = status_of(Run.open(run))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for stage in found["stages"]:
        click.echo(f"{stage['name']:>9}  {stage['state']}")
    if training := found["training"]:
        pace = f"{training['images_per_s']:,.0f} images/s, {training['left']} of training left in all"
        click.echo(f"{'training':>9}  {training['name']}: epoch {training['epoch']} is done, {pace}")
    click.echo(f"{'next':>9}  {found['next']}")
