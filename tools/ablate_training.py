"""What each ingredient of fine-tuning brings: one pruned network, the recipe changed in one thing at a time.

    .venv/bin/python tools/ablate_training.py --shared ../shared [--networks resnet20 resnet56]

The network is pruned once, in all three dimensions together, to the scale that should take half of the latency of the
base; every row fine-tunes it anew from those weights, for the same epochs. The reference has a fixed rate of 0.02; a
run finds its rate by a range test unless told otherwise, which is one of the rows. Rows go to the table as they are
done, and rows that are there are not done again, so a stopped run goes on. The base and the latencies stay in --work.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from tables import Table

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
_KEY = ("network", "epochs", "images", "ingredient", "seed")
_NORM_IMAGES = 1024
_REFERENCE_RATE = 0.02
_CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}


@dataclass(frozen=True)
class Row:
    """One change to the recipe. rate: the learning rate, or "auto" for a range test. norms: statistics taken anew."""

    name: str
    change: dict[str, Any]
    rate: float | str | None = None
    norms: bool = False


ROWS = (
    Row("reference", {}),
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
    Row("four times the rate", {}, rate=0.08),
    Row("rate by range test, distillation alone", {"distillation": 1.0}, rate=AUTO),
    Row("rate by range test, distillation .8", {"distillation": 0.8}, rate=AUTO),
    Row("rate by range test, constant rate", {"shape": "constant"}, rate=AUTO),
    Row("adamw, rate by range test", {"optimizer": "adamw", "weight_decay": 0.02}, rate=AUTO),
    Row("lamb, rate by range test", {"optimizer": "lamb", "weight_decay": 0.02}, rate=AUTO),
)


def prepare(network: str, arguments: argparse.Namespace) -> tuple[Context, Network, str]:
    """The run with its trained base, and the network pruned to half of the latency."""
    shared = arguments.shared.resolve()
    request = Request(
        model=f"{shared}/models/resnet_cifar.py:{network}",
        checkpoint=shared / "data" / "checkpoints" / _CHECKPOINTS[network],
        data=f"{shared}/data/cifar10_jpeg.npz",
        base_epochs=arguments.base_epochs,
        profile_scales=arguments.scales,
        batch_size=128,
        finetune_learning_rate=_REFERENCE_RATE,
    )
    run = open_or_create(arguments.work / network, request)
    set_budgets(run, ["50%"])
    ctx = Context(run, Terminal(Console(stderr=True)))
    profile(ctx)
    (scale,) = plan_probes(run, current_budgets(run))[:1]  # all dimensions together, to where the budget is just kept
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the data, checkpoints and models")
    parser.add_argument("--networks", nargs="+", choices=_CHECKPOINTS, default=list(_CHECKPOINTS))
    parser.add_argument("--base-epochs", type=int, default=2, help="of fine-tuning the checkpoint on these images")
    parser.add_argument("--epochs", type=int, default=3, help="of every row")
    parser.add_argument("--images", type=int, default=1 << 30, help="training images of every row  [default: all]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scales", type=int, default=12, help="how many are measured for the latency")
    parser.add_argument("--only", nargs="+", metavar="INGREDIENT", help="these alone")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--csv", type=Path, default=Path("results/training_ingredients.csv"))
    arguments = parser.parse_args()
    command = ["python", "tools/ablate_training.py", "--shared", "../shared", "--epochs", str(arguments.epochs)]
    command += ["--images", str(arguments.images), "--seeds", str(arguments.seeds), "--networks", *arguments.networks]
    table = Table(arguments.csv, _COLUMNS, _KEY, " ".join(command))
    for network in arguments.networks:
        ctx, pruned, scale = prepare(network, arguments)
        images = min(arguments.images, len(ctx.data.train))
        for seed in range(arguments.seeds):
            for row in ROWS:
                key = dict(zip(_KEY, (network, arguments.epochs, images, row.name, seed), strict=True))
                if key in table or (arguments.only and row.name not in arguments.only):
                    continue
                found = finetuned(ctx, pruned, row, seed, arguments)
                table.add({**key, "scale": scale, **found})
                accuracy = f"{found['test']} ± {found['std']} % (test)"
                print(f"{network}, seed {seed}, {row.name}: {accuracy}, {found['seconds']} s")


if __name__ == "__main__":
    main()
