"""How much of a demo run is training, measuring and exporting, and how much is everything else.

    .venv/bin/python tools/bench_overhead.py [--csv results/overhead.csv]

Runs what `make demo` runs, in a temporary folder, and prints the share of each. "Everything else" (imports, reading
data, scoring, ranking, pruning, solving, the report) is to stay under 10 % of the run.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


class Stopwatch:
    """A display that only keeps the seconds of each kind of work."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def stage(self, name: str, what: str) -> None:
        print(f"{name:>9}  {what}", file=sys.stderr)

    def say(self, text: str, style: str = "") -> None:
        return

    @contextmanager
    def work(self, kind: str, description: str, total: float) -> Iterator[object]:
        start = time.monotonic()
        yield lambda done, note="": None
        self.seconds[kind] += time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()

    import mobileprune

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        mobileprune.optimize(run=Path(folder) / "run", budget="50%", device="host", display=watch)  # type: ignore[arg-type]
    total = time.time() - psutil.Process().create_time()  # from the start of the interpreter: imports count
    rows = [(kind, watch.seconds[kind]) for kind in ("training", "measuring", "exporting")]
    rows.append(("everything else", total - sum(seconds for _, seconds in rows)))
    for kind, seconds in rows:
        print(f"{kind:16} {seconds:7.1f} s {100 * seconds / total:5.1f} %")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            file.write(f"# {' '.join(['python', *sys.argv])}\n")
            writer = csv.writer(file)
            writer.writerow(("what", "seconds", "share"))
            writer.writerows((kind, f"{seconds:.1f}", f"{seconds / total:.4f}") for kind, seconds in rows)


if __name__ == "__main__":
    main()
