"""Networks and images that are given as Python objects: kept for this process, recognised when a run goes on.

A run folder holds no code. Of a network that was given as a module it holds the weights, what was cut and a fingerprint
of the layers; to build it again in another process the same network is given again.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobileprune.data import ImageData, Split
from mobileprune.data.libraries import own_names
from mobileprune.data.load import check, leaks
from mobileprune.errors import MobilepruneError, UsageError

MODULE = "module"  # the library of a network that was given; no command line can name it
Normalisation = tuple[Sequence[float], Sequence[float]]

_BATCH = 256
_ROUNDING = 0.02  # how far outside [0, 1] a pixel may lie for rounding
_modules: dict[str, nn.Module] = {}
_images: dict[str, ImageData] = {}


def fingerprint(module: nn.Module) -> str:
    """Which network this is: a hash of its modules' types and of the names, shapes and types of its state."""
    digest = hashlib.blake2b(digest_size=8)
    for name, part in module.named_modules():
        digest.update(f"{name}:{type(part).__name__};".encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
    return digest.hexdigest()


def keep_module(module: nn.Module, normalisation: Normalisation | None) -> dict[str, Any]:
    """Keep a copy of ``module`` for this process; the arguments by which ``module_of`` finds it."""
    key = fingerprint(module)
    _modules[key] = copy.deepcopy(module).cpu().eval()
    arguments: dict[str, Any] = {"fingerprint": key}
    if normalisation is not None:
        mean, std = (list(map(float, values)) for values in normalisation)
        arguments |= {"mean": mean, "std": std}
    return arguments


def module_of(fingerprint: str, mean: Sequence[float] = (), std: Sequence[float] = ()) -> nn.Module:
    """A copy of the network that was kept. Raises MobilepruneError where this process was not given it."""
    if fingerprint not in _modules:
        raise MobilepruneError(
            "the network of this run was given as a Python object, of which a run keeps the weights and not the code: "
            "give the same one again, mobileprune.load(run, model=...) or mobileprune.optimize(model, data, run=...)"
        )
    return copy.deepcopy(_modules[fingerprint])


def keep_images(data: ImageData) -> str:
    """Keep a data set for this process; the spec by which ``images_of`` finds it."""
    spec = f"python:{data.fingerprint()}"
    _images[spec] = data
    return spec


def images_of(spec: str) -> ImageData | None:
    """The data set that was kept; None for a spec of another kind.

    Raises MobilepruneError where this process was not given it.
    """
    if not spec.startswith("python:"):
        return None
    if spec not in _images:
        raise MobilepruneError(
            "the images of this run were given as Python objects: give the same ones again, "
            "mobileprune.optimize(model, data, run=...), without random augmentation"
        )
    return _images[spec]


def as_images(data: Any, normalisation: Normalisation | None = None, *, flip: bool = True) -> ImageData:
    """A data set from what a person has in Python.

    data: ``(train, validation)`` or ``(train, validation, test)``, or a mapping with these names. Each is a DataLoader,
    a Dataset, any iterable of (images, labels) batches, or one pair of tensors or arrays. images: uint8, or float in
    [0, 1], or float normalised by ``normalisation`` (which is then undone): (N, 3, S, S), (N, S, S, 3) or one channel.
    flip: whether a mirrored image keeps its meaning. The notes tell of images that are in two splits, and of classes
    that are in none (outputs of a network that tells more apart). Raises UsageError for anything else, for fewer than
    two classes, and for a class that has images, but none to train on.
    """
    if isinstance(data, ImageData):
        return data
    names = ("train", "validation", "test")
    parts = dict(data) if isinstance(data, Mapping) else None
    if parts is None and isinstance(data, tuple | list) and 2 <= len(data) <= 3:
        parts = dict(zip(names, data, strict=False))
    if parts is None or not {"train", "validation"} <= set(parts) <= set(names):
        raise UsageError("data must be (train, validation), (train, validation, test) or a dict with these names")
    splits = {name: _split(part, normalisation, name) for name, part in parts.items() if part is not None}
    top = max(int(split.labels.max()) for split in splits.values())
    classes = tuple(map(str, _class_names(parts["train"]) or range(top + 1)))
    if top >= len(classes):
        raise UsageError(f"the labels go up to {top}, but there are {len(classes)} class names")
    found = ImageData(
        "given images", splits["train"], splits["validation"], splits.get("test"), classes=classes, flip=flip
    )
    return replace(found, notes=_checked(found))


def _checked(data: ImageData) -> tuple[str, ...]:
    """What is odd about the data, in words. Raises UsageError where they cannot train a classifier."""
    splits, count = data.splits, len(data.classes)
    unused = set(range(count)) - {int(label) for split in splits.values() for label in split.labels.unique()}
    check(data, "the given images", unused=unused)
    notes = leaks({name: split.digests for name, split in splits.items()})
    if unused:
        such = data.classes[min(unused)]
        notes.append(f"{len(unused)} of {count} classes have no image in any split, such as {such!r}")
    return tuple(notes)


def _class_names(part: Any) -> Sequence[str] | None:
    for owner in (part, getattr(part, "dataset", None)):
        if names := own_names(owner):
            return list(names)
    return None


def _split(part: Any, normalisation: Normalisation | None, name: str) -> Split:
    if isinstance(part, Split):
        return part
    images, labels = [], []
    for batch in _batches(part):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"the {name} data must give (images, labels) pairs, not {type(batch).__name__}")
        images.append(_pixels(torch.as_tensor(batch[0]), normalisation, name))
        labels.append(torch.as_tensor(batch[1]).reshape(-1).to(torch.int64))
    if not images or not sum(map(len, labels)):
        raise UsageError(f"the {name} data is empty")
    joined, known = torch.cat(images), torch.cat(labels)
    if len(joined) != len(known):
        raise UsageError(f"the {name} data has {len(joined)} images and {len(known)} labels")
    if int(known.min()) < 0:
        raise UsageError(f"the {name} data holds the label {int(known.min())}: labels start at 0")
    order = _order(joined, known)
    return Split(joined[order], known[order])


