"""Which widths to keep: uniform or global, floors and steps, measured on real data: results/width_choices.csv.

    .venv/bin/python tools/choose_widths.py --model ../shared/models/resnet_cifar.py:resnet20 \\
        --checkpoint ../shared/data/checkpoints/resnet20-12fca82f.th --data ../shared/data/cifar10_jpeg.npz

The base is fine-tuned on the images first. Every way to choose widths then prunes it, by width alone, to the same share
of its MACs; the norm statistics are estimated anew and the network is scored, then fine-tuned for a short while and
scored again, on the validation split. Where a step allows none as small, its smallest is taken. All networks are timed
as ONNX files beside the base in the same shuffled rounds.
Accuracy decides where the latencies are alike, so compare rows of one share, and across steps their latency too.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tables import write_rows
from torch import nn

from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from exporters import InputSpec, export_draft
from mobileprune.data import ImageData
from mobileprune.data.load import load_data
from mobileprune.errors import UsageError
from mobileprune.models import find_model, load_checkpoint
from mobileprune.pruning.allocation import Widths
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import Pruned, prune
from mobileprune.scale import Scale
from mobileprune.training.batches import View
from mobileprune.training.evaluate import evaluate
from mobileprune.training.finetune import fit
from mobileprune.training.memory import parts
from mobileprune.training.schedule import Schedule
from mobileprune.training.speed import fastest_setting

COLUMNS = (
    "network", "macs_asked", "step", "least_channels", "widths", "floor", "macs_share", "params_share", "narrowest",
    "latency_share", "spread", "accuracy_pruned", "accuracy", "std", "seconds",
)  # fmt: skip
FLOORS = (0.0, 0.25, 0.5)
STEPS = ((4, 4), (4, 8), (8, 8), (16, 16))  # (channel step, fewest channels of a layer)
NORM_IMAGES, NORM_BATCH = 512, 128
RATE = 0.02


@dataclass(frozen=True)
class Way:
    """One way to choose widths. floor: share of its uniform number that no layer falls below."""

    step: int
    least: int
    widths: Widths
    floor: float


def ways() -> Iterator[Way]:
    for step, least in STEPS:
        yield Way(step, least, "uniform", 1.0)
        yield from (Way(step, least, "global", floor) for floor in FLOORS)


class Bench:
    """The fine-tuned base, its images, and how its descendants are trained and scored."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.data: ImageData = load_data(str(asked.data))
        source = find_model(asked.model)
        self.name, self.asked = source.name, asked
        self.base = source.build(len(self.data.classes))
        load_checkpoint(self.base, asked.checkpoint)
        mean, std = source.normalisation() or self.data.statistics()
        self.view = View(self.data.size, mean, std)
        few = self.data.train.sample(64)
        setting, _ = fastest_setting(self.base, self.view(few.images), few.labels)
        self.schedule = Schedule(
            epochs=1, learning_rate=RATE, bfloat16=setting.bfloat16, channels_last=setting.channels_last
        )
        self.train(self.base, asked.base_images, seed=0)

    def train(self, model: nn.Module, images: int, seed: int) -> None:
        """One epoch over so many images, then norm statistics over training images as they are."""
        data = replace(self.data, train=self.data.train.sample(images, seed))
        fit(model, data, self.view, self.schedule, seed=seed)
        self.settle(model)

    def settle(self, model: nn.Module) -> None:
        few = self.data.train.sample(NORM_IMAGES).images
        reestimate_norms(model, (self.view(part) for part in parts(few, NORM_BATCH)))

    def score(self, model: nn.Module) -> float:
        return evaluate(model, self.data.validation, self.view).accuracy

    def row(self, way: Way, macs: float, pruned: Pruned) -> dict[str, Any]:
        """The network of one way, scored as it was cut and after a short training of each seed."""
        started = time.monotonic()
        self.settle(pruned.model)
        before, after = self.score(pruned.model), []
        for seed in range(self.asked.seeds):
            model = copy.deepcopy(pruned.model)
            self.train(model, self.asked.images, seed)
            after.append(self.score(model))
        mean = sum(after) / len(after)
        images = len(self.data.validation)
        return {
            "network": self.name,
            "macs_asked": f"{macs:g}",
            "step": way.step,
            "least_channels": way.least,
            "widths": way.widths,
            "floor": f"{way.floor:g}",
            "macs_share": f"{pruned.macs:.4f}",
            "params_share": f"{pruned.params:.4f}",
            "narrowest": narrowest(pruned.model, self.base),
            "accuracy_pruned": f"{100 * before:.2f}",
            "accuracy": f"{100 * mean:.2f}",
            "std": f"{100 * (mean * (1 - mean) / images) ** 0.5:.2f}",
            "seconds": f"{time.monotonic() - started:.0f}",
        }


