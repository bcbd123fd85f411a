"""A network as verified files: written, calibrated where its precision asks for it, and checked on real images."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import exporters
from exporters import manifest, verify
from exporters.android import PRECISIONS as ANDROID_PRECISIONS
from exporters.android import write_bundle
from exporters.quantize import ALLOWED_DROP, Quantized, quantize_within
from mobileprune.budget import shown
from mobileprune.data import RESIZE_RULE, Split
from mobileprune.errors import UsageError
from mobileprune.training.batches import View

FORMATS = ("onnx", "tflite")  # what a run writes unless told otherwise
CALIBRATION_IMAGES = 256
_NOISE_IMAGES = 8
_ANDROID_INTEGER = "int8-float-io"  # MediaPipe takes no int8 input; inside it is the same file


def balanced(split: Split, count: int, seed: int) -> Split:
    """``count`` random images, as many of each class as there are; the same for the same seed."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    labels = split.labels[order]
    turn = torch.zeros(len(order), dtype=torch.int64)  # how many of its class come before each image
    for label in labels.unique():
        of_class = labels == label
        turn[of_class] = torch.arange(int(of_class.sum()))
    return split.take(order[torch.argsort(turn, stable=True)[:count]])


@dataclass(frozen=True)
class Seen:
    """Stored images (N, C, S, S) as ``view`` shows them, float32 where they are taken: a split is too much at once."""

    view: View
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, some: slice, /) -> NDArray[np.float32]:
        return self.view(self.images[some]).contiguous().numpy()


@dataclass(frozen=True)
class Images:
    """What files are calibrated and checked on, as stored; both None where the user gave no data."""

    view: View
    train: Split | None = None
    validation: Split | None = None
    seed: int = 0

    @cached_property
    def checked(self) -> Seen | NDArray[np.float32]:
        """Normalised (N, 3, S, S): the validation split, or noise where there is no data."""
        if self.validation is None:
            shape = (_NOISE_IMAGES, 3, self.view.size, self.view.size)
            return np.random.default_rng(self.seed).standard_normal(shape, np.float32)
        return Seen(self.view, self.validation.images)

    @property
    def stored(self) -> int | None:
        """The side of the stored squares, in pixels, which ``view`` makes smaller; None without data."""
        return None if self.validation is None else int(self.validation.images.shape[-1])

    @property
    def resize(self) -> str:
        """How an image becomes the network's input, in words."""
        if self.stored in (None, self.view.size):
            return RESIZE_RULE
        return RESIZE_RULE.replace("the input size", f"{self.stored} pixels").replace(
            "centre crop", f"centre crop, to {self.view.size} pixels in the same way"
        )

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.validation is None else self.validation.labels.numpy()

    @cached_property
    def calibration(self) -> NDArray[np.float32]:
        """Normalised training images, as many of each class. Raises UsageError where there is no data."""
        if self.train is None:
            raise UsageError("integer files are calibrated on real images: name the training data with --data")
        return self.view(balanced(self.train, CALIBRATION_IMAGES, self.seed).images).contiguous().numpy()


@dataclass(frozen=True)
class Written:
    """One verified file. quantised: how an integer file came about."""

    artifact: exporters.Artifact
    verification: verify.Verification
    quantised: Quantized | None = None

    @property
    def difference(self) -> str:
        """How far its logits are from torch's."""
        parity = self.verification.parity
        agreed = f"same best class on {parity.top1_agreement:.0%} of {parity.samples}"
        return f"at most {parity.max_abs:.1e}, mean {parity.mean_abs:.1e}, of {parity.scale:.3g}; {agreed}"

    @property
    def remarks(self) -> list[str]:
        """What else was found: operators without fast kernels or that only move data, layers in float, runtimes."""
        found = self.verification
        runs, remarks = found.acceleration, []
        if runs.outside:
            kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in runs.outside.items())
            remarks.append(f"left to slow kernels, of the work: {kinds}")
        if runs.layout:
            kinds = ", ".join(f"{count} {kind}" for kind, count in runs.layout.items())
            remarks.append(f"only moving data: {kinds} ({runs.layout_share:.0%} of all bytes moved)")
        if self.quantised:
            remarks.append(self.quantised.report)
        return remarks + [other.mark for other in found.others if other.mark]

    @property
    def sentence(self) -> str:
        """All that was found, on a line."""
        found = self.verification
        parts = [shown("size", found.size_bytes)]
        if found.accuracy is not None:
            parts.append(f"{found.accuracy:.1%} right in {found.runtime}")
        parts.append(f"logits differ from torch's by {self.difference}")
        if found.acceleration.share is not None:
            parts.append(f"XNNPACK takes {found.acceleration.share:.0%} of the work")
        memory = found.peak_memory_bytes
        parts.append("peak memory not told" if memory is None else f"{memory / 1e6:.0f} MB of memory")
        return "; ".join([*parts, *self.remarks])

    def to_dict(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact.to_dict(),
            "verification": self.verification.to_dict(),
            "quantisation": self.quantised.to_dict() if self.quantised else None,
        }