def _batches(part: Any) -> Iterable[Any]:
    pair = isinstance(part, tuple | list) and len(part) == 2
    if pair and all(isinstance(one, Tensor | np.ndarray) for one in part):
        return [part]
    if hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, tuple | list):
        return torch.utils.data.DataLoader(part, batch_size=_BATCH)
    if not isinstance(part, Iterable):
        raise UsageError(f"a split must be a DataLoader, a Dataset or (images, labels), not {type(part).__name__}")
    return part


def _pixels(images: Tensor, normalisation: Normalisation | None, name: str) -> Tensor:
    """A batch as uint8 (N, 3, S, S)."""
    if images.dim() == 3:
        images = images[:, None]
    if images.dim() != 4:
        raise UsageError(f"the {name} images have shape {tuple(images.shape)}: give (N, 3, S, S)")
    if images.shape[1] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
        raise UsageError(f"the {name} images have shape {tuple(images.shape)}: give squares with 1 or 3 channels")
    if images.dtype != torch.uint8:
        images = _undone(images.float(), normalisation, name)
    return images.expand(-1, 3, -1, -1).contiguous()


def _undone(images: Tensor, normalisation: Normalisation | None, name: str) -> Tensor:
    """Float pixels back as uint8: what normalisation did is undone."""
    if normalisation is not None:
        mean, std = (torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) for values in normalisation)
        images = images * std + mean
    low, high = float(images.min()), float(images.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        what = "after normalisation is undone they" if normalisation is not None else "they"
        raise UsageError(
            f"the {name} images are not pixels in [0, 1]: {what} run from {low:.3g} to {high:.3g}; "
            "say normalisation=(mean, std), by which your loader normalises"
        )
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _order(images: Tensor, labels: Tensor) -> Tensor:
    """The same order whatever order a shuffling loader gave them in: by label, then by the pixels' hash."""
    hashes = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images]
    return torch.tensor(sorted(range(len(labels)), key=lambda i: (int(labels[i]), hashes[i])))
