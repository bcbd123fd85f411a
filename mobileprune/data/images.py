"""Images as training reads them: uint8 RGB squares, in memory or mapped from a file; and how a file becomes one.

The resize rule is the same everywhere (training, evaluation, verification of exported files): shorter side to S
(bilinear, antialiased), then the centre S x S.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

RESIZE_RULE = "shorter side to the input size (bilinear, antialiased), centre crop, RGB, scaled to [0, 1]"
DIGEST_BYTES = 16
_CHUNK = 200  # images that are floats at a time: 240 MB at 224 px

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, 3, S, S) RGB; labels: int64 (N,); known_digests: uint8 (N, 16), computed where left out."""

    images: Tensor
    labels: Tensor
    known_digests: Pixels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digests(self) -> Pixels:
        """A hash of each image's pixels: uint8 (N, 16)."""
        if self.known_digests is not None:
            return self.known_digests
        rows = [np.frombuffer(digest(image), np.uint8) for image in self.images.contiguous().numpy()]
        return np.stack(rows) if rows else np.zeros((0, DIGEST_BYTES), np.uint8)

    def take(self, indices: Sequence[int] | Tensor) -> Split:
        """The images at ``indices``, copied into memory."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        digests = None if self.known_digests is None else self.known_digests[chosen.numpy()]
        return Split(self.images[chosen], self.labels[chosen], digests)

    def sample(self, count: int, seed: int = 0) -> Split:
        """``count`` random images (all, where there are fewer), the same for the same seed."""
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count])


@dataclass(frozen=True)
class ImageData:
    """A data set. ``test`` is None where the set has none: figures are then of the validation split."""

    name: str
    train: Split
    validation: Split
    test: Split | None
    classes: tuple[str, ...]
    flip: bool  # whether a mirrored image keeps its meaning (not so for digits)
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The side S of the stored images, in pixels."""
        return int(self.train.images.shape[-1])

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std per channel of (at most 5,000 images of) the train split, of pixels in [0, 1]."""
        images = self.train.images
        sums, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:5000]
        for part in chosen.split(_CHUNK):
            pixels = images[part].double().div_(255)
            sums += pixels.sum((0, 2, 3))
            squares += pixels.square_().sum((0, 2, 3))
        count = len(chosen) * images.shape[2] * images.shape[3]
        mean = sums / count
        std = ((squares - count * mean.square()) / max(count - 1, 1)).clamp_min(1e-6).sqrt()
        return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())

    def fingerprint(self) -> str:
        """A hash of every image and label of every split."""
        whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for split in self.splits.values():
            whole.update(np.ascontiguousarray(split.digests).data)
            whole.update(split.labels.numpy().data)
        return whole.hexdigest()


def digest(image: Pixels) -> bytes:
    """A hash of an image's pixels, the same wherever and however the image was stored."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=DIGEST_BYTES).digest()


def resize(images: Tensor, size: int) -> Tensor:
    """Square images, (N, C, S, S), to (N, C, size, size) by the resize rule: float, or uint8 on the CPU."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def square(image: Image.Image, size: int) -> Pixels:
    """A decoded image by the resize rule: uint8 (3, size, size)."""
    image = as_rgb(image)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # PIL's bilinear is antialiased
    left, top = (width - size) // 2, (height - size) // 2
    cropped = np.asarray(image.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(cropped.transpose(2, 0, 1))


def as_rgb(image: Image.Image) -> Image.Image:
    """Grey, palette, transparent, CMYK, 16-bit and float images as 8-bit RGB; alpha is dropped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    """Grey levels of 0..65535, 0..255 or (float) 0..1, told apart by the largest: PIL alone would clip them at 255."""
    wide = values.astype(np.float64)
    top = float(wide.max(initial=0.0))
    if np.issubdtype(values.dtype, np.floating) and top <= 1:
        wide = wide * 255
    elif top > 255 or values.dtype == np.uint16:
        wide = wide / 257
    return np.clip(np.rint(wide), 0, 255).astype(np.uint8)
