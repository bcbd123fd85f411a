"""Proof that a file computes what the module does: parity on real images, and the accuracy of the file itself.

A file that fails a gate is no artifact: it is moved to `rejected/` beside it, with a .json that says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporters.arm64 import check_arm64
from exporters.artifact import Artifact
from exporters.errors import ExportError
from exporters.files import atomic, shown, with_ending
from exporters.old import OtherRuntime, check_old
from exporters.operators import Acceleration, acceleration, peak_memory
from exporters.runtimes import Array, End, Images, Runtime, open_runtime

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Gates",
    "Parity",
    "Runtime",
    "Verification",
    "accuracy",
    "check",
    "open_runtime",
    "parity",
    "reject",
    "torch_logits",
    "verify",
]

ATOL = 1e-4  # what a float32 file may differ by; the converters reach about 1e-6
FLOAT16_ATOL = 1e-2
INTEGER_MEAN = 0.1  # mean difference of an integer file's logits, as a share of the largest
PARITY_IMAGES = 64
_AT_ONCE = 256  # images: 150 MB at 224 pixels


@dataclass(frozen=True)
class Parity:
    """How far a file's logits are from the module's on `samples` images.

    max_abs, mean_abs: absolute differences of logits.  top1_agreement: share of images with the same best class.
    scale: the largest absolute logit of the module, to judge the differences by.
    """

    max_abs: float
    mean_abs: float
    top1_agreement: float
    samples: int
    scale: float

    def passes(self, atol: float = ATOL) -> bool:
        """Whether the largest difference is at most `atol` (times the largest logit where that exceeds 1)."""
        return bool(self.max_abs <= atol * max(1.0, self.scale))  # false for NaN

    def failure(self, precision: str, atol: float | None = None) -> str | None:
        """Why a file of this precision computes something else than the module; None where it does not.

        Float files are judged by their largest difference, integer files by their mean difference (their accuracy is
        what matters, and a gate of its own).
        """
        if atol is None and precision not in ("float32", "float16"):
            allowed, found, kind = INTEGER_MEAN * max(self.scale, 1e-6), self.mean_abs, "by"
        else:
            atol = atol if atol is not None else FLOAT16_ATOL if precision == "float16" else ATOL
            allowed, found, kind = atol * max(1.0, self.scale), self.max_abs, "by up to"
        if found <= allowed:  # false for NaN
            return None
        mean = " on average" if kind == "by" else ""
        return (
            f"its logits differ from the module's {kind} {found:.3g}{mean} (allowed {allowed:.3g}, largest logit "
            f"{self.scale:.3g}) on {self.samples} images"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Parity:
        return cls(**data)


@dataclass(frozen=True)
class Gates:
    """What a file must keep to be an artifact.

    allowed_drop: accuracy (fraction) that it may lose against the reference.  accelerated: least share of the work that
    XNNPACK must take, where it can be told and the precision has kernels there.  atol: see `Parity.failure`.
    """

    allowed_drop: float = 0.01
    accelerated: float = 0.5
    atol: float | None = None


@dataclass(frozen=True)
class Verification:
    """What was found of a file.

    accuracy: top-1 (fraction) of the file in its runtime on `samples` images, None without labels.  peak_memory_bytes:
    growth of a fresh process that loads it and runs one image, None where that is not told (see `peak_memory`).  takes,
    gives: the types at its ends.  others: what other runtimes of its format made of it.
    """

    parity: Parity
    accuracy: float | None
    samples: int
    acceleration: Acceleration
    size_bytes: int
    peak_memory_bytes: int | None
    runtime: str
    takes: End
    gives: End
    others: tuple[OtherRuntime, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        ends = {"takes": self.takes.to_dict(), "gives": self.gives.to_dict()}
        return {**asdict(self), **ends, "others": [other.to_dict() for other in self.others]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verification:
        others = [{key: value for key, value in other.items() if key != "mark"} for other in data["others"]]
        parts = {
            "parity": Parity.from_dict(data["parity"]),
            "acceleration": Acceleration.from_dict(data["acceleration"]),
            "takes": End(**data["takes"]),
            "gives": End(**data["gives"]),
            "others": tuple(OtherRuntime(**other) for other in others),
        }
        return cls(**{**data, **parts})


def torch_logits(module: nn.Module, images: Array, batch: int = 64) -> Array:
    """Logits (N, classes) of the module in eval mode on normalised images (N, C, H, W); its mode is put back."""
    import torch

    modes = [(part, part.training) for part in module.modules()]
    parameter = next(module.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    module.eval()
    try:
        with torch.inference_mode():
            chunks = torch.from_numpy(np.array(images, dtype=np.float32)).split(batch)
            return np.concatenate([module(chunk.to(device)).float().cpu().numpy() for chunk in chunks])
    finally:
        for part, mode in modes:
            part.training = mode


def parity(path: Path, module: nn.Module, images: Array, threads: int = 1) -> Parity:
    """Compare the file in its runtime with the module on normalised images (N, C, H, W), N >= 1.

    Raises ExportError where the file cannot be run or gives another number of classes.
    """
    got = open_runtime(path, threads)(images)
    want = torch_logits(module, images)
    if got.shape != want.shape:
        raise ExportError(f"{shown(path)} gives logits of shape {got.shape}, the module {want.shape}; export it again")
    difference = np.abs(got.astype(np.float64) - want)
    return Parity(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        top1_agreement=float((got.argmax(1) == want.argmax(1)).mean()),
        samples=len(images),
        scale=float(np.abs(want).max()),
    )


def accuracy(path: Path, images: Images, labels: NDArray[np.integer[Any]], threads: int = 1) -> float:
    """Top-1 accuracy (fraction) of the file, run in its runtime on normalised images (N, C, H, W) with labels (N,).

    The images are taken by some hundreds, so that not all need be held at once.
    """
    labels = np.asarray(labels)
    if len(labels) != len(images):
        raise ExportError(f"{len(images)} images were given with {len(labels)} labels; give one label per image")
    runtime, right = open_runtime(path, threads), 0
    for start in range(0, max(len(labels), 1), _AT_ONCE):  # once for none: the runtime refuses them
        some = slice(start, start + _AT_ONCE)
        right += int((runtime(images[some]).argmax(1) == labels[some]).sum())
    return right / len(labels)


def verify(
    artifact: Artifact,
    module: nn.Module,
    images: Images,
    labels: NDArray[np.integer[Any]] | None = None,
    *,
    reference: float | None = None,
    gates: Gates | None = None,
    threads: int = 1,
) -> Verification:
    """Everything that is checked of a file, on normalised images (N, C, H, W) that it was not calibrated on.

    The parity is taken on the first 64 images, the accuracy on all. reference: the accuracy (fraction) that the file is
    compared with, of the module or of the float32 file on the same images. Raises ExportError where a gate fails; the
    file is then in `rejected/`.
    """
    gates = gates or Gates()
    path, precision = artifact.path, artifact.precision
    few = images[:PARITY_IMAGES]
    try:
        runtime = open_runtime(path, threads)
        found = Verification(
            parity=parity(path, module, few, threads),
            accuracy=None if labels is None else accuracy(path, images, labels, threads),
            samples=len(images) if labels is not None else len(few),
            acceleration=acceleration(path, artifact.notes),
            size_bytes=path.stat().st_size,
            peak_memory_bytes=peak_memory(path),
            runtime=runtime.name,
            takes=runtime.taken,
            gives=runtime.given,
            others=_others(path, few, precision) if artifact.format == "tflite" else (),
        )
    except ExportError as error:
        raise reject(path, str(error)) from error
    reason = found.parity.failure(precision, gates.atol) or _gate(found, precision, reference, gates)
    if reason:
        raise reject(path, reason, found.to_dict())
    return found


def _others(path: Path, images: Array, precision: str) -> tuple[OtherRuntime, ...]:
    """What an old runtime and that of ARM make of a .tflite file; qemu is slow, so it gets fewer images."""
    return check_old(path, images[:8], precision), check_arm64(path, images[:2], precision)


def _gate(found: Verification, precision: str, reference: float | None, gates: Gates) -> str | None:
    """The gate that fails besides parity."""
    if reference is not None and found.accuracy is not None and not found.accuracy >= reference - gates.allowed_drop:
        return (
            f"its accuracy is {found.accuracy:.2%} on {found.samples} images, {(reference - found.accuracy) * 100:.1f} "
            f"points below {reference:.2%} ({gates.allowed_drop * 100:g} allowed)"
        )
    share = found.acceleration.share
    if share is not None and share < gates.accelerated and precision not in ("int16x8", "dynamic"):
        left = ", ".join(found.acceleration.outside)
        return f"XNNPACK takes only {share:.0%} of its work (at least {gates.accelerated:.0%} is asked for), not {left}"
    return None


def check(
    artifact: Artifact, module: nn.Module, images: Array, *, atol: float | None = None, threads: int = 1
) -> Parity:
    """Parity of an artifact, or no artifact: a file that fails is moved to `rejected/`.

    Raises ExportError with the reason and the new name.
    """
    try:
        found = parity(artifact.path, module, images, threads)
    except ExportError as error:
        raise reject(artifact.path, str(error)) from error
    reason = found.failure(artifact.precision, atol)
    if reason:
        raise reject(artifact.path, reason, {"parity": found.to_dict()})
    return found


def reject(path: Path, reason: str, found: Mapping[str, Any] | None = None) -> ExportError:
    """Move a file that failed a gate to `rejected/`, beside a .json with the reason and what was found.

    Returns the error to raise. A file that is not there is only spoken of.
    """
    if not path.exists():
        return ExportError(f"{shown(path)} is refused: {reason}")
    folder = path.parent / "rejected"
    aside = folder / path.name
    try:
        folder.mkdir(exist_ok=True)
        path.replace(aside)
    except OSError as error:  # the refusal is what the user must hear of, the file must not keep its name
        path.unlink(missing_ok=True)
        return ExportError(f"{shown(path)} is refused and removed ({error.strerror}): {reason}")
    with atomic(with_ending(aside, ".json")) as part:
        text = json.dumps({"file": path.name, "reason": reason, "found": dict(found or {})}, indent=2)
        part.write_text(text + "\n", encoding="utf-8")
    return ExportError(f"{shown(path)} is refused: {reason}; it is kept as {shown(aside)}")
