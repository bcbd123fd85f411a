"""What exact sums cost and save an int8 ONNX file on this processor, beside ONNX Runtime's default.

    .venv/bin/python tools/bench_exact_sums.py RUN ... --csv results/exact_sums.csv

On x86-64 without VNNI the default adds products of 8 bits in 16, which saturate (exporters/runtimes.py). Each int8 ONNX
file of the runs is opened both ways: latencies of runs in turns on one thread, their ratio, how far the logits are
apart as a share of the largest, and top-1 of each on the test split. Elsewhere both are the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tables import Table

from exporters.runtimes import EXACT_SUMS
from mobileprune.commands.common import context_of
from mobileprune.run import Run

COLUMNS = (
    "file", "default_ms", "exact_ms", "ratio", "ratio_spread", "logits_apart", "default_top1", "exact_top1", "images",
)  # fmt: skip
_ROUNDS = 200


def session(path: Path, exact: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry(EXACT_SUMS, str(int(exact)))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def logits(opened: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    name = opened.get_inputs()[0].name
    return np.concatenate([opened.run(None, {name: images[i : i + 1]})[0] for i in range(len(images))])


def timed(both: list[Any], image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Seconds of every round, a column for each of the two, which take turns."""
    feed = {both[0].get_inputs()[0].name: image}
    found = np.empty((_ROUNDS, len(both)))
    for row in range(-10, _ROUNDS):  # the first ten warm up
        for column, opened in enumerate(both):
            began = time.perf_counter()
            opened.run(None, feed)
            found[max(row, 0), column] = time.perf_counter() - began
    return found


def rows(path: Path) -> Iterator[dict[str, Any]]:
    ctx = context_of(Run.open(path))
    for entry in ctx.run.journal.all("artifact"):
        artifact = entry["artifact"]
        if (artifact["format"], artifact["precision"]) != ("onnx", "int8"):
            continue
        split = ctx.data.test or ctx.data.validation
        images = ctx.view_at(artifact["input"]["height"])(split.images).contiguous().numpy()
        labels = split.labels.numpy()
        both = [session(path / entry["path"], exact) for exact in (False, True)]
        seconds = timed(both, images[:1])
        plain, exact = (logits(opened, images) for opened in both)
        ratios = seconds[:, 1] / seconds[:, 0]
        low, high = np.quantile(ratios, [0.25, 0.75])
        yield {
            "file": f"{path.name}/{entry['path']}",
            "default_ms": f"{1e3 * np.median(seconds[:, 0]):.4f}",
            "exact_ms": f"{1e3 * np.median(seconds[:, 1]):.4f}",
            "ratio": f"{np.median(ratios):.3f}",
            "ratio_spread": f"{(high - low) / 2:.3f}",
            "logits_apart": f"{np.abs(plain - exact).max() / np.abs(exact).max():.4f}",
            "default_top1": f"{(plain.argmax(1) == labels).mean():.4f}",
            "exact_top1": f"{(exact.argmax(1) == labels).mean():.4f}",
            "images": len(labels),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--csv", type=Path, required=True)
    arguments = parser.parse_args()
    table = Table(arguments.csv, COLUMNS, ("file",), f"python {' '.join(sys.argv)}")
    for run in arguments.runs:
        for row in rows(run):
            print("  ".join(f"{name} {value}" for name, value in row.items()))
            table.add(row)


if __name__ == "__main__":
    main()
