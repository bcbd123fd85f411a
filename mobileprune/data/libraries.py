"""Data sets that come from code: the bundled digits, torchvision's, Hugging Face's, and the user's own function."""

from __future__ import annotations

import difflib
import inspect
import io
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobileprune._torchvision import import_torchvision
from mobileprune.data.cache import folder as cache_folder
from mobileprune.data.files import pixel_records
from mobileprune.data.images import Labels
from mobileprune.data.listing import Listing, Records, identify
from mobileprune.errors import MobilepruneError, UsageError

_PHOTO_SIZE = 224
_WRITE_FACTORY = "write a file.py:factory that returns the splits"
# A mirrored digit, letter or traffic sign is another one.
_NO_MIRROR = {"MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "GTSRB", "Omniglot", "RenderedSST2"}


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits (8 x 8, 17 grey levels), enlarged and shown as RGB."""

    name: str = "digits"

    def identity(self) -> None:
        return None

    def listing(self, size: int | None) -> Listing:
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = (digits.images / 16 * 255).astype(np.uint8)
        train = pixel_records(digits.target.astype(np.int64), grey, "digits", "digits")
        names = tuple(str(i) for i in range(10))
        return Listing(names, {"train": train}, size or 32, flip=False, held_out=0.2, encoded=False)


@dataclass(frozen=True)
class Torchvision:
    """``torchvision:CIFAR10``: a classification set of torchvision.datasets, below ``root``; fetched on request."""

    name: str
    root: Path | None = None
    download: bool = False

    @property
    def _root(self) -> Path:
        return self.root or cache_folder() / "torchvision" / self.name

    def identity(self) -> str | None:
        if not self._root.is_dir():
            return None
        files = sorted(p for p in self._root.rglob("*") if p.is_file())
        return "\n".join([self.name, *(identify(file) for file in files)]) if files else None

    def listing(self, size: int | None) -> Listing:
        kind = self._kind()
        parameters = inspect.signature(kind).parameters
        choices: dict[str, list[dict[str, Any]]]  # ways to ask for a split; the first that the set knows
        if "train" in parameters:
            choices = {"train": [{"train": True}], "test": [{"train": False}]}
        elif "split" in parameters:
            names = {"train": ["train"], "validation": ["val", "valid"], "test": ["test"]}
            choices = {split: [{"split": name} for name in known] for split, known in names.items()}
        else:
            raise UsageError(
                f"--data torchvision:{self.name}: it has no train split of labelled images; {_WRITE_FACTORY}"
            )
        sets: dict[str, Any] = {}
        for split, ways in choices.items():
            opened = (self._open(kind, how, required=split == "train") for how in ways)
            if (found := next((one for one in opened if one is not None), None)) is not None:
                sets[split] = found
        classes = getattr(sets["train"], "classes", None)
        splits = {
            split: dataset_records(found, f"torchvision:{self.name}:{split}", threads=True)
            for split, found in sets.items()
        }
        own = min(splits["train"].open(0).size)
        size = size or (own if hasattr(sets["train"], "data") else _PHOTO_SIZE)
        return Listing(_class_names(classes, splits), splits, size, flip=self.name not in _NO_MIRROR)

    def _kind(self) -> Any:
        from importlib import import_module

        import_torchvision()
        datasets = import_module("torchvision.datasets")
        known = [n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))]
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"--data torchvision:{self.name}: torchvision has no such data set{hint}")
        return getattr(datasets, self.name)

    def _open(self, kind: Any, how: Mapping[str, Any], *, required: bool) -> Any:
        more = {"download": self.download} if "download" in inspect.signature(kind).parameters else {}
        try:
            if self.download:
                self._root.mkdir(parents=True, exist_ok=True)
            return kind(str(self._root), **how, **more)
        except (TypeError, ValueError) as error:  # no such split, or it asks for more than that
            if required:
                reason = str(error).rstrip(".")
                raise UsageError(
                    f"--data torchvision:{self.name}: its train split cannot be opened ({reason}); {_WRITE_FACTORY}"
                ) from error
            return None
        except (RuntimeError, OSError) as error:
            if not required and not self.download:
                return None
            reason = str(error).splitlines()[0]
            remedy = (
                "" if self.download else "; allow the download with --download, or name its folder with --data-root"
            )
            raise UsageError(f"--data torchvision:{self.name}: not in {self._root} ({reason}){remedy}") from error


@dataclass(frozen=True)
class HuggingFace:
    """``hf:NAME_OR_PATH[:CONFIG]``: an image classification set of Hugging Face ``datasets``, on disk or by name."""

    spec: str
    download: bool = False

    @property
    def name(self) -> str:
        return self.spec.rstrip("/").rpartition("/")[2]

    def identity(self) -> str | None:
        path = Path(self.spec)
        if not path.exists():
            return "\n".join(f"{name} {part._fingerprint}" for name, part in self._sets.items())
        return (
            "\n".join(identify(p) for p in sorted(path.rglob("*")) if p.is_file()) if path.is_dir() else identify(path)
        )

    def listing(self, size: int | None) -> Listing:
        found = self._sets
        known = {
            "train": "train",
            "test": "test",
            "validation": "validation",
            "valid": "validation",
            "val": "validation",
        }
        sets = {known[name]: part for name, part in found.items() if name in known}
        if "train" not in sets:
            raise UsageError(f"--data hf:{self.spec}: no train split among {', '.join(found)}")
        image, label = self._columns(sets["train"].features)
        names = getattr(sets["train"].features[label], "names", None)
        splits = {}
        for split, part in sets.items():
            splits[split] = self._records(part, image, label, split)
        return Listing(_class_names(names, splits), splits, size or _PHOTO_SIZE)

    @cached_property
    def _sets(self) -> Mapping[str, Any]:
        """The library's splits by name."""
        try:
            import datasets  # type: ignore[import-untyped, unused-ignore]
        except ModuleNotFoundError as error:
            raise MobilepruneError(f"--data hf:{self.spec} needs datasets; run: pip install datasets") from error
        path, _, config = self.spec.partition(":")
        try:
            if (Path(path) / "dataset_dict.json").exists():
                found: Mapping[str, Any] = datasets.load_from_disk(path)
                return found
            if (Path(path) / "state.json").exists():
                return {"train": datasets.load_from_disk(path)}
            offline = {} if self.download else {"download_config": datasets.DownloadConfig(local_files_only=True)}
            found = datasets.load_dataset(path, config or None, **offline)
        except Exception as error:  # the library raises many kinds
            remedy = "" if self.download or Path(path).exists() else "; allow the download with --download"
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(f"--data hf:{self.spec}: cannot be loaded ({reason}){remedy}") from error
        return found

    def _columns(self, features: Mapping[str, Any]) -> tuple[str, str]:
        """The names of the image and the label column."""
        images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        labels = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
        labels += [name for name in ("label", "labels", "fine_label") if name in features and name not in labels]
        if not images or not labels:
            kinds = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
            raise UsageError(f"--data hf:{self.spec}: needs an Image and a ClassLabel column; it has {kinds}")
        return images[0], labels[0]

    def _records(self, part: Any, image: str, label: str, split: str) -> Records:
        import datasets

        encoded = part.cast_column(image, datasets.Image(decode=False))

        def picture(i: int) -> Image.Image:
            cell = encoded[i][image]
            return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])

        where = f"hf:{self.spec}:{split}"
        return Records(np.asarray(_numbers(part[label][:], where), np.int64), picture, lambda i: f"{where}[{i}]")


