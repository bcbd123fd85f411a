"""Data sets that are files: a folder or an archive of class folders, and .npz arrays."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobileprune.data.images import Labels
from mobileprune.data.listing import IMAGE_SUFFIXES, Listing, Records, Tree, identify, split_named
from mobileprune.errors import UsageError

_FOLDER_SIZE = 224
_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(_ARCHIVE_SUFFIXES)


def _is_image(path: PurePosixPath | Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


@dataclass(frozen=True)
class Folder:
    """A folder of class folders, or of ``train``, ``val`` and ``test`` folders of class folders.

    ``training``, ``valid``, ``validation`` and ``testing`` are such folders, too, however they are capitalised. Without
    ``train`` the classes lie beside ``val`` and ``test``.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def identity(self) -> str:
        return "\n".join(identify(file) for file in self._walk()[0])

    def listing(self, size: int | None) -> Listing:
        files, folders = self._walk()
        relative = [PurePosixPath(file.relative_to(self.path).as_posix()) for file in files]
        tree = Tree(str(self.path), relative, folders)
        return tree.records(lambda i: Image.open(files[i]), size or _FOLDER_SIZE)

    def _walk(self) -> tuple[list[Path], frozenset[PurePosixPath]]:
        """Every image below, and every folder, in order."""
        files: list[Path] = []
        folders: set[PurePosixPath] = set()
        for root, names, found in os.walk(self.path, followlinks=True):
            names[:] = sorted(name for name in names if not name.startswith("."))
            here = Path(root)
            folders |= {PurePosixPath((here / name).relative_to(self.path).as_posix()) for name in names}
            files += [here / name for name in sorted(found) if _is_image(here / name)]
        return files, frozenset(folders)


