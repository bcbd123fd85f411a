"""From stored uint8 images to what a network sees: augmentation, resizing, normalisation; whole batches at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
        """uint8 (N, C, S, S) to float32 (N, C, size, size), channels last."""
        pixels = resize(images.to(torch.float32) / 255, self.size)
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """Randomly shifted crops (reflected borders) and, with ``flip``, mirror images: uint8 (N, C, S, S) to the same."""
    count, _, side, _ = images.shape
    pad = max(side // _PAD_SHARE, 1)
    padded = F.pad(images.float(), (pad, pad, pad, pad), mode="reflect").to(torch.uint8)
    offsets = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    span = torch.arange(side)
    rows, columns = offsets[0] + span, offsets[1] + span
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count, device=images.device).view(-1, 1, 1)
    rows, columns = rows.to(images.device), columns.to(images.device)
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resident(split: Split, device: torch.device) -> Split:
    """The split on a GPU for good where that takes little of its memory: batches are then never copied there."""
    if device.type != "cuda" or split.images.numel() > _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return split
    return Split(split.images.to(device), split.labels.to(device))


def shuffled(split: Split, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order. A last batch of a single image is left out: batch norm cannot train on one."""
    order = torch.randperm(len(split), generator=generator)
    for chosen in order.to(split.images.device).split(batch_size):
        if len(chosen) > 1:
            yield split.images[chosen], split.labels[chosen]