@dataclass(frozen=True)
class Job:
    """A network to be written, and how. reference: its accuracy (fraction) in torch on the validation split.

    allowed_drop: accuracy (fraction) that a file may lose against it.
    """

    model: nn.Module
    images: Images
    precision: str = "float32"
    reference: float | None = None
    allowed_drop: float = ALLOWED_DROP
    options: dict[str, Any] = field(default_factory=dict)  # dynamic_batch and opset; not every format has them

    @property
    def spec(self) -> exporters.InputSpec:
        view = self.images.view
        return exporters.InputSpec(3, view.size, view.size, view.mean, view.std)

    def write(self, path: Path, name: str) -> Written:
        """Write one format and verify it. Raises ExportError; a file that fails is kept in ``rejected/``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        quantised = None
        if self.precision not in exporters.exporter(name).calibrated:
            how = {"format": name, "precision": self.precision, **self.options}
            artifact = exporters.export(self.model, self.spec, path, **how)
        elif name in FORMATS:
            quantised = self._quantised(path, name)
            artifact = quantised.artifact
        else:
            artifact = self._calibrated(path, name, self.precision)
        return Written(artifact, self._verified(artifact), quantised)

    def _verified(self, artifact: exporters.Artifact) -> verify.Verification:
        """Raises ExportError for a file that fails a gate; it is then in ``rejected/``."""
        gates = verify.Gates(allowed_drop=self.allowed_drop)
        return verify.verify(
            artifact, self.model, self.images.checked, self.images.labels, reference=self.reference, gates=gates
        )

    def _calibrated(self, path: Path, name: str, precision: str, kept_float: Sequence[str] = ()) -> exporters.Artifact:
        return exporters.export(
            self.model,
            self.spec,
            path,
            format=name,
            precision=precision,
            calibration=self.images.calibration,
            kept_float=kept_float,
            **self.options,
        )

    def _quantised(self, path: Path, name: str) -> Quantized:
        """The integer file, with as many layers in float32 as its accuracy needs."""
        calibration, labels = self.images.calibration, self.images.labels
        assert labels is not None  # as there are images to calibrate on
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".float32-") as folder:
            source = exporters.export(self.model, self.spec, Path(folder) / path.name, format=name, **self.options)
            return quantize_within(
                source,
                path,
                calibration,
                lambda tried: verify.accuracy(tried, self.images.checked, labels),
                precision=self.precision,
                allowed_drop=self.allowed_drop,
                module=self.model,
                log=path.with_name(path.name + ".log"),
            )

    def write_android(self, written: Written, folder: Path, labels: Sequence[str], name: str) -> None:
        """The Android bundle of a .tflite file that was written and is not ``unbundled``.

        An int8 one is written with float ends for it, and verified like the file itself. Raises ExportError; a file
        that fails is kept in ``rejected/``.
        """
        how: dict[str, Any] = {"labels": labels, "name": name}
        how |= {"resize": self.images.resize, "stored": self.images.stored}
        if written.artifact.precision in ANDROID_PRECISIONS:
            write_bundle(written.artifact, folder, **how)
            return
        own = folder.with_name("android.tflite")
        kept = written.quantised.kept_names if written.quantised else ()
        artifact = self._calibrated(own, "tflite", _ANDROID_INTEGER, kept)
        try:
            self._verified(artifact)
            write_bundle(artifact, folder, **how)
        finally:
            own.unlink(missing_ok=True)
        own.with_name(f"{own.name}.log").unlink(missing_ok=True)


def refused(name: str, precision: str, options: Mapping[str, Any] | None = None) -> str | None:
    """None where the format can be written in this precision and with these options of a ``Job``, else why not."""
    known = exporters.exporter(name).precisions
    if precision not in known:
        return f"{name} cannot be written in {precision}; it can be: {', '.join(known)}"
    # In float32, which every format has: an integer precision would ask for its calibration images here.
    return exporters.exporter(name).refusal(exporters.Options(**(options or {})))


def unbundled(precision: str) -> str | None:
    """None where there is an Android bundle of a .tflite file in this precision, else why not."""
    if precision != "int16x8":
        return None
    known = ", ".join(("int8", *ANDROID_PRECISIONS))
    return f"no Android bundle in {precision}: MediaPipe takes no 16-bit integers; there is one in: {known}"


def entry_of(written: Written, latency: manifest.Latency | None = None) -> manifest.Entry:
    """What the manifest says of a file."""
    found = written.verification
    accuracy = None if found.accuracy is None else manifest.Accuracy(found.accuracy, found.samples, "validation")
    quantisation = written.quantised.to_dict() if written.quantised else None
    return manifest.Entry(written.artifact, found.parity, accuracy, latency, found, quantisation)
