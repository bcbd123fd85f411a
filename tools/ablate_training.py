"""What each ingredient of fine-tuning brings: one pruned network, the recipe changed in one thing at a time.

    .venv/bin/python tools/ablate_training.py --data ../shared/data/cifar10_jpeg.npz [--networks resnet20 resnet56]

The network is pruned once, in all three dimensions together, to the scale that should take half of the latency of the
base; every row fine-tunes it anew from those weights, for the same epochs. Rows go to the table as they are done, and
rows that are there are not done again, so a stopped run goes on. The base and the latencies stay in --work.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mobileprune.progress import Terminal
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.request import Request, open_or_create
from mobileprune.scale import BASE
from mobileprune.stages.context import Context
from mobileprune.stages.profile import profile
from mobileprune.stages.prune import Network, cut
from mobileprune.stages.solve import current_budgets, plan_probes, set_budgets
from mobileprune.training.evaluate import evaluate
from mobileprune.training.finetune import Teacher, fit
from mobileprune.training.memory import parts
from mobileprune.training.rates import find_rate
from mobileprune.training.schedule import AUTO, Schedule

_COLUMNS = (
    "network", "scale", "epochs", "images", "ingredient", "seed", "learning_rate", "validation", "test", "std",
    "seconds",
)  # fmt: skip
_NORM_IMAGES = 1024


@dataclass(frozen=True)
class Row:
    """One change to the recipe. rate: the learning rate, or "auto" for a range test. norms: statistics taken anew."""

    name: str
    change: dict[str, Any]
    rate: float | str | None = None
    norms: bool = False


ROWS = (
    Row("recipe", {}),
    Row("no distillation", {"distillation": 0.0}),
    Row("distillation alone", {"distillation": 1.0}),
    Row("no label smoothing", {"label_smoothing": 0.0}),
    Row("no warm-up", {"warm_up": 0.0}),
    Row("no weight decay", {"weight_decay": 0.0}),
    Row("linear schedule", {"shape": "linear"}),
    Row("constant rate", {"shape": "constant"}),
    Row("average of weights .999", {"ema": 0.999}),
    Row("mixup .2", {"mixup": 0.2}),
    Row("cutmix 1", {"cutmix": 1.0}),
    Row("norms re-estimated", {}, norms=True),
    Row("rate by range test", {}, rate=AUTO),
    Row("half the rate", {}, rate=0.01),
    Row("twice the rate", {}, rate=0.04),
    Row("adamw, rate by range test", {"optimizer": "adamw", "weight_decay": 0.02}, rate=AUTO),
    Row("lamb, rate by range test", {"optimizer": "lamb", "weight_decay": 0.02}, rate=AUTO),
)


def prepare(network: str, arguments: argparse.Namespace) -> tuple[Context, Network, str]:
    """The run with its trained base, and the network pruned to half of the latency."""
    request = Request(
        model=network, data=str(arguments.data), base_epochs=arguments.base_epochs, profile_scales=arguments.scales
    )
    run = open_or_create(arguments.work / network, request)
    set_budgets(run, ["50%"])
    ctx = Context(run, Terminal(Console(stderr=True)))
    profile(ctx)
    (scale,) = plan_probes(run, current_budgets(run), 1)  # all dimensions together, to where the budget is just kept
    return ctx, cut(ctx, scale, BASE), str(scale)


def finetuned(ctx: Context, pruned: Network, row: Row, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune a copy of ``pruned`` as ``row`` says; what the table is to hold of it."""
    model, view = copy.deepcopy(pruned.model).to(ctx.device), ctx.view_at(pruned.size)
    data = replace(ctx.data, train=ctx.data.train.sample(arguments.images, ctx.seed))
    teacher = Teacher(copy.deepcopy(ctx.base).to(ctx.device).eval(), ctx.view)
    schedule: Schedule = replace(ctx.schedule("result"), epochs=arguments.epochs, **row.change)
    start = time.monotonic()
    if row.rate == AUTO:
        found = find_rate(model, data, view, schedule, seed=seed, teacher=teacher)
        schedule = replace(schedule, learning_rate=found.rate)
    elif row.rate is not None:
        schedule = replace(schedule, learning_rate=float(row.rate))
    fit(model, data, view, schedule, seed=seed, teacher=teacher, say=ctx.display.say)
    if row.norms:
        few = data.train.sample(_NORM_IMAGES, seed).images
        reestimate_norms(model, (view(part.to(ctx.device)) for part in parts(few, 128)))
    seconds = time.monotonic() - start
    validation = evaluate(model, ctx.data.validation, view)
    test = evaluate(model, ctx.data.test, view) if ctx.data.test is not None else validation
    return {
        "learning_rate": f"{schedule.learning_rate:g}",
        "validation": f"{100 * validation.accuracy:.2f}",
        "test": f"{100 * test.accuracy:.2f}",
        "std": f"{100 * test.std:.2f}",
        "seconds": f"{seconds:.0f}",
    }


def known_rows(path: Path) -> set[tuple[str, ...]]:
    """What the table already holds: network, epochs, images, ingredient and seed of each row."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {tuple(row[name] for name in ("network", "epochs", "images", "ingredient", "seed")) for row in rows}


def append(path: Path, row: dict[str, Any], command: Sequence[str]) -> None:
    """Add a row, after the command and the header where the table is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if new:
            file.write(f"# {' '.join(command)}\n")
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--base-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=3, help="of every row")
    parser.add_argument("--images", type=int, default=1 << 30, help="training images of every row  [default: all]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scales", type=int, default=12, help="how many are measured for the latency")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], help="these ingredients alone")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--csv", type=Path, default=Path("results/training_ingredients.csv"))
    arguments = parser.parse_args()
    command = ["python", "tools/ablate_training.py", "--data", arguments.data.name, "--epochs", str(arguments.epochs)]
    for network in arguments.networks:
        ctx, pruned, scale = prepare(network, arguments)
        images = min(arguments.images, len(ctx.data.train))
        for seed in range(arguments.seeds):
            for row in ROWS:
                key = (network, str(arguments.epochs), str(images), row.name, str(seed))
                if key in known_rows(arguments.csv) or (arguments.only and row.name not in arguments.only):
                    continue
                found = finetuned(ctx, pruned, row, seed, arguments)
                names = ("network", "epochs", "images", "ingredient", "seed")
                append(arguments.csv, {**dict(zip(names, key, strict=True)), "scale": scale, **found}, command)
                accuracy = f"{found['test']} ± {found['std']} % (test)"
                print(f"{network}, seed {seed}, {row.name}: {accuracy}, {found['seconds']} s")


if __name__ == "__main__":
    main()
