"""Finding and reading the user's images: the bundled digits, a folder of class folders, or an .npz file.

Every image is decoded once to uint8 RGB at the base's input size. The resize rule is the same everywhere (training,
evaluation, verification of exported files): shorter side to S (bilinear, antialiased), then the centre S x S.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mobileprune.errors import MobilepruneError, UsageError

RESIZE_RULE = "shorter side to the input size (bilinear, antialiased), centre crop, RGB, scaled to [0, 1]"
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff"}
_VALIDATION_NAMES = ("val", "valid", "validation")
_VALIDATION_SHARE = {"digits": 0.2}
_DEFAULT_VALIDATION_SHARE = 0.1
_BROKEN_LIMIT = 0.01  # share of images that may be unreadable before the data is refused


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, 3, S, S) RGB; labels: int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, count: int, seed: int = 0) -> Split:
        """``count`` random images (all, where there are fewer), the same for the same seed."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class ImageData:
    """A data set in memory. ``test`` is None where the set has none: figures are then of the validation split."""

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

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std per channel of the train split, of pixels in [0, 1]."""
        pixels = self.train.sample(5000).images.float() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
        return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())

    def fingerprint(self) -> str:
        """A hash of every image and label of every split."""
        digest = hashlib.blake2b(digest_size=16)
        for split in (self.train, self.validation, self.test):
            if split is not None:
                digest.update(np.ascontiguousarray(split.images.numpy()).data)
                digest.update(split.labels.numpy().data)
        return digest.hexdigest()


def resize(images: Tensor, size: int) -> Tensor:
    """Square images, float (N, C, S, S), to (N, C, size, size) by the resize rule."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def load_data(spec: str, image_size: int | None = None, seed: int = 0) -> ImageData:
    """Read the data set that ``spec`` names: ``digits``, a folder, or a .npz file.

    image_size: the side S to read at; by default the data's own (32 px for digits, 224 px for folders).
    Raises UsageError for a set that is not there or cannot train a classifier.
    """
    if spec == "digits":
        data = _digits(image_size or 32, seed)
    else:
        path = Path(spec)
        if path.is_dir():
            data = _folder(path, image_size or 224, seed)
        elif path.suffix == ".npz" and path.is_file():
            data = _npz(path, image_size, seed)
        elif path.exists():
            raise UsageError(f"--data {spec}: neither a folder of class folders nor a .npz file")
        else:
            near = difflib.get_close_matches(spec, ["digits"])
            hint = "; did you mean digits?" if near else "; give digits, a folder of class folders or a .npz file"
            raise UsageError(f"--data {spec}: no such file or folder{hint}")
    _check(data, spec)
    return data


def _check(data: ImageData, spec: str) -> None:
    if len(data.classes) < 2:
        raise UsageError(f"--data {spec}: only one class ({data.classes[0]}); a classifier needs two or more")
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    if int(counts.min()) == 0:
        empty = data.classes[int(counts.argmin())]
        raise UsageError(f"--data {spec}: class {empty!r} has no training image; add some or remove the class")
    if len(data.validation) == 0:
        raise UsageError(f"--data {spec}: no image is left for validation; add images")


def _split(labels: Sequence[int] | npt.NDArray[np.int64], share: float, seed: int) -> tuple[list[int], list[int]]:
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


def _arrays(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], indices: Sequence[int]) -> Split:
    chosen = np.ascontiguousarray(images[indices].transpose(0, 3, 1, 2))
    return Split(torch.from_numpy(chosen), torch.from_numpy(labels[indices].astype(np.int64)))