def narrowest(pruned: nn.Module, base: nn.Module) -> str:
    """The convolution that keeps the smallest share of its channels: "kept/had"."""
    layers = [(m.out_channels, base.get_submodule(n)) for n, m in pruned.named_modules() if isinstance(m, nn.Conv2d)]
    kept, had = min(((n, int(was.out_channels)) for n, was in layers), key=lambda pair: pair[0] / pair[1])  # type: ignore[arg-type]
    return f"{kept}/{had}"


def networks(bench: Bench, shares: Sequence[float]) -> Iterator[tuple[Way, float, Pruned]]:
    image = bench.view(bench.data.validation.images[:1])
    anatomies = {
        (step, least): Anatomy.of(bench.base, image, channel_step=step, least_channels=least, resolutions=False)
        for step, least in STEPS
    }
    for macs in shares:
        for way in ways():
            anatomy = anatomies[way.step, way.least]
            how: Any = {"anatomy": anatomy, "widths": way.widths, "floor": way.floor}
            try:
                pruned = prune(bench.base, None, image, macs=macs, along=("width",), **how)
            except UsageError:  # the step allows no network as small: its smallest
                pruned = prune(bench.base, Scale(1, anatomy.widths.values[0], 1), image, **how)
            yield way, macs, pruned


def timed(bench: Bench, models: dict[str, nn.Module], rounds: int) -> dict[str, dict[str, str]]:
    """The latency of each as a share of the base's, all in the same rounds."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        spec = InputSpec(3, bench.data.size, bench.data.size, bench.view.mean, bench.view.std)
        for name, model in {"base": bench.base, **models}.items():
            files[name] = Path(export_draft(model.eval(), spec, Path(folder) / f"{name}.onnx", format="onnx").path)
        found = benchmark(open_device("host"), files, rounds=rounds, min_seconds=0.1).measurements
    base = found["base"].latency_ms
    return {n: {"latency_share": f"{m.latency_ms / base:.3f}", "spread": f"{m.spread:.3f}"} for n, m in found.items()}


def write(path: Path, rows: Sequence[dict[str, Any]], asked: argparse.Namespace, base: float) -> None:
    command = f"python tools/choose_widths.py --model {Path(asked.model).name} --checkpoint {asked.checkpoint.name}"
    command += f" --data {asked.data.name} --base-images {asked.base_images} --images {asked.images}"
    command += f" --seeds {asked.seeds} --macs {' '.join(f'{share:g}' for share in asked.macs)}"
    said = f"# {command} (torch {torch.__version__}, 1 thread; base {100 * base:.2f} % on validation)"
    write_rows(path, COLUMNS, rows, [said])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--macs", nargs="*", type=float, default=[0.5, 0.3], help="shares of the base's")
    parser.add_argument("--base-images", type=int, default=40_000, help="that the base is fine-tuned on")
    parser.add_argument("--images", type=int, default=6_000, help="that each network is fine-tuned on")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path, default=Path("results/width_choices.csv"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(asked)
    base = bench.score(bench.base)
    print(f"base {100 * base:.2f} %", flush=True)
    made = list(networks(bench, asked.macs))
    latencies = timed(bench, {str(i): pruned.model for i, (*_, pruned) in enumerate(made)}, asked.rounds)
    rows: list[dict[str, Any]] = []
    for i, (way, macs, pruned) in enumerate(made):
        rows.append({**bench.row(way, macs, pruned), **latencies[str(i)]})
        print(" ".join(str(rows[-1][key]) for key in COLUMNS), flush=True)
        write(asked.csv, rows, asked, base)


if __name__ == "__main__":
    main()
