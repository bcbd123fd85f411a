"""Which form of the accuracy surface would have foretold best what runs found next.

    .venv/bin/python tools/compare_forms.py runs/comparison/cifar10-resnet56-seed0 --csv results/surrogate_forms.csv

Each later probe and each result of a run is predicted from all that the run had found before it, by each form alone and
by the one that would have been chosen; nothing is trained. These are the scales that decisions are about. Leaving out
one sample after another weighs the far corners instead, where most of that error is. A run of which no losses before
training were measured has no figures of the form that needs them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tables import Table

from mobileprune.run import Run
from mobileprune.search.curves import LossCurves
from mobileprune.search.forms import NAMES
from mobileprune.search.recovery import fit_recovery
from mobileprune.stages.accuracies import Sample, accuracy_samples
from mobileprune.stages.losses import loss_curves

_CHOSEN, _NEEDS_CURVES = "auto", "loss-curves"
_DESIGNED = 7  # the base and the probes that are planned without a surrogate
_COLUMNS = ("run", "samples", "depth", "width", "resolution", "trainings", "found", "std", _CHOSEN, *NAMES)


def findings(run: Run) -> Iterator[tuple[list[Sample], Sample]]:
    """Each probe and each result behind the design, in the order in which they came, with all that was known before.

    ``run`` is read alone: its journal in memory is cut back to the time of each.
    """
    whole, before = list(run.journal.entries), list[Sample]()
    for end in range(1, len(whole) + 1):
        if whole[end - 1]["kind"] not in ("base", "probe", "finetuned"):
            continue
        run.journal.entries = whole[:end]
        now = accuracy_samples(run)
        new = [sample for sample in now if sample not in before]
        if len(before) >= _DESIGNED and len(new) == 1:
            yield before, new[0]
        before = now


def foretold(known: Sequence[Sample], wanted: Sample, form: str, curves: LossCurves | None) -> float:
    """The accuracy (a fraction) that ``form`` expects at the scale of ``wanted`` after as much training."""
    recovery = fit_recovery(
        [s.scale for s in known],
        [s.accuracy for s in known],
        [s.std for s in known],
        [s.epochs for s in known],
        form,
        curves,
    )
    mean, std = recovery.surrogate.estimate([wanted.scale])
    return float(recovery.after(mean, std, [wanted.epochs])[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    table = Table(options.csv, _COLUMNS, ("run", "samples"), f"python {' '.join(sys.argv)}")
    for path in options.runs:
        run = Run.open(path)
        curves = loss_curves(run)
        names = [name for name in (_CHOSEN, *NAMES) if curves or name != _NEEDS_CURVES]
        for known, found in findings(run):
            row = dict.fromkeys(NAMES, "") | {n: f"{foretold(known, found, n, curves):.4f}" for n in names}
            scale = dict(
                zip(("depth", "width", "resolution"), (f"{v:.4f}" for v in found.scale.as_tuple()), strict=True)
            )
            numbers = {"trainings": f"{found.epochs:g}", "found": f"{found.accuracy:.4f}", "std": f"{found.std:.4f}"}
            table.add({"run": path.name, "samples": len(known), **scale, **numbers, **row})
    for name in (_CHOSEN, *NAMES):
        errors = np.array([float(row[name]) - float(row["found"]) for row in table.rows if row.get(name)])
        print(
            f"{name:<14} off by {100 * np.abs(errors).mean():.2f} points, {100 * np.sqrt(np.mean(errors**2)):.2f} rms"
        )


if __name__ == "__main__":
    main()