def _digits(size: int, seed: int) -> ImageData:
    """scikit-learn's 1,797 handwritten digits (8 x 8, 17 grey levels), enlarged and shown as RGB."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images / 16 * 255).astype(np.uint8)
    images = np.stack([_fit(Image.fromarray(image), size) for image in grey])
    labels = digits.target.astype(np.int64)
    rest, held = _split(labels, _VALIDATION_SHARE["digits"], seed)
    names = tuple(str(i) for i in range(10))
    return ImageData("digits", _arrays(images, labels, rest), _arrays(images, labels, held), None, names, flip=False)


def _fit(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """A decoded image by the resize rule: uint8 (size, size, 3)."""
    image = image.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # PIL's bilinear is antialiased
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _folder(path: Path, size: int, seed: int) -> ImageData:
    subfolders = {p.name: p for p in sorted(path.iterdir()) if p.is_dir()}
    train = subfolders.get("train", path)
    held = next((subfolders[name] for name in _VALIDATION_NAMES if name in subfolders), None)
    classes = tuple(
        p.name for p in sorted(train.iterdir()) if p.is_dir() and p.name not in (*_VALIDATION_NAMES, "test")
    )
    if not classes:
        raise UsageError(f"--data {path}: empty or without class folders; put the images into {path}/CLASS/*.jpg")
    broken: list[str] = []
    images, labels = _read_folder(train, classes, size, broken)
    if "train" in subfolders and held is not None:
        splits = (_whole(images, labels), _whole(*_read_folder(held, classes, size, broken)))
    else:
        rest, held_out = _split(labels, _DEFAULT_VALIDATION_SHARE, seed)
        splits = (_arrays(images, labels, rest), _arrays(images, labels, held_out))
    test = _whole(*_read_folder(subfolders["test"], classes, size, broken)) if "test" in subfolders else None
    total = sum(len(s) for s in (*splits, test) if s is not None)
    if len(broken) > _BROKEN_LIMIT * total:
        raise UsageError(
            f"--data {path}: {len(broken)} images cannot be read (first: {broken[0]}); mend or remove them"
        )
    notes = tuple(f"not read: {entry}" for entry in broken)
    return ImageData(path.name, *splits, test, classes, flip=True, notes=notes)


def _whole(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Split:
    return _arrays(images, labels, range(len(labels)))


def _read_folder(
    folder: Path, classes: Sequence[str], size: int, broken: list[str]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All images of the class folders; unreadable ones are added to ``broken`` with the reason."""
    unknown = sorted({p.name for p in folder.iterdir() if p.is_dir()} - set(classes) - {*_VALIDATION_NAMES, "test"})
    if unknown:
        raise UsageError(f"--data {folder}: class {unknown[0]!r} is not among the training classes")
    images: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for file in sorted((folder / name).glob("*")):
            if file.suffix.lower() not in _IMAGE_SUFFIXES:
                continue
            try:
                with Image.open(file) as image:
                    images.append(_fit(image, size))
            except (OSError, ValueError, SyntaxError) as error:
                broken.append(f"{file} ({error})")
                continue
            labels.append(label)
    if not images:
        raise UsageError(f"--data {folder}: no readable image in its class folders; put them into {folder}/CLASS/*.jpg")
    return np.stack(images), np.asarray(labels, dtype=np.int64)


def _npz(path: Path, size: int | None, seed: int) -> ImageData:
    """Keys ``train_x, train_y[, test_x, test_y]`` (or x, y) with uint8 (N, H, W[, C]) images, or, as encoded files,
    ``train_jpeg, train_off, train_y`` (image i is jpeg[off[i]:off[i+1]]); ``val_*`` where the set has its own."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"--data {path}: not a readable .npz file ({error})") from error
    if {"x", "y"} <= arrays.keys():
        arrays = {("train_" + k if k in "xy" else k): v for k, v in arrays.items()}
    if "train_y" not in arrays:
        raise UsageError(
            f"--data {path}: no train_y among its keys ({', '.join(arrays)}); see `mobileprune optimize --help`"
        )
    found = {
        split: _npz_split(arrays, split, size, path) for split in ("train", "val", "test") if f"{split}_y" in arrays
    }
    images, labels = found["train"]
    count = int(labels.max()) + 1
    names = tuple(map(str, arrays["classes"])) if "classes" in arrays else tuple(map(str, range(count)))
    for split, (_, other) in found.items():
        if other.min() < 0 or other.max() >= len(names):
            raise UsageError(f"--data {path}: {split}_y holds labels outside 0..{len(names) - 1}")
    if "val" in found:
        train, validation = _whole(images, labels), _whole(*found["val"])
    else:
        rest, held = _split(labels, _DEFAULT_VALIDATION_SHARE, seed)
        train, validation = _arrays(images, labels, rest), _arrays(images, labels, held)
    test = _whole(*found["test"]) if "test" in found else None
    return ImageData(path.stem, train, validation, test, names, flip=True)


def _npz_split(
    arrays: dict[str, npt.NDArray[np.generic]], split: str, size: int | None, path: Path
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    labels = np.asarray(arrays[f"{split}_y"]).astype(np.int64).ravel()
    decode: Callable[[int], Image.Image]
    if f"{split}_jpeg" in arrays:
        blob, offsets = arrays[f"{split}_jpeg"], arrays[f"{split}_off"].astype(np.int64)
        count = len(offsets) - 1
        decode = lambda i: Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes()))  # noqa: E731
    elif f"{split}_x" in arrays:
        pixels = arrays[f"{split}_x"]
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
            raise UsageError(
                f"--data {path}: {split}_x is {pixels.dtype} {pixels.shape}; it must be uint8 (N, H, W) or (N, H, W, C)"
            )
        count = len(pixels)
        decode = lambda i: Image.fromarray(np.asarray(pixels[i]).squeeze())  # noqa: E731
    else:
        raise UsageError(f"--data {path}: {split}_y is there, but neither {split}_x nor {split}_jpeg")
    if count != len(labels):
        raise UsageError(f"--data {path}: {count} {split} images but {len(labels)} labels")
    try:
        side = size or min(decode(0).size)
        return np.stack([_fit(decode(i), side) for i in range(count)]), labels
    except OSError as error:
        raise MobilepruneError(f"--data {path}: an image of {split} cannot be decoded ({error})") from error