@dataclass(frozen=True)
class Factory:
    """``file.py:function``: a function that returns the splits, as a mapping or in the order train, validation, test.

    A split is a torch data set of (image, label), asked for one item at a time, a loader of such batches, or a pair of
    arrays. Images are PIL images, uint8 arrays (H, W[, C]) or tensors (C, H, W), or floats in [0, 1] of such shapes.
    The file may name its ``CLASSES`` (needed for names behind a ``target_transform``) and say ``FLIP = False`` where a
    mirrored image has another meaning.
    """

    path: Path
    function: str

    @property
    def name(self) -> str:
        return f"{self.path.stem}-{self.function}"

    def identity(self) -> None:
        return None  # the function may read anything

    def listing(self, size: int | None) -> Listing:
        from mobileprune.models import import_file

        where = f"--data {self.path}:{self.function}"
        if not self.path.is_file():
            raise UsageError(f"{where}: no such file")
        module = import_file(self.path)
        factory = getattr(module, self.function, None)
        if not callable(factory):
            raise UsageError(f"{where}: the file has no function {self.function!r}")
        try:
            made = factory()
        except Exception as error:  # the user's code may raise anything
            raise MobilepruneError(f"{where} failed: {type(error).__name__}: {error}") from error
        splits = {name: _records_of(part, f"{where}:{name}") for name, part in self._splits(made, where).items()}
        classes = getattr(module, "CLASSES", None) or own_names(self._splits(made, where)["train"])
        own = min(splits["train"].open(0).size)
        flip = bool(getattr(module, "FLIP", True))
        return Listing(_class_names(classes, splits), splits, size or own, flip=flip, encoded=False)

    @staticmethod
    def _splits(made: Any, where: str) -> dict[str, Any]:
        names = {
            "train": "train",
            "val": "validation",
            "valid": "validation",
            "validation": "validation",
            "test": "test",
        }
        if isinstance(made, Mapping):
            unknown = [str(name) for name in made if name not in names]
            if unknown or "train" not in made:
                raise UsageError(f"{where} returned {', '.join(map(str, made))}; give train, and validation and test")
            return {names[name]: part for name, part in made.items() if part is not None}
        pair_of_arrays = isinstance(made, Sequence) and len(made) == 2 and all(hasattr(part, "dtype") for part in made)
        if not isinstance(made, Sequence) or pair_of_arrays or hasattr(made, "dtype"):
            return {"train": made}
        return {
            name: part for name, part in zip(("train", "validation", "test"), made, strict=False) if part is not None
        }


