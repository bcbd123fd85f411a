"""Is the pruned network faster, and is pruning itself quick? Against Torch-Pruning: results/pruning_speed.csv.

    .venv/bin/python tools/bench_pruning.py [--only TEXT ...] [--rounds 7] [--formats onnx tflite] [--part speed prune]
        [--csv results/pruning_speed.csv]

Part "speed": for each network and share of channels taken off, the dense network and the pruned ones are exported and
timed on this machine in one go, interleaved (see device_profiles.benchmark): Torch-Pruning as its README uses it (group
L2, every layer alike), the same with round_to=8, and ours: by width alone, by width to the MACs of their rounded one,
and along all dimensions to the same MACs. Ours take the channel steps that are measured here first, as a run does.
Part "prune": seconds and peak memory of pruning half of the channels, each time in a fresh process, the two in turn;
the memory is what the process needs beyond the loaded network.

verdict: of our rows, against these targets: no slower than the dense network; speed-up x MACs share (what a saved MAC
saves in time) no less than the best of Torch-Pruning's and at least 0.9; pruned in no more seconds and memory. Times
count as equal within 2 %, which repeats of the protocol differ by.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tables import write_rows
from torch import nn

from device_profiles.benchmark import benchmark
from device_profiles.channel_step import channel_steps
from device_profiles.devices import open_device
from device_profiles.robust import median
from exporters import InputSpec, export_draft, suffix
from mobileprune._torchvision import import_torchvision
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.prune import prune
from mobileprune.scale import Scale

ROOT = Path(__file__).resolve().parents[1]
SPEED = ("mobilenet_v2", "mobilenet_v3_large", "resnet50", "efficientnet_b0")
PRUNE = ("resnet50", "mobilenet_v2", "densenet121")
SIDE = 224
COLUMNS = (
    "part", "network", "channels_off", "format", "variant", "macs_share", "latency_ms", "speedup", "speedup_per_macs",
    "spread", "seconds", "seconds_min", "memory_mb", "verdict", "note",
)  # fmt: skip
OURS = ("ours", "ours_same_macs", "ours_joint")
EQUAL = 0.02  # what repeats of a measurement differ by


def dense(name: str) -> nn.Module:
    """The torchvision network with random weights, the same ones each time."""
    torch.manual_seed(0)
    model: nn.Module = import_torchvision().models.get_model(name, weights=None).eval()
    return model


def theirs(model: nn.Module, image: torch.Tensor, ratio: float, round_to: int | None) -> nn.Module:
    """``model`` pruned by Torch-Pruning, in place, as in its README; the classifier stays."""
    import torch_pruning

    kept = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        image,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=kept,
        round_to=round_to,
    )
    pruner.step()
    return model


def variants(name: str, ratio: float, steps: dict[str, int]) -> Iterator[tuple[str, nn.Module, int]]:
    """(name, network, input side) of the dense network and of all that is made of it."""
    image = torch.randn(1, 3, SIDE, SIDE)
    base = dense(name)
    yield "dense", base, SIDE
    yield "torch_pruning", theirs(dense(name), image, ratio, None), SIDE
    rounded = theirs(dense(name), image, ratio, 8)
    yield "torch_pruning_round8", rounded, SIDE
    share = count(rounded, image).macs / count(base, image).macs
    anatomy = Anatomy.of(base, image, channel_step=steps)
    yield "ours", prune(base, Scale(1, 1 - ratio, 1), image, anatomy=anatomy).model, SIDE
    same = prune(base, None, image, macs=share, along=("width",), anatomy=anatomy)
    yield "ours_same_macs", same.model, SIDE
    joint = prune(base, None, image, macs=share, anatomy=anatomy)
    yield "ours_joint", joint.model, joint.input_size[0]


def speed_rows(
    name: str, ratio: float, formats: Sequence[str], rounds: int, steps: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """Time the variants of one network, all formats of all of them in the same rounds."""
    with tempfile.TemporaryDirectory() as folder:
        files, macs = {}, {}
        for variant, model, side in variants(name, ratio, steps):
            macs[variant] = count(model, torch.randn(1, 3, side, side)).macs
            spec = InputSpec(3, side, side, (0.0,) * 3, (1.0,) * 3)
            for kind in formats:
                path = Path(folder) / f"{variant}{suffix(kind)}"
                files[f"{kind}/{variant}"] = Path(export_draft(model.eval(), spec, path, format=kind).path)
        measured = benchmark(open_device("host"), files, rounds=rounds, min_seconds=0.15).measurements
        for key, found in measured.items():
            kind, variant = key.split("/")
            share = macs[variant] / macs["dense"]
            speedup = measured[f"{kind}/dense"].latency_ms / found.latency_ms
            yield {
                "part": "speed",
                "network": name,
                "channels_off": f"{ratio:g}",
                "format": kind,
                "variant": variant,
                "macs_share": f"{share:.4f}",
                "latency_ms": f"{found.latency_ms:.3f}",
                "speedup": f"{speedup:.3f}",
                "speedup_per_macs": f"{speedup * share:.3f}",
                "spread": f"{found.spread:.3f}",
            }


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one comparison; those of ours with a verdict, and a note where they miss a target."""
    for row in (r for r in rows if r["variant"] in OURS):
        same = [r for r in rows if r.get("format") == row.get("format") and r["variant"].startswith("torch_pruning")]
        missed = _slow(row, same) if row["part"] == "speed" else _costly(row, same)
        row["verdict"] = "missed" if missed else "met"
        row["note"] = "; ".join(missed)
    return rows


