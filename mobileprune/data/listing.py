"""What a data set holds before anything is decoded: labels, and a way to open each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobileprune.data.images import Labels
from mobileprune.errors import UsageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
# Of folders, however they are capitalised; of two names for one split the first here is used.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What opening a damaged image raises, by PIL's decoders.
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Records:
    """One split. ``open(i)`` gives image i (one of ``BROKEN`` where it cannot be read), ``name(i)`` what to call it."""

    labels: Labels
    open: Callable[[int], Image.Image]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Records:
        return Records(self.labels[indices], lambda i: self.open(indices[i]), lambda i: self.name(indices[i]))


@dataclass(frozen=True)
class Listing:
    """A data set's splits (``train``, and ``validation`` and ``test`` where it has its own) and how to treat it."""

    classes: tuple[str, ...]
    splits: dict[str, Records]
    size: int  # the side S to read at unless the person says otherwise
    flip: bool = True
    held_out: float = 0.1  # share of train that becomes validation where the set has no split of its own
    encoded: bool = True  # whether decoding costs so much that it is worth a cache
    notes: tuple[str, ...] = ()
    made_here: bool = False  # whether validation was held out of train here

    def with_validation(self, seed: int) -> Listing:
        """The same with a validation split: its own, or a seeded and stratified share of train."""
        if "validation" in self.splits:
            return self
        train = self.splits["train"]
        rest, held = split_by_class(train.labels, self.held_out, seed)
        splits = {**self.splits, "train": train.take(rest), "validation": train.take(held)}
        return replace(self, splits=splits, made_here=True)


class Source(Protocol):
    """A place where a data set lies."""

    @property
    def name(self) -> str:
        """What to call it."""

    def identity(self) -> str | None:
        """A text that changes whenever the content may have, found without reading it; None where nothing tells."""

    def listing(self, size: int | None) -> Listing:
        """The images and labels. Raises UsageError where they cannot be understood."""


def split_by_class(
    labels: Sequence[int] | npt.NDArray[np.int64], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of (rest, held-out): seeded and stratified, at least one held out of each class that has two."""
    generator = np.random.default_rng(seed)
    labels = np.asarray(labels)
    held: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held.extend(members[:count].tolist())
    chosen = set(held)
    return [i for i in range(len(labels)) if i not in chosen], sorted(held)


def identify(path: Path, *parts: object) -> str:
    """What tells a file from any other and from itself after a change: its place, size, times and inode."""
    found = path.stat()
    stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return "|".join(map(str, (path.resolve(), *stamp, *parts)))


def split_named(folder: str) -> str | None:
    """The split that a folder of this name holds: ``train``, ``validation`` or ``test``; None for another name."""
    return SPLIT_NAMES.get(folder.casefold())


@dataclass(frozen=True)
class Tree:
    """Files below class folders, as in a folder or an archive: paths of the images, and of the folders."""

    where: str
    files: Sequence[PurePosixPath]
    folders: frozenset[PurePosixPath]

    def classes(self) -> tuple[str, ...]:
        """The class folders of the training images. Raises UsageError where there are none."""
        prefix = self._prefix("train")
        depth = len(prefix.parts)
        names = {f.parts[depth] for f in self.folders if len(f.parts) == depth + 1 and f.parts[:depth] == prefix.parts}
        if depth == 0:
            names = {name for name in names if split_named(name) is None}
        if not names:
            raise UsageError(
                f"--data {self.where}: empty or without class folders; put the images into {self.where}/CLASS/*.jpg"
            )
        return tuple(sorted(names))

    def _prefix(self, split: str) -> PurePosixPath:
        """The folder that holds the classes of ``split``; train may be the root itself."""
        return next(iter(self._folders_of(split)), PurePosixPath())

    def _folders_of(self, split: str) -> list[PurePosixPath]:
        """The folders that are named as ``split``, the one to use first."""
        named = [f for f in self.folders if len(f.parts) == 1 and split_named(f.name) == split]
        return sorted(named, key=lambda f: (list(SPLIT_NAMES).index(f.name.casefold()), f.name))

    def _refuse_splits_as_classes(self) -> None:
        """Raises UsageError where folders at the root hold the same class folders: splits of names that are not known.

        With a train folder the person has said what is a class, whatever is below it.
        """
        inside: dict[str, set[str]] = {}  # folder names below each folder at the root
        for file in self.files:
            if len(file.parts) < 2 or split_named(file.parts[0]):
                continue
            if len(file.parts) == 2:
                return
            inside.setdefault(file.parts[0], set()).add(file.parts[1])
        times = Counter(name for names in inside.values() for name in names)
        repeated = sorted(name for name, count in times.items() if count > 1)
        if len(repeated) * 2 > len(times):
            outer = sorted(name for name, names in inside.items() if repeated[0] in names)
            raise UsageError(
                f"--data {self.where}: {outer[0]!r} and {outer[1]!r} both hold a folder {repeated[0]!r}, so they are "
                "splits and no classes; call such folders train, val and test, or, if they are classes, "
                f"put them into {self.where}/train"
            )

    def records(self, open_file: Callable[[int], Image.Image], size: int) -> Listing:
        """The listing of this tree; ``open_file`` opens the i-th of ``files``. Raises UsageError for an odd tree."""
        classes = self.classes()
        if not self._folders_of("train"):
            self._refuse_splits_as_classes()
        members: dict[str, list[tuple[int, int]]] = {"train": []}
        members |= {split: [] for split in ("validation", "test") if self._folders_of(split)}
        number = {name: i for i, name in enumerate(classes)}
        for split, found in members.items():
            prefix = self._prefix(split)
            depth = len(prefix.parts)
            for i, file in enumerate(self.files):
                if file.parts[:depth] != prefix.parts or len(file.parts) < depth + 2:
                    continue
                name = file.parts[depth]
                if not depth and split_named(name):
                    continue
                if name not in number:
                    raise UsageError(f"--data {self.where}/{prefix}: class {name!r} is not among the training classes")
                found.append((number[name], i))
            if not found:
                raise UsageError(
                    f"--data {self.where}: no readable image in the class folders of {split}; "
                    f"put them into {self.where}/{prefix / 'CLASS'}/*.jpg"
                )
        splits = {split: self._records(found, open_file) for split, found in members.items()}
        return Listing(classes, splits, size, notes=tuple(self._unused()))

    def _unused(self) -> list[str]:
        """A note on each folder beside the one that is used for a split."""
        notes: list[str] = []
        for split in ("train", "validation", "test"):
            used, *others = self._folders_of(split) or [PurePosixPath()]
            notes += [f"{self.where}/{other} is not used: {used} is there" for other in others]
        return notes

    def _records(self, found: list[tuple[int, int]], open_file: Callable[[int], Image.Image]) -> Records:
        order = [i for _, i in sorted(found, key=lambda pair: (pair[0], self.files[pair[1]]))]
        labels = np.asarray(sorted(label for label, _ in found), dtype=np.int64)
        return Records(labels, lambda i: open_file(order[i]), lambda i: f"{self.where}/{self.files[order[i]]}")
