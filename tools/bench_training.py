"""How fast networks are trained here: images a second of three loops over the same images.

    .venv/bin/python tools/bench_training.py --data ../shared/data [--csv results/training_speed.csv]

ours    what a run does: decoded images mapped from the cache, augmented and resized in batches, then a training step
bare    the training step alone, on tensors that are ready: what no data loop can beat
usual   torch's DataLoader with a worker per core over encoded images, torchvision's transforms, the step in float32
        with channels first, as most scripts are written
tuned   the same with the arithmetic and the layout that ours found fastest: what is left is what decoding costs

The loops take turns, so that other programs slow all of them alike; each figure is the best of its rounds. Wanted are
ours >= 0.92 bare, and ours >= 1.5 usual on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tables import write_rows
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mobileprune._torchvision import import_torchvision
from mobileprune.data import ImageData, load_data
from mobileprune.data.listing import Records
from mobileprune.data.load import find_source
from mobileprune.models import find_model
from mobileprune.training.batches import View
from mobileprune.training.finetune import Progress, fit
from mobileprune.training.schedule import Rates, Schedule, make_optimizer
from mobileprune.training.speed import Setting, fastest_setting

_CASES = {
    "resnet20": ("cifar10_jpeg.npz", 32),
    "resnet56": ("cifar10_jpeg.npz", 32),
    "torchvision:mobilenet_v2": ("imagenette160.tar", 160),
}
_CLIP_NORM = 5.0
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """A network at a size, images to train on (decoded, and as they lie), and how this machine computes fastest."""

    model: nn.Module
    data: ImageData
    records: Records
    view: View
    schedule: Schedule

    @property
    def batches(self) -> int:
        return len(self.data.train) // self.schedule.batch_size


class Pictures(Dataset[Any]):
    """What a script hands to a DataLoader."""

    def __init__(self, records: Records, transform: Callable[[Any], Tensor]) -> None:
        self.records, self.transform = records, transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.records.open(i).convert("RGB")), int(self.records.labels[i])


def make_case(name: str, folder: Path, batch_size: int, batches: int) -> Case:
    file, size = _CASES[name]
    spec = str(folder / file)
    data = load_data(spec, size)
    records = find_source(spec).listing(size).with_validation(0).splits["train"]
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: batches * batch_size]
    few = replace(data, train=data.train.take(chosen))
    view = View(size, _MEAN, _STD)
    model = find_model(name).build(len(data.classes))
    setting, _ = fastest_setting(model, view(few.train.images[:16]), few.train.labels[:16])
    schedule = Schedule(1, 0.01, batch_size, bfloat16=setting.bfloat16, channels_last=setting.channels_last)
    return Case(model, few, records.take(chosen.tolist()), view, schedule)


def ours(case: Case) -> float:
    times: list[float] = []

    def clock(_: Progress) -> None:
        times.append(time.perf_counter())

    fit(case.model, case.data, case.view, case.schedule, seed=0, progress=clock)
    return (case.batches - 1) * case.schedule.batch_size / (times[case.batches - 1] - times[0])


def steps(case: Case, schedule: Schedule, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Images a second of training steps on what ``batches`` gives, from the end of the first step on."""
    layout = torch.channels_last if schedule.channels_last else torch.contiguous_format
    model = case.model.to(memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(model, schedule)
    rates = Rates(optimizer, schedule, len(case.data.train))
    seen, start = 0, 0.0
    for step, (images, labels) in enumerate(batches):
        rates.set(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
            logits = model(images.contiguous(memory_format=layout)).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=schedule.label_smoothing)
        float(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        optimizer.step()
        if step:
            seen += len(labels)
        else:
            start = time.perf_counter()
    return seen / (time.perf_counter() - start)


def bare(case: Case) -> float:
    size = case.schedule.batch_size
    ready = (case.view(case.data.train.images[:size]), case.data.train.labels[:size])
    return steps(case, case.schedule, (ready for _ in range(case.batches)))


def usual(case: Case, setting: Setting) -> float:
    """Images a second of a common script that computes as ``setting`` says."""
    import_torchvision()
    from torchvision import transforms as T

    side = case.view.size
    crop = T.RandomCrop(side, padding=side // 8, padding_mode="reflect")
    chain = T.Compose([T.Resize(side), crop, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(_MEAN, _STD)])
    workers = len(os.sched_getaffinity(0))
    size = case.schedule.batch_size
    loader = DataLoader(Pictures(case.records, chain), size, shuffle=True, num_workers=workers, drop_last=True)
    schedule = replace(case.schedule, bfloat16=setting.bfloat16, channels_last=setting.channels_last)
    return steps(case, schedule, iter(loader))


def measure(case: Case, rounds: int) -> dict[str, float]:
    """The best images a second of each loop."""
    fastest = Setting(case.schedule.bfloat16, case.schedule.channels_last)
    contiguous = Setting(bfloat16=False, channels_last=False)
    loops: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(case),
        "bare": lambda: bare(case),
        "usual": lambda: usual(case, contiguous),
        "tuned": lambda: usual(case, fastest),
    }
    best = dict.fromkeys(loops, 0.0)
    for _ in range(rounds):
        for name, loop in loops.items():
            best[name] = max(best[name], loop())
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_jpeg.npz and imagenette160.tar")
    parser.add_argument("--networks", nargs="+", choices=list(_CASES), default=list(_CASES))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=60, help="of each loop and round (a sixth of it at 160 px)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.networks:
        batches = arguments.batches if _CASES[name][1] < 64 else max(arguments.batches // 6, 3)
        case = make_case(name, arguments.data, arguments.batch_size, batches)
        found = measure(case, arguments.rounds)
        setting = str(Setting(case.schedule.bfloat16, case.schedule.channels_last))
        row = {"network": name, "size": case.view.size, "setting": setting, "threads": torch.get_num_threads()}
        row |= {f"{loop}_images_per_s": f"{value:.1f}" for loop, value in found.items()}
        row |= {f"ours_to_{loop}": f"{found['ours'] / found[loop]:.3f}" for loop in ("bare", "usual", "tuned")}
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.csv:
        write_rows(arguments.csv, list(rows[0]), rows, [f"# python {' '.join(sys.argv)}"])


if __name__ == "__main__":
    main()
