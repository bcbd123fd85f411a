"""From stored uint8 images to what a network sees: augmentation, resizing, normalisation; whole batches at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mobileprune.data import Split, resize

_RESIDENT_SHARE = 0.25
_PAD_SHARE = 8  # crops are shifted by up to 1/8 of the side, as 4 px are for CIFAR's 32 px


@dataclass(frozen=True)
class View:
    """What a network sees of an image: ``size`` x ``size`` pixels, normalised by mean and std of pixels in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, C, S, S), or float of the same range, to float32 (N, C, size, size), channels last."""
        # Bytes take a third of the time of floats; only the CPU resizes them as bytes (rounded, as PIL does).
        pixels = resize(images if images.device.type == "cpu" else images.float(), self.size)
        pixels = pixels.contiguous(memory_format=torch.channels_last).to(torch.float32)
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return torch.addcmul(-mean / std, pixels, 1 / (255 * std))


@dataclass(frozen=True)
class Share:
    """The part of every batch that falls to one of ``count`` processes which train together."""

    rank: int = 0
    count: int = 1

    def of(self, images: int) -> slice:
        """This process's rows of so many: shares differ by one row at most."""
        return slice(images * self.rank // self.count, images * (self.rank + 1) // self.count)


WHOLE = Share()


@dataclass(frozen=True)
class Batch:
    """images: uint8 (n, C, S, S), augmented; labels: (n,). whole: images of the batch in all processes together."""

    images: Tensor
    labels: Tensor
    whole: int


def batches(
    split: Split,
    size: int,
    generator: torch.Generator,
    device: torch.device,
    *,
    flip: bool,
    share: Share = WHOLE,
    paired: bool = False,
) -> Iterator[Batch]:
    """One epoch in random order, in batches of ``size``, augmented, on ``device``.

    All processes draw the same order and augmentation from ``generator``, whatever their share. paired: as many images
    as make pairs in every process. A last batch too small for two images in each process is left out, as batch norm
    cannot train on one.
    """
    order = torch.randperm(len(split), generator=generator)
    for chosen in order.split(size):
        crops = Crops.draw(len(chosen), split.images.shape[-1], generator, flip=flip)
        if taken := _taken(len(chosen), share, paired):
            mine = share.of(taken)
            rows = chosen[mine].to(split.images.device)
            images = crops[mine](split.images.index_select(0, rows).to(device))
            yield Batch(images, split.labels[rows].to(device), taken)


def images_per_epoch(images: int, size: int, share: Share, *, paired: bool) -> int:
    """How many of ``images`` an epoch in batches of ``size`` trains on, in all processes."""
    return images // size * _taken(size, share, paired) + _taken(images % size, share, paired)


def _taken(images: int, share: Share, paired: bool) -> int:
    """How many images of a batch are trained on."""
    least = 2 * share.count
    return images // least * least if paired else images * (images >= least)


@dataclass(frozen=True)
class Crops:
    """Where each of N images is cut out: the row and the column, (N, S), that each pixel is taken from."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def draw(cls, count: int, side: int, generator: torch.Generator, *, flip: bool) -> Crops:
        """Shifted crops with reflected borders and, with ``flip``, mirror images, at random."""
        pad = max(side // _PAD_SHARE, 1)
        offsets = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator) - pad
        rows, columns = (side - 1 - (side - 1 - (offset + torch.arange(side)).abs()).abs() for offset in offsets)
        if flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        return cls(rows, columns)

    def __getitem__(self, some: slice) -> Crops:
        return Crops(self.rows[some], self.columns[some])

    def __call__(self, images: Tensor) -> Tensor:
        """Cut: (N, C, S, S) to the same."""
        rows, columns = self.rows.to(images.device), self.columns.to(images.device)
        places = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).flatten(1)[:, None]
        return images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).view(images.shape)


def resident(split: Split, device: torch.device) -> Split:
    """The split on a GPU for good where that takes little of its memory: batches are then never copied there."""
    if device.type != "cuda" or split.images.numel() > _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return split
    return Split(split.images.to(device), split.labels.to(device))
