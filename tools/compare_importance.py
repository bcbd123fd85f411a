"""Which channels stay and what becomes of the weights that are left: every criterion, measured on the base of a run.

    .venv/bin/python tools/compare_importance.py RUN --scales 1,0.8,0.7 1,0.69,1 --csv results/reconstruction.csv

RUN is a run folder with a trained base, such as compare_methods.py leaves. The base is cut to each scale by every
importance, with its weights as they were and reconstructed, its norm statistics are estimated anew, and it is scored
on images of the validation split before any training. --train names the importances that are also trained as a probe
of the run is, and then scored on the whole validation split. --ridges tries other ridges of the reconstruction.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from tables import Table

from mobileprune.commands.common import context_of
from mobileprune.pruning import moments
from mobileprune.pruning.importance import Criterion
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import prune
from mobileprune.run import Run
from mobileprune.scale import Scale
from mobileprune.stages.context import Context
from mobileprune.stages.prune import calibration
from mobileprune.stages.train import teacher_of
from mobileprune.training.evaluate import evaluate
from mobileprune.training.finetune import fit

COLUMNS = (
    "run", "depth", "width", "resolution", "macs_share", "importance", "reconstructed", "ridge", "accuracy_untrained",
    "std_untrained", "accuracy_trained", "std_trained", "prune_s",
)  # fmt: skip
KEY = ("run", "depth", "width", "resolution", "importance", "reconstructed", "ridge")


def ways(asked: argparse.Namespace) -> Iterator[tuple[Criterion, bool, float]]:
    """(importance, whether weights are reconstructed, ridge)."""
    for importance in get_args(Criterion):
        yield importance, False, moments.RIDGE
        for ridge in dict.fromkeys((moments.RIDGE, *(asked.ridges if importance == "reconstruction" else ()))):
            yield importance, True, ridge


def row(ctx: Context, scale: Scale, way: tuple[Criterion, bool, float], asked: argparse.Namespace) -> dict[str, Any]:
    importance, reconstruct, ridge = way
    usual, moments.RIDGE = moments.RIDGE, ridge
    batches, began = calibration(ctx, ctx.data.size), time.monotonic()
    try:
        pruned = prune(
            ctx.base,
            scale,
            ctx.example[:1],
            anatomy=ctx.anatomy,
            ranking=ctx.ranking,
            importance=importance,
            reconstruct=reconstruct,
            batches=batches,
        )
    finally:
        moments.RIDGE = usual
    seconds = time.monotonic() - began
    view = ctx.view_at(pruned.input_size[0])
    reestimate_norms(pruned.model, (seen for seen, _ in replace(batches, view=view)))
    few = evaluate(pruned.model, ctx.data.validation.sample(asked.images, ctx.seed), view)
    found: dict[str, Any] = dict(
        zip(("depth", "width", "resolution"), (f"{v:.3f}" for v in pruned.scale.as_tuple()), strict=True)
    )
    found |= {"run": asked.run.name, "macs_share": f"{pruned.macs:.3f}", "importance": importance, "ridge": ridge}
    found |= {"reconstructed": reconstruct, "prune_s": f"{seconds:.1f}"}
    found |= {"accuracy_untrained": f"{few.accuracy:.4f}", "std_untrained": f"{few.std:.4f}"}
    if importance in asked.train and ridge == usual:
        model = copy.deepcopy(pruned.model)
        fit(model, ctx.data, view, ctx.schedule("probe"), seed=ctx.seed, teacher=teacher_of(ctx))
        score = evaluate(model, ctx.data.validation, view)
        found |= {"accuracy_trained": f"{score.accuracy:.4f}", "std_trained": f"{score.std:.4f}"}
    return dict.fromkeys(COLUMNS, "") | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scales", nargs="+", required=True, help="depth,width,resolution")
    parser.add_argument("--images", type=int, default=1000, help="of the validation split, for untrained networks")
    parser.add_argument("--train", nargs="*", default=[], help="importances")
    parser.add_argument("--ridges", type=float, nargs="*", default=[])
    parser.add_argument("--csv", type=Path, required=True)
    asked = parser.parse_args()
    ctx = context_of(Run.open(asked.run))
    table = Table(asked.csv, COLUMNS, KEY, f"python {' '.join(sys.argv)}")
    for text in asked.scales:
        for way in ways(asked):
            found = row(ctx, Scale(*map(float, text.split(","))), way, asked)
            table.add(found)
            print(" ".join(str(found[key]) for key in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