@dataclass(frozen=True)
class Archive:
    """A tar file, also compressed, of what ``Folder`` reads; one folder around everything does not matter."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name.partition(".")[0]

    def identity(self) -> str:
        return identify(self.path)

    def listing(self, size: int | None) -> Listing:
        file = self._plain()
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                members = list(archive)
        except tarfile.TarError as error:
            raise UsageError(f"--data {self.path}: not a readable tar archive ({error})") from error
        paths = [PurePosixPath(m.name) for m in members]
        images = [(p, m) for p, m in zip(paths, members, strict=True) if m.isfile() and _is_image(p)]
        folders = {p for p, m in zip(paths, members, strict=True) if m.isdir()}
        folders |= {parent for p, _ in images for parent in p.parents if parent.parts}
        strip = _common_depth([p for p, _ in images])
        tree = Tree(
            str(self.path),
            [PurePosixPath(*p.parts[strip:]) for p, _ in images],
            frozenset(PurePosixPath(*f.parts[strip:]) for f in folders if len(f.parts) > strip),
        )

        def open_member(i: int) -> Image.Image:
            member = images[i][1]
            return Image.open(io.BytesIO(os.pread(file.fileno(), member.size, member.offset_data)))

        return tree.records(open_member, size or _FOLDER_SIZE)

    def _plain(self) -> IO[bytes]:
        """The archive, open and uncompressed: pictures are read from it in any order."""
        if self.path.suffix == ".tar":
            return self.path.open("rb")
        try:
            plain = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the listing that reads from it
            with _decompressed(self.path) as packed:
                shutil.copyfileobj(packed, plain, 1 << 20)
        except (OSError, EOFError) as error:
            raise UsageError(
                f"--data {self.path}: cannot be unpacked into {tempfile.gettempdir()} ({error}); unpack it yourself"
            ) from error
        plain.flush()
        plain.seek(0)
        return plain


def _decompressed(path: Path) -> IO[bytes]:
    import bz2
    import gzip
    import lzma

    if path.suffix.lower() == ".bz2":
        return bz2.open(path)
    return cast(IO[bytes], lzma.open(path) if path.suffix.lower() == ".xz" else gzip.open(path))


def _common_depth(paths: list[PurePosixPath]) -> int:
    """How many leading folders all images share beyond what a class or a split needs."""
    depth = 0
    while paths and all(len(p.parts) > depth + 2 for p in paths):
        shared = {p.parts[depth] for p in paths}
        if len(shared) > 1 or any(map(split_named, shared)):
            break
        depth += 1
    return depth


@dataclass(frozen=True)
class Npz:
    """Keys ``train_x, train_y[, test_x, test_y]`` (or x, y) with uint8 (N, H, W[, C]) images, or, as encoded files,
    ``train_jpeg, train_off, train_y`` (image i is jpeg[off[i]:off[i+1]]); ``val_*`` where the set has its own."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    def identity(self) -> str:
        return identify(self.path)

    def listing(self, size: int | None) -> Listing:
        arrays = self._arrays()
        where = f"--data {self.path}"
        if "train_y" not in arrays:
            raise UsageError(f"{where}: no train_y among its keys ({', '.join(arrays)}); see `mobileprune data --help`")
        prefixes = {"train": "train", "val": "validation", "test": "test"}
        splits = {split: self._split(arrays, key) for key, split in prefixes.items() if f"{key}_y" in arrays}
        count = int(splits["train"].labels.max()) + 1
        names = tuple(map(str, arrays["classes"])) if "classes" in arrays else tuple(map(str, range(count)))
        encoded = any(key.endswith("_jpeg") for key in arrays)
        own = min(splits["train"].open(0).size)
        return Listing(names, splits, size or own, encoded=encoded or (size or own) != own)

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError) as error:
            raise UsageError(f"--data {self.path}: not a readable .npz file ({error})") from error
        if {"x", "y"} <= arrays.keys():
            arrays = {("train_" + k if k in "xy" else k): v for k, v in arrays.items()}
        return arrays

    def _split(self, arrays: dict[str, npt.NDArray[np.generic]], key: str) -> Records:
        where = f"--data {self.path}"
        labels: Labels = np.asarray(arrays[f"{key}_y"]).astype(np.int64).ravel()
        if f"{key}_jpeg" in arrays:
            records = encoded_records(
                labels, arrays[f"{key}_jpeg"], arrays[f"{key}_off"].astype(np.int64), f"{self.path}:{key}"
            )
            count = len(arrays[f"{key}_off"]) - 1
        elif f"{key}_x" in arrays:
            pixels = arrays[f"{key}_x"]
            records = pixel_records(labels, pixels, f"{where}: {key}_x", f"{self.path}:{key}")
            count = len(pixels)
        else:
            raise UsageError(f"{where}: {key}_y is there, but neither {key}_x nor {key}_jpeg")
        if count != len(labels):
            raise UsageError(f"{where}: {count} {key} images but {len(labels)} labels")
        if not count:
            raise UsageError(f"{where}: {key}_y is empty; give images or leave {key} out")
        return records


def encoded_records(
    labels: Labels, blob: npt.NDArray[np.generic], offsets: npt.NDArray[np.int64], where: str
) -> Records:
    """Records of encoded files one after the other: image i is ``blob[offsets[i]:offsets[i + 1]]``."""

    def decode(i: int) -> Image.Image:
        return Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes()))

    return Records(labels, decode, lambda i: f"{where}[{i}]")


def pixel_records(labels: Labels, pixels: npt.NDArray[np.generic], what: str, where: str) -> Records:
    """Records of an array: uint8 (N, H, W) or (N, H, W, C). Raises UsageError, naming ``what``, for any other."""
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in (3, 4)
        or (pixels.ndim == 4 and pixels.shape[-1] not in (1, 3, 4))
    ):
        raise UsageError(f"{what} is {pixels.dtype} {pixels.shape}; it must be uint8 (N, H, W) or (N, H, W, C)")

    def picture(i: int) -> Image.Image:
        image = pixels[i]
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)

    return Records(labels, picture, lambda i: f"{where}[{i}]")