def _slow(row: dict[str, Any], theirs: Sequence[dict[str, Any]]) -> list[str]:
    per_macs, best = float(row["speedup_per_macs"]), max(float(r["speedup_per_macs"]) for r in theirs)
    missed = []
    if float(row["speedup"]) < 1.0 - EQUAL:
        missed.append("slower than the dense network")
    if per_macs < best * (1.0 - EQUAL):
        missed.append(f"slower at equal MACs than Torch-Pruning's best ({per_macs / best - 1:+.1%})")
    if per_macs < 0.9:
        missed.append("less than 0.9 of what the MACs promise: the rest of the time is not in the MACs")
    return missed


def _costly(row: dict[str, Any], theirs: Sequence[dict[str, Any]]) -> list[str]:
    missed = []
    for what, unit in (("seconds", "s"), ("memory_mb", "MB")):
        ours, other = float(row[what]), min(float(r[what]) for r in theirs)
        if ours > other * (1.0 + EQUAL):
            missed.append(f"{ours:g} {unit} against {other:g} {unit}")
    return missed


def prune_once(name: str, whose: str) -> dict[str, float]:
    """Prune half of the channels in this process: seconds, and megabytes beyond the loaded network."""
    import torch_pruning  # noqa: F401  # both are loaded before the clock starts

    torch.set_num_threads(1)
    model, image = dense(name), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        model(image)
    gc.collect()  # what the imports left behind is nobody's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if whose == "ours":
        prune(model, Scale(1, 0.5, 1), image)
    else:
        theirs(model, image, 0.5, 8)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "memory_mb": (after - before) * 1024 / 1e6}


def prune_rows(name: str, repeats: int) -> list[dict[str, Any]]:
    """Seconds and memory of both, in turn."""
    found: dict[str, list[dict[str, float]]] = {"torch_pruning_round8": [], "ours": []}
    for _ in range(repeats):
        for whose, results in found.items():
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name, whose]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for whose, results in found.items():
        seconds = [r["seconds"] for r in results]
        rows.append(
            {
                "part": "prune",
                "network": name,
                "channels_off": "0.5",
                "variant": whose,
                "seconds": f"{median(seconds):.3f}",
                "seconds_min": f"{min(seconds):.3f}",
                "memory_mb": f"{median([r['memory_mb'] for r in results]):.0f}",
            }
        )
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]], steps: dict[str, int]) -> None:
    said = f"# python tools/bench_pruning.py (torch {torch.__version__}, 1 thread; channel steps {steps})"
    write_rows(path, COLUMNS, rows, [said])


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of pruned networks and cost of pruning.")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "pruning_speed.csv")
    parser.add_argument("--only", nargs="*", default=[], help="networks whose name contains one of these")
    parser.add_argument("--part", nargs="*", default=["prune", "speed"], choices=["prune", "speed"])
    parser.add_argument("--formats", nargs="*", default=["onnx", "tflite"])
    parser.add_argument("--off", nargs="*", type=float, default=[0.3, 0.5], help="shares of channels taken off")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.child:
        print(json.dumps(prune_once(*asked.child)))
        return
    rows: list[dict[str, Any]] = []

    def wanted(names: Sequence[str]) -> list[str]:
        return [name for name in names if not asked.only or any(text in name for text in asked.only)]

    for name in wanted(PRUNE) if "prune" in asked.part else []:
        rows += judged(prune_rows(name, asked.repeats))
        write(asked.csv, rows, {})
    steps: dict[str, int] = {}
    if "speed" in asked.part:
        steps = {kind: found.step for kind, found in channel_steps(open_device("host"), rounds=5).items()}
        print(f"channel steps measured here: {steps}")
    for name in wanted(SPEED) if "speed" in asked.part else []:
        for ratio in asked.off:
            rows += judged(list(speed_rows(name, ratio, asked.formats, asked.rounds, steps)))
            write(asked.csv, rows, steps)
    for row in rows:
        print(" ".join(str(row.get(key, "")) for key in COLUMNS if row.get(key)))


if __name__ == "__main__":
    main()