def _class_names(given: Iterable[Any] | None, splits: Mapping[str, Records]) -> tuple[str, ...]:
    """The names that the set gives itself, else numbers."""
    if given is not None and (names := tuple(str(n[0]) if isinstance(n, tuple) else str(n) for n in given)):
        return names
    count = 1 + max(int(records.labels.max(initial=0)) for records in splits.values())
    return tuple(map(str, range(count)))


def _records_of(part: Any, where: str) -> Records:
    """Records of whatever a user's function gave as one split."""
    if isinstance(part, Sequence) and len(part) == 2 and all(hasattr(a, "shape") for a in part):
        images, labels = part
        if len(images) != len(labels):
            raise UsageError(f"{where}: {len(images)} images but {len(labels)} labels")
        return _made(lambda i: images[i], _numbers(labels, where), where)
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        return dataset_records(part, where)
    try:
        batches = list(part)
        pairs = [(image, label) for images, labels in batches for image, label in zip(images, labels, strict=True)]
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{where} is a {type(part).__name__}: give a data set of (image, label), a loader of batches or two arrays"
        ) from error
    return _made(lambda i: pairs[i][0], _numbers((label for _, label in pairs), where), where)


def dataset_records(dataset: Any, where: str, *, threads: bool = False) -> Records:
    """Records of a torch data set of (image, label).

    Labels are read from its usual fields where these hold one number each and no ``target_transform`` makes others of
    them. threads: whether its items may be read by several threads at once. Else one reads at a time, as items may come
    from one file handle; making RGB squares of them stays parallel. Raises UsageError where a label is no number.
    """
    fields = (getattr(dataset, name, None) for name in ("targets", "_labels", "labels"))
    known = None if _renumbers(dataset) else next((field for field in fields if field is not None), None)
    if known is None or len(known) != len(dataset) or (len(known) and np.asarray(known[0]).size != 1):
        known = (dataset[i][1] for i in range(len(dataset)))
    read = (lambda i: dataset[i][0]) if threads else _one_at_a_time(dataset)
    return _made(read, _numbers(known, where), where)


def _one_at_a_time(dataset: Any) -> Callable[[int], Any]:
    lock = threading.Lock()

    def read(i: int) -> Any:
        with lock:
            image = dataset[i][0]
            if isinstance(image, Image.Image):
                image.load()  # PIL leaves the pixels in the file until they are wanted
        return image

    return read


def own_names(dataset: Any) -> Iterable[Any] | None:
    """The class names that a data set brings; None where its ``target_transform`` makes other classes of them."""
    return None if _renumbers(dataset) else getattr(dataset, "classes", None)


def _renumbers(dataset: Any) -> bool:
    return getattr(dataset, "target_transform", None) is not None


def _numbers(labels: Iterable[Any], where: str) -> list[int]:
    """Labels as class numbers, -1 where there is none. Raises UsageError for one that is no single number."""
    found: list[int] = []
    for label in labels:
        try:
            found.append(-1 if label is None else int(label))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{where}: the label of image {len(found)} is a {type(label).__name__} ({error}); give one class number"
            ) from error
    return found


def _made(image: Callable[[int], Any], labels: Sequence[int], where: str) -> Records:
    if not labels:
        raise UsageError(f"{where}: empty; give images or leave the split out")
    table: Labels = np.asarray(labels, np.int64)
    return Records(table, lambda i: _picture(image(i), where), lambda i: f"{where}[{i}]")


def _picture(value: Any, where: str) -> Image.Image:
    """A PIL image of what a data set may hold. Raises UsageError for a shape or type that is no image."""
    if isinstance(value, Image.Image):
        return value
    array = np.asarray(value)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating) and array.size and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3):
        raise UsageError(
            f"{where}: an image is {array.dtype} {array.shape}; give uint8, or floats in [0, 1] not yet normalised"
        )
    return Image.fromarray(array)
