"""Smaller copies of a data set, for comparisons on machines that are too slow for all of it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

VALIDATION_IMAGES = 5_000  # of a smaller CIFAR-10; half as many photographs


def fewer(source: Path, folder: Path, count: int, seed: int) -> Path:
    """A copy of a data set with ``count`` of its training images, and others of them as the validation split."""
    path = folder / f"{source.stem}-{count}-seed{seed}{source.suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        (_fewer_members if source.suffix == ".tar" else _fewer_arrays)(source, part, count, seed)
        part.rename(path)
    return path


def _fewer_arrays(source: Path, target: Path, count: int, seed: int) -> None:
    """JPEG-coded arrays."""
    arrays = dict(np.load(source))
    order = np.random.default_rng(seed).permutation(len(arrays["train_y"]))
    images, labels, starts = (arrays.pop(f"train_{part}") for part in ("jpeg", "y", "off"))
    for split, chosen in {"train": order[:count], "val": order[count : count + VALIDATION_IMAGES]}.items():
        coded = [images[starts[i] : starts[i + 1]] for i in chosen]
        ends = np.cumsum([0, *map(len, coded)])
        arrays |= {f"{split}_jpeg": np.concatenate(coded), f"{split}_off": ends, f"{split}_y": labels[chosen]}
    with target.open("wb") as file:
        np.savez(file, **arrays)


def _fewer_members(source: Path, target: Path, count: int, seed: int) -> None:
    """A tar of class folders in train/ and val/; the latter becomes the test split."""
    with tarfile.open(source) as archive, tarfile.open(target, "w") as made:
        files = [member for member in archive.getmembers() if member.isfile()]
        parts = [(Path(member.name).parts[-3], member) for member in files]
        training = [member for split, member in parts if split == "train"]
        order = np.random.default_rng(seed).permutation(len(training))
        places = {training[i].name: "train" if n < count else "val" for n, i in enumerate(order)}
        spare = {training[i].name for i in order[count + VALIDATION_IMAGES // 2 :]}
        for split, member in parts:
            if member.name in spare:
                continue
            folder, name = Path(member.name).parts[-2:]
            entry = tarfile.TarInfo(f"{places[member.name] if split == 'train' else 'test'}/{folder}/{name}")
            entry.size = member.size
            made.addfile(entry, archive.extractfile(member))
