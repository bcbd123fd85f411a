"""How well a latency that a run measured repeats when the run measures the same scale again, minutes later.

    .venv/bin/python tools/measure_repeats.py runs/comparison/cifar10-resnet20-seed0 ... --csv results/repeats.csv

RUNs are run folders. A scale is measured again where it lies at the budget and when its result is finished. What the
shares of the base's latency differ by beyond the intervals of their rounds is the error from one session to the next,
which latency samples carry (mobileprune/stages/records.py).
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tables import Table

from mobileprune.run import Entry, Run
from mobileprune.scale import BASE
from mobileprune.stages.records import scale_key

COLUMNS = ("run", "scale", "first_share", "first_std", "second_share", "second_std", "minutes", "log_ratio")


def std_of(entry: Entry) -> float:
    """The relative standard error of a share, by its rounds alone."""
    share, low, high = entry["share"]
    return float((high - low) / 4 / share)


def pairs(path: Path) -> Iterator[dict[str, Any]]:
    """Each scale of a run with the measurement that followed on another."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in Run.open(path).journal.entries:
        if entry["kind"] == "latency" and entry["key"] != scale_key(BASE):
            found[entry["key"]].append(entry)
    for key, entries in found.items():
        for first, second in itertools.pairwise(entries):
            yield {
                "run": path.name,
                "scale": key,
                "first_share": f"{first['share'][0]:.4f}",
                "first_std": f"{std_of(first):.4f}",
                "second_share": f"{second['share'][0]:.4f}",
                "second_std": f"{std_of(second):.4f}",
                "minutes": f"{(second['time'] - first['time']) / 60:.1f}",
                "log_ratio": f"{math.log(second['share'][0] / first['share'][0]):.4f}",
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    arguments = parser.parse_args()
    table = Table(arguments.csv, COLUMNS, ("run", "scale", "minutes"), f"python {' '.join(sys.argv)}")
    rows = [row for path in arguments.runs for row in pairs(path)]
    for row in rows:
        table.add(row)
    squares = [float(row["log_ratio"]) ** 2 for row in rows]
    rounds = [float(row["first_std"]) ** 2 + float(row["second_std"]) ** 2 for row in rows]
    found, told = (math.sqrt(sum(part) / len(rows)) for part in (squares, rounds))
    beyond = math.sqrt(max(found**2 - told**2, 0.0) / 2)
    print(
        f"{len(rows)} pairs: {100 * found:.1f} % apart, {100 * told:.1f} % by the rounds; {100 * beyond:.1f} % beyond"
    )


if __name__ == "__main__":
    main()
