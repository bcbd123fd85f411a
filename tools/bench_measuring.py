"""How repeatable `bench` is on this machine: the same file entered twice, against "run it once and take the mean".

    .venv/bin/python tools/bench_measuring.py [FILE] [--tries 20] [--csv results/measuring.csv]

Each try measures the file under two names, in two ways: with the measuring protocol (shuffled rounds, median of round
minima), and one after the other with the mean of 50 runs. What the two names differ by is error alone. Of the protocol
it is told twice: by the two latencies, and by the share of one in the other, which pairs the rounds. Without FILE a
network of twelve 3x3 convolutions is made. One line per try; the last lines are what to look at.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

from device_profiles.benchmark import Measurement, benchmark
from device_profiles.devices import open_device
from device_profiles.robust import quantile
from device_profiles.runners import worker
from device_profiles.runners.client import WorkerClient

CHANNELS, SIDE, LAYERS = 32, 56, 12


def make_network(path: Path) -> None:
    """Twelve convolutions of 32 channels at 56 x 56: 347 million multiply-accumulates, random weights."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    names = ["x", *(f"t{layer}" for layer in range(1, LAYERS)), "y"]
    weights = [draw.normal(0, 0.05, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32) for _ in range(LAYERS)]
    nodes = [
        helper.make_node("Conv", [names[layer], f"w{layer}"], [names[layer + 1]], pads=[1, 1, 1, 1])
        for layer in range(LAYERS)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE]) for name in (names[0], "y")
    ]
    initializers = [numpy_helper.from_array(array, f"w{layer}") for layer, array in enumerate(weights)]
    graph = helper.make_graph(nodes, "twelve", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def with_protocol(file: Path, seed: int) -> tuple[Measurement, Measurement]:
    """The file under its two names, measured together."""
    found = benchmark(open_device("host"), {"first": file, "second": file}, seed=seed).measurements
    return found["first"], found["second"]


def mean_of_one_go(file: Path, runs: int = 50) -> float:
    """Milliseconds: what most scripts do."""
    client = WorkerClient([sys.executable, "-P", worker.__file__], str(file))
    try:
        client.ask({"do": "load", "path": str(file.resolve()), "threads": 1}, timeout_s=60)
        times = client.ask({"do": "round", "min_runs": runs, "min_seconds": 0.0}, timeout_s=300)["times_us"]
    finally:
        client.close()
    return sum(times) / len(times) / 1e3


def gap(pair: tuple[float, float]) -> float:
    """By how much two latencies of the same file differ, relative to the smaller."""
    return max(pair) / min(pair) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help=".onnx or .tflite file (default: a made-up network)")
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--csv", type=Path, help="write the tries there as well")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = asked.file or Path(folder) / "twelve.onnx"
        if asked.file is None:
            make_network(file)
        rows = []
        for number in range(asked.tries):
            first, second = with_protocol(file, seed=number)
            protocol, paired = (first.latency_ms, second.latency_ms), (second.share_of(first)[0], 1.0)
            mean = mean_of_one_go(file), mean_of_one_go(file)
            rows.append([number, *protocol, gap(protocol), gap(paired), *mean, gap(mean)])
            said = f"protocol {gap(protocol):6.2%}   its shares {gap(paired):6.2%}   mean of one go {gap(mean):6.2%}"
            print(f"try {number:2}: {said}", flush=True)
    for name, column in (("protocol", 3), ("its shares", 4), ("mean of one go", 7)):
        gaps = [float(row[column]) for row in rows]
        print(f"{name}: the same file differs by {quantile(gaps, 0.5):.2%} (median), {quantile(gaps, 0.9):.2%} (p90)")
    if asked.csv:
        header = ["try", "protocol_a_ms", "protocol_b_ms", "protocol_gap", "share_gap"]
        header += ["mean_a_ms", "mean_b_ms", "mean_gap"]
        with asked.csv.open("w", newline="") as table:
            table.write(f"# python {' '.join(sys.argv)}\n")
            writer = csv.writer(table)
            writer.writerow(header)
            writer.writerows([row[0], *(f"{value:.5f}" for value in row[1:])] for row in rows)


if __name__ == "__main__":
    main()
