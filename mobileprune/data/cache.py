"""Decoded images on disk: every picture is decoded once, in parallel, and then mapped into memory by every run.

    index/KEY.npz       of a data set as it lies (paths, sizes, times) at one size and split: labels, digests, objects
    objects/HASH.u8     the pixels of one split, uint8 (N, 3, S, S), under a hash of those pixels

Files are written beside and renamed. One process builds a data set while others that want the same wait for it. The
oldest objects go when the folder outgrows its limit; a mapped file that is removed stays readable where it is mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mobileprune.data.decode import Decoded, decode, image_bytes, in_memory
from mobileprune.data.listing import Listing

_FORMAT = 2  # of what is written here; raised when the resize rule, the files or what counts as a split change
_DEFAULT_LIMIT_GB = 50.0
_STALE_S = 24 * 3600  # a half-built file this old has no builder any more


@dataclass(frozen=True)
class Prepared:
    """A data set, decoded: its splits, its class names and what else its listing said."""

    classes: tuple[str, ...]
    splits: dict[str, Decoded]
    flip: bool
    notes: tuple[str, ...]
    made_here: bool  # whether validation was held out of train here
    cached: Path | None = None  # the index file, where the pixels are mapped from the cache


def folder() -> Path:
    """``$MOBILEPRUNE_CACHE``, or ``mobileprune`` in the user's cache folder."""
    if chosen := os.environ.get("MOBILEPRUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mobileprune"


def limit_bytes() -> int:
    """What the objects may take together: ``$MOBILEPRUNE_CACHE_GB``, by default 50."""
    return int(float(os.environ.get("MOBILEPRUNE_CACHE_GB") or _DEFAULT_LIMIT_GB) * 1e9)


def prepare(identity: str | None, size: int | None, variant: str, make: Callable[[], Listing]) -> Prepared:
    """The decoded data set: from the cache where it is there, else decoded and, where that is worth it, cached.

    identity: of the source as it lies now (None: never cached). variant: what else the splits depend on, such as the
    seed. Where the cache cannot be written the images are decoded into memory, and a note says why.
    """
    if identity is None:
        return _uncached(make(), "")
    place = _Place(folder(), hashlib.sha256(f"{_FORMAT}|{size}|{variant}|{identity}".encode()).hexdigest()[:32])
    if (found := place.read()) is not None:
        return found
    listing = make()
    if not listing.encoded:
        return _uncached(listing, "")
    needed = sum(map(len, listing.splits.values())) * image_bytes(listing.size)
    if needed > limit_bytes():
        return _uncached(listing, f"{needed / 1e9:.1f} GB are more than the cache may hold (MOBILEPRUNE_CACHE_GB)")
    try:
        with place.locked():
            return place.read() or place.build(listing)
    except OSError as error:
        return _uncached(listing, f"the cache {place.root} cannot be written ({error.strerror or error})")


def _uncached(listing: Listing, why: str) -> Prepared:
    splits = {name: in_memory(records, listing.size, why) for name, records in listing.splits.items()}
    notes = (*listing.notes, f"decoded into memory, again for every command: {why}") if why else listing.notes
    return Prepared(listing.classes, splits, listing.flip, notes, listing.made_here)


@dataclass(frozen=True)
class _Place:
    root: Path
    key: str

    @property
    def index(self) -> Path:
        return self.root / "index" / f"{self.key}.npz"

    def object(self, name: str) -> Path:
        return self.root / "objects" / f"{name}.u8"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this data set; the lock is the kernel's and goes with the process."""
        self.index.parent.mkdir(parents=True, exist_ok=True)
        with self.index.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self) -> Prepared | None:
        """The data set as it was cached; None where any part of it is missing or damaged."""
        try:
            with np.load(self.index, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                splits = {name: self._map(part, file, name) for name, part in about["splits"].items()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        for part in about["splits"].values():
            with contextlib.suppress(OSError):  # the newest use decides what goes first
                os.utime(self.object(part["object"]))
        notes, made_here = tuple(about["notes"]), bool(about["made_here"])
        return Prepared(tuple(about["classes"]), splits, bool(about["flip"]), notes, made_here, self.index)

    def _map(self, part: dict[str, Any], file: Any, name: str) -> Decoded:
        count, size = part["count"], part["size"]
        path = self.object(part["object"])
        if path.stat().st_size != count * image_bytes(size):
            raise ValueError(f"{path} is cut short")
        pixels = np.memmap(path, np.uint8, mode="c", shape=(count, 3, size, size))
        digests, labels = file[f"{name}_digests"], torch.from_numpy(file[f"{name}_labels"])
        return Decoded(torch.from_numpy(pixels), labels, digests, str(file[f"{name}_names"]), tuple(part["broken"]))

    def build(self, listing: Listing) -> Prepared:
        """Decode into the cache. Raises OSError where it cannot be written; nothing half-built is left then."""
        (self.root / "objects").mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {"splits": {}}
        about |= {name: getattr(listing, name) for name in ("classes", "flip", "notes", "made_here")}
        arrays: dict[str, Any] = {}
        for name, records in listing.splits.items():
            temporary = self.root / "objects" / f".{self.key}-{name}.building"
            try:
                with temporary.open("w+b") as file:
                    total = len(records) * image_bytes(listing.size)
                    if total:
                        os.posix_fallocate(file.fileno(), 0, total)  # a full disk says so now, not when pages go out
                    decoded = decode(records, listing.size, _written(file))
                    file.truncate(decoded.count * image_bytes(listing.size))
                    file.flush()
                    os.fsync(file.fileno())
                object_name = hashlib.sha256(decoded.digests.tobytes()).hexdigest()[:32]
                temporary.replace(self.object(object_name))
            finally:
                temporary.unlink(missing_ok=True)
            about["splits"][name] = {
                "count": decoded.count, "size": listing.size, "object": object_name, "broken": decoded.broken,
            }  # fmt: skip
            arrays |= {f"{name}_labels": decoded.labels, f"{name}_digests": decoded.digests}
            arrays[f"{name}_names"] = np.asarray(decoded.names)
        temporary = self.index.with_name(f".{self.key}.building.npz")
        try:
            np.savez_compressed(temporary, about=np.asarray(json.dumps(about)), **arrays)
            temporary.replace(self.index)
        finally:
            temporary.unlink(missing_ok=True)
        evict(self.root, keep={part["object"] for part in about["splits"].values()})
        found = self.read()
        if found is None:
            raise OSError(f"what was written to {self.root} cannot be read back")
        return found


def _written(file: IO[bytes]) -> Callable[[np.ndarray], None]:
    def put(batch: np.ndarray) -> None:
        file.write(batch.data)

    return put


def evict(root: Path, keep: set[str]) -> None:
    """Remove the objects that were used longest ago until the rest keeps the limit; those in ``keep`` stay."""
    for leftover in root.glob("*/.*.building*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                leftover.unlink()
    objects = sorted((root / "objects").glob("*.u8"), key=lambda p: p.stat().st_mtime)
    total = sum(p.stat().st_size for p in objects)
    for path in objects:
        if total <= limit_bytes():
            break
        if path.stem not in keep:
            total -= path.stat().st_size
            path.unlink(missing_ok=True)
