"""What the Ray engine costs: the same probes in this process and, one at a time, on a cluster of one machine.

    .venv/bin/python tools/bench_cluster.py [--csv results/cluster.csv]

The overhead is what a probe takes longer on the cluster, once that runs: the start of the worker (imports, the base and
the data) is part of it, that of Ray itself is not. Both engines start from copies of one run whose base is trained and
whose device is known, and take turns; the figure is the median of the turns. Wanted is less than 2 s a probe.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch
from tables import write_rows

from mobileprune.engine import Engine, LocalEngine, RayEngine
from mobileprune.progress import Quiet
from mobileprune.request import Request, open_or_create
from mobileprune.run import Run
from mobileprune.stages.context import Context
from mobileprune.stages.probe import probe
from mobileprune.stages.profile import profile
from mobileprune.stages.solve import set_budgets


def profiled(path: Path, probes: int) -> Path:
    request = Request(
        model="resnet20", data="digits", base_epochs=2, probe_epochs=1, probes=probes, profile_scales=10, rounds=2,
        round_seconds=0.0, training_precision="float32",
    )  # fmt: skip
    run = open_or_create(path, request)
    set_budgets(run, ["50%"])
    profile(Context(run, Quiet()))
    return path


def seconds(start: Path, engine: Engine) -> tuple[float, int]:
    """How long all probes take from a fresh copy of ``start``, and how many they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        shutil.copytree(start, path)
        ctx = Context(Run.open(path), Quiet(), engine)
        _ = ctx.data, ctx.anatomy  # which a command has anyway when it comes to probes
        began = time.monotonic()
        probe(ctx)
        return time.monotonic() - began, len(ctx.run.journal.all("probe"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as a job has that takes one CPU
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        start = profiled(Path(folder) / "run", arguments.probes)
        for turn in range(arguments.turns):
            local, count = seconds(start, LocalEngine(processes=1))
            ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="warning")
            on_ray, count_on_ray = seconds(start, RayEngine())
            ray.shutdown()
            assert count == count_on_ray
            row = {"turn": str(turn), "probes": str(count), "local_s": f"{local:.2f}", "ray_s": f"{on_ray:.2f}"}
            rows.append(row | {"overhead_s_per_probe": f"{(on_ray - local) / count:.2f}"})
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
    median = statistics.median(float(row["overhead_s_per_probe"]) for row in rows)
    print(f"median overhead of a probe: {median:.2f} s")
    if arguments.csv:
        write_rows(arguments.csv, list(rows[0]), rows, [f"# python {' '.join(sys.argv)}"])


if __name__ == "__main__":
    main()
