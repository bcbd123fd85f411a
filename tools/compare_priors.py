"""How well results are foretold, by the prior of the exponent of training (mobileprune/search/recovery.py).

    .venv/bin/python tools/compare_priors.py runs/comparison/cifar10-resnet20-seed0 --csv results/recovery_priors.csv

Each result of a finished run is foretold from its journal as it was before that result was trained, once with each
prior; nothing is trained. What a mean foretells too low is positive.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tables import Table

from mobileprune.run import Run
from mobileprune.scale import Scale
from mobileprune.search import recovery
from mobileprune.stages.problem import Problem
from mobileprune.stages.records import scale_of

PRIORS = ((0.2, 0.04), (0.24, 0.04), (0.28, 0.04), (0.32, 0.04), (0.28, 0.06), (0.28, 0.08))  # mean, std
_COLUMNS = ("run", "scale", "prior", "prior_std", "exponent", "expected", "std", "found", "found_std")


def results(run: Run) -> Iterator[tuple[Scale, dict[str, float]]]:
    """Each result with its validation accuracy; meanwhile the journal in memory is as it was before its training."""
    whole = list(run.journal.entries)
    for end, entry in enumerate(whole):
        if entry["kind"] == "finetuned":
            run.journal.entries = whole[:end]
            yield scale_of(entry), entry["validation"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    table = Table(options.csv, _COLUMNS, ("run", "scale", "prior", "prior_std"), f"python {' '.join(sys.argv)}")
    for path in options.runs:
        for scale, found in results(run := Run.open(path)):
            for usual, spread in PRIORS:
                recovery.USUAL, recovery.SPREAD = usual, spread
                problem = Problem(run, ())
                mean, std = problem.expected(scale)
                row = {"run": path.name, "scale": str(scale), "prior": usual, "prior_std": spread}
                row |= {"exponent": f"{problem.recovery.exponent:.2f}", "expected": f"{mean:.4f}", "std": f"{std:.4f}"}
                table.add(row | {"found": f"{found['accuracy']:.4f}", "found_std": f"{found['std']:.4f}"})
    for usual, spread in PRIORS:
        rows = [r for r in table.rows if (float(r["prior"]), float(r["prior_std"])) == (usual, spread)]
        off = 100 * np.array([float(r["found"]) - float(r["expected"]) for r in rows])
        print(
            f"{usual} ± {spread}: {len(rows)} results, off by {np.abs(off).mean():.2f} points, "
            f"{np.abs(off).max():.2f} at most, {off.mean():+.2f} on average"
        )


if __name__ == "__main__":
    main()
