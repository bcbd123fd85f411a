"""``mobileprune optimize``: the whole journey."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobileprune.commands.common import (
    RateType,
    budget_option,
    context_of,
    json_option,
    make_display,
    print_out,
    print_summary,
    resumable,
    within,
)
from mobileprune.commands.configured import config_option
from mobileprune.errors import MobilepruneError, UsageError

if TYPE_CHECKING:
    from mobileprune.request import Request
    from mobileprune.run import Run


_DATA_HELP = (
    "digits, a folder or tar of class folders, an .npz file, torchvision:NAME, hf:NAME or file.py:function.  "
    "[default: digits]"
)
_SHAPES = ("cosine", "linear", "step", "constant")
_ARITHMETIC = ("auto", "float32", "bfloat16")
_PRECISIONS = ("float32", "float16", "int8")
_RATE = "A number, or auto: found by a short range test.  "


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How networks are trained; the same for base, probes and result unless it says otherwise."""
    options = (
        click.option("--batch-size", type=within("batch_size"), help="[default: 64]"),
        click.option(
            "--probe-images", type=within("probe_images"), help="Train probes on so many only.  [default: 0, all]"
        ),
        click.option("--learning-rate", type=RateType(), help=_RATE + "[default: 0.1; 0.02 with weights]"),
        click.option("--finetune-learning-rate", type=RateType(), help=_RATE + "[default: auto]"),
        click.option("--lr-schedule", type=click.Choice(_SHAPES), help="[default: cosine]"),
        click.option("--warm-up", type=within("warm_up"), help="Share of the steps.  [default: 0.1]"),
        click.option("--optimizer", help="Any of timm's.  [default: sgd]"),
        click.option("--weight-decay", type=within("weight_decay"), help="Not on norms and biases.  [default: 5e-4]"),
        click.option(
            "--distillation", type=within("distillation"), help="Weight of the base's answers.  [default: 0.5]"
        ),
        click.option("--temperature", type=within("temperature"), help="Of distillation.  [default: 3]"),
        click.option("--label-smoothing", type=within("label_smoothing"), help="[default: 0.05]"),
        click.option("--mixup", type=within("mixup"), help="[default: 0, off]"),
        click.option("--cutmix", type=within("cutmix"), help="[default: 0, off]"),
        click.option("--ema", type=within("ema"), help="Decay of averaged weights.  [default: 0, off]"),
        click.option(
            "--norm-images", type=within("norm_images"), help="For batch norm after training.  [default: 0, off]"
        ),
        click.option("--training-precision", type=click.Choice(_ARITHMETIC), help="[default: auto]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(short_help="The whole journey, from a trained CNN to measured files.")
@click.option("--model", help="NAME, torchvision:NAME, timm:NAME or path/to/file.py:factory.  [default: resnet20]")
@click.option("--model-arg", "model_arguments", multiple=True, metavar="KEY=VALUE", help="Passed to the constructor.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Trained weights (.safetensors, or a torch file).")
@click.option("--data", help=_DATA_HELP)
@click.option("--labels", help="imagenet-1k, or a file that names the model's outputs, where it has more.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where torchvision's sets lie or are put.")
@click.option("--download", is_flag=True, default=None, help="Fetch a data set by name where it is not here.")
@click.option("--image-size", type=within("image_size"), help="Side in pixels at which the base sees images.")
@click.option("--device", help="host, pixel, adb, ssh://...: see `mobileprune devices`.  [default: host]")
@budget_option()
@click.option("--run", "path", type=click.Path(path_type=Path), help="Run folder; an existing one is continued.")
@click.option(
    "--probes-from",
    type=click.Path(path_type=Path),
    help="Begin with base, probes and question of this run: for another device or precision.",
)
@click.option(
    "--probes",
    type=within("probes"),
    help="How many scales are probed at most; a further budget may add 2.  [default: 8]",
)
@click.option("--confidence", type=within("confidence"), help="That the budget is kept.  [default: 0.8]")
@click.option("--profile-scales", type=within("profile_scales"), help="How many scales are measured.  [default: 12]")
@click.option("--rounds", type=within("rounds"), help="Measuring rounds of every file.  [default: 7]")
@click.option("--round-seconds", type=within("round_seconds"), help="Least time of a file in a round.  [default: 0.25]")
@click.option("--base-epochs", type=within("base_epochs"), help="Training of the base.  [default: 20; 0 with weights]")
@click.option("--probe-epochs", type=within("probe_epochs"), help="Fine-tuning of each probe.  [default: 4]")
@click.option("--epochs", type=within("epochs"), help="Fine-tuning of the result.  [default: 16]")
@_training_options
@click.option("--precision", type=click.Choice(_PRECISIONS), help="Of the files.  [default: float32]")
@click.option("--seed", type=within("seed"), help="Fixes splits, weights and order.  [default: 0]")
@config_option()
@click.option("--dry-run", is_flag=True, help="Only say what would be done, how long it takes and how much disk.")
@json_option
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Where to train.")
@click.option("--address", help="Of a running Ray cluster.  [default: one on this machine]")
@click.option("--job-cpus", type=click.FloatRange(0, min_open=True), default=1, show_default=True, help="Of a Ray job.")
@click.option("--job-gpus", type=click.FloatRange(0), help="Of a Ray job.  [default: 1 where there are any]")
@click.option("--processes", type=click.IntRange(1), help="That train one network together.  [default: one per GPU]")
def optimize(path: Path | None, budgets: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any) -> None:
    """From a trained CNN to a smaller one that keeps the budget on the device: files, measurements and a report.

    \b
    Example:  mobileprune optimize --device host --budget 50% --run runs/demo
    """
    from mobileprune.borrow import folder_beside, open_or_borrow
    from mobileprune.budget import parse_budgets
    from mobileprune.request import Request, new_folder
    from mobileprune.run import locked

    asked = parse_budgets(budgets)
    other: Path | None = flags.pop("probes_from")
    where = [flags.pop(name) for name in ("engine", "address", "job_cpus", "job_gpus", "processes")]
    request = Request(**flags)
    path = path or (folder_beside(other) if other else new_folder(flags["model"], request.data))
    if not asked and not (path / "run.toml").exists():
        raise UsageError("no --budget: say what must hold, for example --budget 50% or --budget 12ms")
    if dry_run:
        _print_plan(path, request, budgets, other, as_json)
        return
    again = ("--probes-from", other) if other else ()
    with resumable("optimize", *again, "--run", path), locked(path):
        run = open_or_borrow(path, request, other)
        try:
            _journey(run, budgets, where, as_json)
        except UsageError:
            run.discard_if_unbegun()
            raise


def _print_plan(path: Path, request: Request, budgets: tuple[str, ...], other: Path | None, as_json: bool) -> None:
    from mobileprune.plan import plan

    with make_display().work("training", "timing one training step", 1):
        planned = plan(path, request, budgets, other)
    if as_json:
        print_out(json.dumps(planned.to_dict(), indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", min_width=9, no_wrap=True)
    table.add_column()
    for label, text in planned.rows():
        table.add_row(Text(label, style="bold cyan"), Text(text))
    print_out(table)


def _journey(run: Run, budgets: tuple[str, ...], where: Sequence[Any], as_json: bool) -> None:
    from mobileprune.optimize import optimize as whole_journey
    from mobileprune.stages.solve import current_budgets, set_budgets

    if budgets:
        set_budgets(run, budgets)
    current_budgets(run)  # says so now where there is none
    kept = whole_journey(context_of(run, where))
    print_summary(run, as_json)
    if not kept:
        raise MobilepruneError(
            f"the result in {run.path} misses its budget as measured; ask for more certainty with --confidence 0.95 in "
            "a new run, or give the same command again when the device is quieter"
        )
