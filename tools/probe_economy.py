"""What short probes are worth: whether they rank scales as long ones do, and what starting from an ancestor saves.

    .venv/bin/python tools/probe_economy.py --shared ../shared [--images 6000] [--long-epochs 12]

One run of mobileprune on CIFAR-10 makes its probes as it always does: few epochs each, on one subset, every one cut
from the nearest scale that was probed before (chains; arXiv 2010.04879, 3.3). The same scales are then cut from the
base in one step and trained on the same subset for --long-epochs, and those that come from another probe also for as
many epochs as it took (one-shot at equal cost). Said are the rank correlation of short and long probes, what chains
gain at equal cost and save at equal accuracy, and what all probes cost as a share of one training of the base (20
epochs of all images). Costs are counted: images times MACs of a step, which is three forward passes of the network and
one of its teacher.

Rows go to the table as they are done, and rows that are there are not done again, so a stopped run goes on. What was
found is also written beside the table, as text.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy.stats import spearmanr
from tables import Table

from mobileprune.progress import Terminal
from mobileprune.request import Request, open_or_create
from mobileprune.run import locked
from mobileprune.scale import BASE, Scale
from mobileprune.stages.context import Context
from mobileprune.stages.probe import probe
from mobileprune.stages.profile import profile
from mobileprune.stages.prune import cut
from mobileprune.stages.records import read_costs, scale_key, scale_of
from mobileprune.stages.remaining import FULL_EPOCHS, probe_cost
from mobileprune.stages.solve import set_budgets
from mobileprune.stages.train import forget, scores, train

_COLUMNS = ("network", "images", "kind", "epochs", "scale", "parent", "macs", "validation", "std", "seconds")
_KEY = ("network", "images", "kind", "epochs", "scale")
_CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}

Row = dict[str, str]


def opened(arguments: argparse.Namespace) -> Context:
    """The run, with its base trained and its scales measured."""
    shared: Path = arguments.shared
    request = Request(
        model=f"{shared}/models/resnet_cifar.py:{arguments.network}",
        checkpoint=shared / "data/checkpoints" / _CHECKPOINTS[arguments.network],
        data=str(shared / "data/cifar10_jpeg.npz"),
        base_epochs=arguments.base_epochs,
        probes=arguments.probes,
        probe_images=arguments.images,
        profile_scales=10,
    )
    run = open_or_create(arguments.work / f"{arguments.network}-{arguments.images}", request)
    set_budgets(run, [arguments.budget])
    ctx = Context(run, Terminal(Console(stderr=True)))
    profile(ctx)
    return ctx


def row_of(ctx: Context, arguments: argparse.Namespace, kind: str, epochs: int, scale: Scale, parent: Scale) -> Row:
    costs = read_costs(ctx.run)
    return {
        "network": arguments.network,
        "images": str(arguments.images),
        "kind": kind,
        "epochs": str(epochs),
        "scale": scale_key(scale),
        "parent": scale_key(parent),
        "macs": f"{costs[scale]['macs'] / costs[BASE]['macs']:.4f}",
        "validation": "",
        "std": "",
        "seconds": "",
    }


def scored(row: Row, score: dict[str, Any], seconds: float | None) -> Row:
    found = {"validation": f"{100 * score['accuracy']:.2f}", "std": f"{100 * score['std']:.2f}"}
    return row | found | {"seconds": "" if seconds is None else f"{seconds:.0f}"}


def chains(ctx: Context, table: Table, arguments: argparse.Namespace) -> list[tuple[Scale, Scale]]:
    """The probes that the run makes by itself; their scales, and those that they were cut from."""
    probe(ctx)
    epochs = ctx.schedule("probe").epochs
    found = []
    for entry in ctx.run.journal.all("probe"):
        scale, parent = scale_of(entry), Scale(*entry["parent"])
        row = row_of(ctx, arguments, "chain", epochs, scale, parent)
        if row not in table:
            table.add(scored(row, entry["validation"], None))
        found.append((scale, parent))
    return found


def one_shot(ctx: Context, table: Table, arguments: argparse.Namespace, scale: Scale, epochs: int) -> None:
    """``scale`` cut from the base in one step, and trained for so many epochs."""
    row = row_of(ctx, arguments, "one-shot", epochs, scale, BASE)
    if row in table:
        return
    start, name = time.monotonic(), f"one-shot-{epochs} at {scale}"
    network = cut(ctx, scale, BASE)
    view = ctx.view_at(network.size)
    train(ctx, network.model, view, "probe", name, distill=True, epochs=epochs, recipe=network.recipe)
    table.add(scored(row, scores(ctx, network.model, view, test=False)["validation"], time.monotonic() - start))
    forget(ctx, name)


def findings(rows: list[Row], epochs: int, long_epochs: int) -> list[str]:
    """What the rows of one network and subset come to, in sentences."""

    def accuracies(kind: str, epochs: int) -> dict[str, float]:
        return {r["scale"]: float(r["validation"]) for r in rows if (r["kind"], r["epochs"]) == (kind, str(epochs))}

    chain = [row for row in rows if row["kind"] == "chain"]
    short, long = accuracies("chain", epochs), accuracies("one-shot", long_epochs)
    both = [scale for scale in short if scale in long]
    rank = spearmanr([short[s] for s in both], [long[s] for s in both])
    found = [
        f"rank correlation (Spearman) of probes of {epochs} and of {long_epochs} epochs: {rank.statistic:.3f} "
        f"over {len(both)} scales (p = {rank.pvalue:.2g})"
    ]
    descended = [row["scale"] for row in chain if row["parent"] != scale_key(BASE)]
    if not descended:
        return [*found, "no probe descends from another: chains save nothing here"]
    tried = sorted({int(row["epochs"]) for row in rows if row["kind"] == "one-shot"})
    iterative = float(np.mean([short[s] for s in descended]))
    means = [float(np.mean([accuracies("one-shot", e)[s] for s in descended])) for e in tried]
    found.append(
        f"{len(descended)} probes cut from another one: {iterative:.2f} % in {epochs} epochs; one-shot from the base: "
        + ", ".join(f"{mean:.2f} % in {e}" for e, mean in zip(tried, means, strict=True))
    )
    return [*found, _saving(epochs, iterative, tried, means)]


def _saving(epochs: int, iterative: float, tried: list[int], means: list[float]) -> str:
    """How many epochs from scratch are worth ``epochs`` of a chain: between those tried, by their logarithm."""
    if iterative > max(means):
        return f"at equal accuracy chains save more than {max(tried) / epochs:.1f}x: {max(tried)} epochs do not do"
    if iterative <= means[0]:
        return "chains save nothing at equal accuracy"
    rising = np.maximum.accumulate(means)
    needed = float(np.exp(np.interp(iterative, rising, np.log(tried))))
    return f"at equal accuracy {epochs} epochs of a chain are worth {needed:.1f} from the base: {needed / epochs:.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--network", choices=sorted(_CHECKPOINTS), default="resnet20")
    parser.add_argument("--images", type=int, default=6_000, help="training images of every probe")
    parser.add_argument("--long-epochs", type=int, default=12)
    parser.add_argument("--base-epochs", type=int, default=2, help="on the JPEG images")
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--work", type=Path, default=Path("runs/economy"))
    parser.add_argument("--csv", type=Path, default=Path("results/probe_economy.csv"))
    arguments = parser.parse_args()
    command = f"python tools/probe_economy.py --images {arguments.images} --long-epochs {arguments.long_epochs}"
    table = Table(arguments.csv, _COLUMNS, _KEY, command)
    with locked(arguments.work):
        ctx = opened(arguments)
        scales = chains(ctx, table, arguments)
        epochs = ctx.schedule("probe").epochs
        for scale, parent in scales:
            if parent != BASE:  # from the base it is the chain's own
                one_shot(ctx, table, arguments, scale, epochs)
        for scale, _ in scales:
            one_shot(ctx, table, arguments, scale, arguments.long_epochs)
    mine = [r for r in table.rows if (r["network"], r["images"]) == (arguments.network, str(arguments.images))]
    found = findings(mine, epochs, arguments.long_epochs)
    found.append(f"all probes cost {100 * probe_cost(ctx.run):.1f} % of {FULL_EPOCHS} epochs of the base on all images")
    text = "\n".join([f"{arguments.network}, {arguments.images} images, {command}", *found]) + "\n"
    arguments.csv.with_suffix(".txt").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
