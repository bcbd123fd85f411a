"""``mobileprune data``: what is seen of a data set, and what may be wrong with it, before a run begins."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.data.decode import Decoded
from mobileprune.data.listing import BROKEN, Records
from mobileprune.data.load import assemble, class_counts, find_source, prepared

_OPENED = 500  # headers that are looked at for sizes and colour modes
_UNEVEN = 10  # a class with this many times fewer images than another is worth a word


@dataclass(frozen=True)
class SplitReport:
    """One split: images, and images of the smallest and the largest class with their names."""

    images: int
    smallest_class: tuple[str, int]
    largest_class: tuple[str, int]
    broken: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """What ``describe_data`` found. sizes: width x height of the stored pictures, smallest, median and largest side."""

    spec: str
    kind: str
    classes: tuple[str, ...]
    splits: dict[str, SplitReport]
    read_at: int
    sides: tuple[int, int, int]
    modes: dict[str, int]
    sampled: int
    mirrored: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    cached: str | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        shown = ", ".join(self.classes[:6]) + (", …" if len(self.classes) > 6 else "")
        found = [f"{self.spec}: {self.kind}", f"classes     {len(self.classes)}: {shown}"]
        for name, split in self.splits.items():
            (small, fewest), (large, most) = split.smallest_class, split.largest_class
            spread = f"{fewest} to {most} a class" if fewest != most else f"{most} a class"
            extremes = f" (fewest {small}, most {large})" if fewest != most else ""
            found.append(f"{name:<11} {split.images:,} images, {spread}{extremes}")
        low, middle, high = self.sides
        sizes = f"shorter side {low} px" if low == high else f"shorter side {low} to {high} px, median {middle}"
        modes = ", ".join(f"{count} {mode}" for mode, count in self.modes.items())
        found.append(f"pictures    {sizes}; {modes} (of {self.sampled} looked at); read at {self.read_at} px")
        found.append(f"mean, std   {_triple(self.mean)}, {_triple(self.std)}")
        found.append(f"mirrored    {'in training' if self.mirrored else 'no: mirrored they mean another thing'}")
        found.append(f"cache       {self.cached or 'not cached: decoded into memory'}")
        return [*found, f"fingerprint {self.fingerprint}", *(f"! {note}" for note in self.notes)]


def _triple(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:.3f}" for v in values)


def describe_data(
    spec: str,
    image_size: int | None = None,
    seed: int = 0,
    *,
    labels: str | None = None,
    root: Path | None = None,
    download: bool = False,
) -> DataReport:
    """Read the whole set as a run would (it is then in the cache) and say what it holds.

    Arguments and errors are those of ``load_data``.
    """
    source = find_source(spec, root, download)
    found = prepared(spec, image_size, seed, root, download)
    data = assemble(spec, found, labels)
    sides, modes, sampled = _look_at(source.listing(image_size).splits["train"])
    mean, std = data.statistics()
    splits = {name: _describe(part, found.classes) for name, part in found.splits.items()}
    return DataReport(
        spec=spec,
        kind=_KINDS[type(source).__name__],
        classes=data.classes,
        splits=splits,
        read_at=data.size,
        sides=sides,
        modes=modes,
        sampled=sampled,
        mirrored=data.flip,
        mean=mean,
        std=std,
        fingerprint=data.fingerprint(),
        cached=str(found.cached) if found.cached else None,
        notes=(*data.notes, *_oddities(found.splits, splits, found.made_here, seed)),
    )


_KINDS = {
    "Digits": "the bundled handwritten digits",
    "Folder": "a folder of class folders",
    "Archive": "a tar archive of class folders",
    "Npz": "arrays in a .npz file",
    "Torchvision": "a torchvision data set",
    "HuggingFace": "a Hugging Face data set",
    "Factory": "a data set made by a function",
}


def _describe(part: Decoded, classes: tuple[str, ...]) -> SplitReport:
    counts = class_counts(part, len(classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    smallest, largest = (classes[low], int(counts[low])), (classes[high], int(counts[high]))
    return SplitReport(len(part.labels), smallest, largest, part.broken)


def _look_at(records: Records) -> tuple[tuple[int, int, int], dict[str, int], int]:
    """Shorter sides (least, median, largest) and colour modes of images spread over the split; nothing is decoded."""
    sides: list[int] = []
    modes: Counter[str] = Counter()
    for i in np.unique(np.linspace(0, len(records) - 1, min(_OPENED, len(records))).round().astype(int)):
        try:
            with records.open(int(i)) as image:
                sides.append(min(image.size))
                modes[image.mode] += 1
        except BROKEN:
            continue
    return (min(sides), int(np.median(sides)), max(sides)), dict(modes.most_common()), len(sides)


def _oddities(parts: dict[str, Decoded], reports: dict[str, SplitReport], made_here: bool, seed: int) -> list[str]:
    """What is no error and worth knowing."""
    notes: list[str] = []
    if made_here:
        held, total = reports["validation"].images, reports["validation"].images + reports["train"].images
        notes.append(f"no validation split: {held} of {total} training images are held out, by class, with seed {seed}")
    if "test" not in reports:
        notes.append("no test split: the result's accuracy will be that of the images it was chosen on")
    (small, fewest), (large, most) = reports["train"].smallest_class, reports["train"].largest_class
    if fewest and most >= _UNEVEN * fewest:
        notes.append(f"uneven: {most} training images of {large}, {fewest} of {small}")
    digests = parts["train"].digests
    if twice := len(digests) - len(np.unique(digests, axis=0)):
        notes.append(f"{twice} training images are copies of others, pixel by pixel")
    return notes
