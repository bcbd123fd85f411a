"""Decoding a split in parallel: PIL works outside of Python's lock, so threads are enough."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from mobileprune.data.images import DIGEST_BYTES, Labels, Pixels, digest, square
from mobileprune.data.listing import BROKEN, Records
from mobileprune.errors import MobilepruneError

_BATCH = 512  # images in memory at a time
_MEMORY_SHARE = 0.7  # of what is free that a data set in memory may take


@dataclass(frozen=True)
class Decoded:
    """images: uint8 (N, 3, S, S); labels: int64 (N,); digests: uint8 (N, 16); names: one line per image."""

    images: Tensor
    labels: Tensor
    digests: Pixels
    names: str
    broken: tuple[str, ...]

    def name(self, i: int) -> str:
        """Where image i came from."""
        return self.names.split("\n")[i]


@dataclass(frozen=True)
class Facts:
    """What decoding found out beside the pixels; broken images are in none of the arrays."""

    count: int
    labels: Labels
    digests: Pixels
    names: str
    broken: tuple[str, ...]


def image_bytes(size: int) -> int:
    """What an image of ``size`` px takes."""
    return 3 * size * size


def decode(records: Records, size: int, put: Callable[[Pixels], None]) -> Facts:
    """Decode every image to ``size`` px, in order; ``put`` gets batches, uint8 (n, 3, size, size)."""
    labels: list[int] = []
    digests: list[bytes] = []
    names: list[str] = []
    broken: list[str] = []

    def one(i: int) -> tuple[Pixels, bytes] | str:
        try:
            with records.open(i) as image:
                pixels = square(image, size)
        except BROKEN as error:
            return f"{records.name(i)} ({error})"
        return pixels, digest(pixels)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(records), _BATCH):
            wanted = range(start, min(start + _BATCH, len(records)))
            good: list[Pixels] = []
            for i, found in zip(wanted, pool.map(one, wanted), strict=True):
                if isinstance(found, str):
                    broken.append(found)
                    continue
                good.append(found[0])
                labels.append(int(records.labels[i]))
                digests.append(found[1])
                names.append(records.name(i).replace("\n", " "))
            if good:
                put(np.stack(good))
    table = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return Facts(len(labels), np.asarray(labels, np.int64), table, "\n".join(names), tuple(broken))


def in_memory(records: Records, size: int, why: str) -> Decoded:
    """Decode into memory. Raises MobilepruneError where there is not enough of it; ``why`` there is no cache."""
    needed, free = len(records) * image_bytes(size), psutil.virtual_memory().available
    if needed > _MEMORY_SHARE * free:
        raise MobilepruneError(
            f"{len(records):,} images of {size} px take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB of memory are free"
            + (f"; {why}; set MOBILEPRUNE_CACHE to a folder with room or take" if why else "; take")
            + " a smaller --image-size"
        )
    whole = np.empty((len(records), 3, size, size), np.uint8)
    filled = 0

    def put(batch: Pixels) -> None:
        nonlocal filled
        whole[filled : filled + len(batch)] = batch
        filled += len(batch)

    facts = decode(records, size, put)
    images = torch.from_numpy(whole[: facts.count])
    return Decoded(images, torch.from_numpy(facts.labels), facts.digests, facts.names, facts.broken)
