"""What each dimension adds to the loss before any training, and what it costs to measure that, in finished runs.

    .venv/bin/python tools/measure_untrained.py runs/comparison/cifar10-resnet56-seed0 --csv results/untrained.csv

Every point of a run's curves is measured anew and timed; the base is once there, as the share 1 of depth. ``images``
is how many the run trained its probes on in as many seconds, by the pace in its journal.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

from tables import Table

from mobileprune.commands.common import context_of
from mobileprune.run import Run
from mobileprune.search.curves import along
from mobileprune.search.samples import AXES
from mobileprune.stages.losses import loss_along, losses_of
from mobileprune.stages.untrained import untrained_loss

_COLUMNS = ("run", "dimension", "share", "loss", "seconds", "images")


def pace(run: Run) -> float:
    """Images a second in the epochs of probes; nan where none is known."""
    found = [e["images_per_s"] for e in run.journal.all("epoch") if e["key"].startswith("probe")]
    return median([one for one in found if one] or [float("nan")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    table = Table(options.csv, _COLUMNS, ("run", "dimension", "share"), f"python {' '.join(sys.argv)}")
    for path in options.runs:
        run = Run.open(path)
        ctx, total = context_of(run), 0.0
        print(f"{path.name}: {len(ctx.data.train):,} training images", flush=True)  # read before anything is timed
        for axis, name in enumerate(AXES):
            for share in sorted(loss_along(losses_of(run), axis)):
                if share == 1.0 and axis:
                    continue
                start = time.monotonic()
                loss = untrained_loss(ctx, along(axis, share))
                seconds = time.monotonic() - start
                total += seconds
                row = {"run": path.name, "dimension": name, "share": f"{share:.4f}", "loss": f"{loss:.4f}"}
                table.add({**row, "seconds": f"{seconds:.2f}", "images": f"{seconds * pace(run):.0f}"})
        print(f"{path.name}: {total:.0f} s, in which probes train on {total * pace(run):,.0f} images", flush=True)


if __name__ == "__main__":
    main()
