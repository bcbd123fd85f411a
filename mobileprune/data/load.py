"""From what the user wrote behind ``--data`` to images in splits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mobileprune.data import cache
from mobileprune.data.decode import Decoded
from mobileprune.data.files import Archive, Folder, Npz, is_archive
from mobileprune.data.images import ImageData, Pixels, Split
from mobileprune.data.libraries import Digits, Factory, HuggingFace, Torchvision
from mobileprune.data.listing import Listing, Source
from mobileprune.errors import UsageError

BROKEN_LIMIT = 0.01  # share of images that may be unreadable before the data is refused
IMAGENET = "imagenet-1k"
_SHOWN = 20  # notes of one kind


def load_data(
    spec: str,
    image_size: int | None = None,
    seed: int = 0,
    *,
    labels: str | None = None,
    root: Path | None = None,
    download: bool = False,
) -> ImageData:
    """Read the data set that ``spec`` names; see ``find_source`` for what it may be.

    image_size: the side S to read at; by default the data's own (32 px for digits, 224 px for photographs).
    labels: what the outputs of the model are called, where it tells more classes apart than the data has:
    ``imagenet-1k``, or a file with one class name per line. root: where torchvision's sets lie. download: whether a set
    that is not on this machine may be fetched. Raises UsageError for a set that is not there or cannot train a
    classifier.
    """
    return assemble(spec, prepared(spec, image_size, seed, root, download), labels)


def prepared(
    spec: str, size: int | None, seed: int, root: Path | None = None, download: bool = False
) -> cache.Prepared:
    """The decoded splits of ``spec``, validation among them."""
    source = find_source(spec, root, download)

    def listing() -> Listing:
        found = _labelled(source.listing(size))
        _check_labels(spec, found)
        return found.with_validation(seed)

    return cache.prepare(source.identity(), size, f"seed {seed}", listing)


def find_source(spec: str, root: Path | None = None, download: bool = False) -> Source:
    """``digits``, a folder or tar archive of class folders, a .npz file, ``torchvision:NAME``, ``hf:NAME_OR_PATH`` or
    ``path/to/file.py:function``. Raises UsageError, with near names, for anything else."""
    if spec == "digits":
        return Digits()
    library, _, name = spec.partition(":")
    if library == "torchvision" and name:
        return Torchvision(name, root, download)
    if library == "hf" and name:
        return HuggingFace(name, download)
    file, _, function = spec.rpartition(":")
    if file.endswith(".py") and function:
        return Factory(Path(file), function)
    path = Path(spec)
    if path.is_dir():
        return Folder(path)
    if path.is_file() and path.suffix == ".npz":
        return Npz(path)
    if path.is_file() and is_archive(path):
        return Archive(path)
    if path.suffix == ".py":
        raise UsageError(
            f"--data {spec} names no function; write {spec}:NAME, where NAME is a function without arguments"
        )
    if path.exists():
        raise UsageError(f"--data {spec}: neither a folder of class folders nor a .npz file or a tar archive")
    hint = "; did you mean digits?" if difflib.get_close_matches(spec, ["digits"]) else f"; {_FORMS}"
    raise UsageError(f"--data {spec}: no such file or folder{hint}")


_FORMS = "give digits, a folder or tar of class folders, a .npz file, torchvision:NAME, hf:NAME or file.py:function"


def _labelled(listing: Listing) -> Listing:
    """Without validation and test splits whose labels are kept back, as those of contests are; a note tells of each."""
    bare = [name for name, part in listing.splits.items() if name != "train" and int(part.labels.max(initial=-1)) < 0]
    notes = [f"{name} split left out: none of its {len(listing.splits[name]):,} images has a label" for name in bare]
    splits = {name: part for name, part in listing.splits.items() if name not in bare}
    return replace(listing, splits=splits, notes=(*listing.notes, *notes))


def _check_labels(spec: str, listing: Listing) -> None:
    """Before anything is decoded: every label must be one of the classes."""
    for split, records in listing.splits.items():
        low, high = int(records.labels.min(initial=0)), int(records.labels.max(initial=0))
        if low < 0 or high >= len(listing.classes):
            wrong = low if low < 0 else high
            raise UsageError(
                f"--data {spec}: {_short(split)}_y holds labels outside 0..{len(listing.classes) - 1} "
                f"(such as {wrong}): the set has {len(listing.classes)} classes; "
                "mend the labels or leave these images out"
            )


def _short(split: str) -> str:
    return {"validation": "val"}.get(split, split)


def assemble(spec: str, found: cache.Prepared, labels: str | None = None) -> ImageData:
    """The data set of decoded splits: checked, its labels mapped, and what is odd about it in its notes."""
    broken = [entry for part in found.splits.values() for entry in part.broken]
    total = sum(len(part.labels) for part in found.splits.values())
    if len(broken) > BROKEN_LIMIT * total:
        raise UsageError(
            f"--data {spec}: {len(broken)} images cannot be read (first: {broken[0]}); mend or remove them"
        )
    digests = {split: part.digests for split, part in found.splits.items()}
    leaked = leaks(digests, lambda split, i: found.splits[split].name(i))
    notes = [*found.notes, *_shortened([f"not read: {entry}" for entry in broken]), *leaked]
    splits = {name: Split(part.images, part.labels, part.digests) for name, part in found.splits.items()}
    name = find_source(spec).name
    data = ImageData(
        name, splits["train"], splits["validation"], splits.get("test"), found.classes, found.flip, tuple(notes)
    )
    check(data, f"--data {spec}")
    return map_labels(data, labels) if labels else data


def _shortened(notes: list[str]) -> list[str]:
    rest = len(notes) - _SHOWN
    return notes if rest <= 0 else [*notes[:_SHOWN], f"and {rest} more"]


def check(data: ImageData, where: str, *, unused: Collection[int] = ()) -> None:
    """Raises UsageError, beginning with ``where``, for data that cannot train a classifier.

    unused: classes that may be without training images.
    """
    counts = class_counts(data.train, len(data.classes))
    trained = [name for name, count in zip(data.classes, counts, strict=True) if count]
    empty = [name for i, name in enumerate(data.classes) if not counts[i] and i not in unused]
    if empty:
        raise UsageError(f"{where}: class {empty[0]!r} has no training image; add some or remove the class")
    if len(trained) < 2:
        raise UsageError(f"{where}: only one class ({trained[0]}); a classifier needs two or more")
    if len(data.validation) == 0:
        raise UsageError(f"{where}: no image is left for validation; add images")


def leaks(digests: Mapping[str, Pixels], name: Callable[[str, int], str] | None = None) -> list[str]:
    """Images of one split that are in an earlier one, pixel by pixel: what is measured on them is not to be trusted.

    digests: of each split's images, uint8 (N, 16). name: what to call image i of a split; without it none is named.
    """
    notes: list[str] = []
    order = [split for split in ("train", "validation", "test") if split in digests]
    known = {split: {row.tobytes(): i for i, row in enumerate(digests[split])} for split in order}
    for i, later in enumerate(order):
        for earlier in order[:i]:
            shared = [row for row in known[later] if row in known[earlier]]
            if not shared:
                continue
            count = sum(row.tobytes() in known[earlier] for row in digests[later])
            note = f"leak: {count} of {len(digests[later])} {later} images are {earlier} images, too"
            if name is not None:
                a, b = (name(split, known[split][shared[0]]) for split in (later, earlier))
                note += f", such as {a} = {b}"
            notes.append(note)
    return notes


def map_labels(data: ImageData, labels: str) -> ImageData:
    """``data`` with labels as outputs of a model whose classes are ``labels``: a file, or ``imagenet-1k``.

    Raises UsageError where a class of the data is none of them.
    """
    names = label_names(labels)
    number = {name: i for i, name in enumerate(names)}
    missing = [name for name in data.classes if name not in number]
    if missing:
        near = difflib.get_close_matches(missing[0], names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"--labels {labels}: the data's class {missing[0]!r} is none of its {len(names)} names{hint}")
    table = torch.tensor([number[name] for name in data.classes])

    def mapped(split: Split) -> Split:
        return replace(split, labels=table[split.labels])

    note = f"labels are those of {labels}: {len(data.classes)} of its {len(names)} classes are in the data"
    return replace(
        data,
        train=mapped(data.train),
        validation=mapped(data.validation),
        test=None if data.test is None else mapped(data.test),
        classes=names,
        notes=(*data.notes, note),
    )


def label_names(labels: str) -> tuple[str, ...]:
    """The names of a model's outputs, in order."""
    if labels == IMAGENET:
        from mobileprune._torchvision import import_timm

        import_timm()
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo().label_names())
    path = Path(labels)
    if not path.is_file():
        raise UsageError(f"--labels {labels}: no such file; give {IMAGENET} or a file with one class name per line")
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"--labels {labels}: {twice!r} stands there twice; each output needs a name of its own")
    return names


def class_counts(split: Split | Decoded, classes: int) -> Tensor:
    """Images per class: (classes,)."""
    return torch.from_numpy(np.bincount(split.labels.numpy(), minlength=classes))
