"""``mobileprune optimize``: the whole journey."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobileprune.commands.common import budget_option, context_of, json_option, print_summary, resumable
from mobileprune.errors import MobilepruneError, UsageError

if TYPE_CHECKING:
    from mobileprune.run import Run


@click.command(short_help="The whole journey, from a trained CNN to measured files.")
@click.option("--model", help="NAME, torchvision:NAME, timm:NAME or path/to/file.py:factory.  [default: resnet20]")
@click.option("--model-arg", "model_arguments", multiple=True, metavar="KEY=VALUE", help="Passed to the constructor.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Trained weights (.safetensors, or a torch file).")
@click.option("--data", help="digits, a folder of class folders, or an .npz file.  [default: digits]")
@click.option("--image-size", type=click.IntRange(8), help="Side in pixels at which the base sees images.")
@click.option("--device", help="A device profile, such as host.  [default: host]")
@budget_option()
@click.option("--run", "path", type=click.Path(path_type=Path), help="Run folder; an existing one is continued.")
@click.option("--probes", type=click.IntRange(4, 64), help="How many scales are probed at most.  [default: 8]")
@click.option("--confidence", type=click.FloatRange(0, 1, True, True), help="That the budget is kept.  [default: 0.8]")
@click.option("--profile-scales", type=click.IntRange(10, 64), help="How many scales are measured.  [default: 12]")
@click.option("--rounds", type=click.IntRange(2, 100), help="Measuring rounds of every file.  [default: 7]")
@click.option("--round-seconds", type=click.FloatRange(0), help="Least time of a file in a round.  [default: 0.25]")
@click.option("--base-epochs", type=click.IntRange(0), help="Training of the base.  [default: 20; 0 with weights]")
@click.option("--probe-epochs", type=click.IntRange(1), help="Fine-tuning of each probe.  [default: 4]")
@click.option("--epochs", type=click.IntRange(1), help="Fine-tuning of the result.  [default: 16]")
@click.option("--batch-size", type=click.IntRange(2), help="[default: 64]")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), help="Of the base.  [default: 0.1; 0.02 with weights]"
)
@click.option("--finetune-learning-rate", type=click.FloatRange(0, min_open=True), help="[default: 0.02]")
@click.option("--distillation", type=click.FloatRange(0, 1), help="Weight of the base's answers.  [default: 0.5]")
@click.option("--seed", type=click.IntRange(0), help="Fixes splits, weights and order.  [default: 0]")
@json_option
def optimize(path: Path | None, budgets: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """From a trained CNN to a smaller one that keeps the budget on the device: files, measurements and a report.

    \b
    Example:  mobileprune optimize --device host --budget 50% --run runs/demo
    """
    from mobileprune.budget import parse_budgets
    from mobileprune.request import Request, open_or_create
    from mobileprune.run import locked

    asked = parse_budgets(budgets)
    request = Request(**flags)
    path = path or _default_folder(request)
    if not asked and not (path / "run.toml").exists():
        raise UsageError("no --budget: say what must hold, for example --budget 50% or --budget 12ms")
    with resumable("optimize", "--run", path), locked(path):
        run = open_or_create(path, request)
        try:
            _journey(run, budgets, as_json)
        except UsageError:
            run.discard_if_unbegun()
            raise


def _default_folder(request: Any) -> Path:
    """A new folder under runs/ named after the model, the data and a number; never an existing one."""
    model = (request.model or "resnet20").rpartition(":")[2]
    stem = f"{model}-{Path(request.data or 'digits').stem}"
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def _journey(run: Run, budgets: tuple[str, ...], as_json: bool) -> None:
    from mobileprune.optimize import optimize as whole_journey
    from mobileprune.stages.solve import current_budgets, set_budgets

    if budgets:
        set_budgets(run, budgets)
    current_budgets(run)  # says so now where there is none
    kept = whole_journey(context_of(run))
    print_summary(run, as_json)
    if not kept:
        raise MobilepruneError(
            f"the result in {run.path} misses its budget as measured; ask for more certainty with --confidence 0.95 in "
            "a new run, or give the same command again when the device is quieter"
        )
