"""Proof that a file computes what the module does: parity on real images, and the accuracy of the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporters.artifact import Artifact
from exporters.errors import ExportError
from exporters.files import shown, with_ending
from exporters.runtimes import Array, Runtime, open_runtime

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Parity", "Runtime", "accuracy", "check", "open_runtime", "parity", "reject", "torch_logits"]

ATOL = 1e-4  # what a float32 file may differ by; the converters reach about 1e-6


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Parity:
        return cls(**data)


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


def accuracy(path: Path, images: Array, labels: NDArray[np.integer[Any]], threads: int = 1) -> float:
    """Top-1 accuracy (fraction) of the file, run in its runtime on normalised images (N, C, H, W) with labels (N,)."""
    labels = np.asarray(labels)
    if len(labels) != len(images):
        raise ExportError(f"{len(images)} images were given with {len(labels)} labels; give one label per image")
    return float((open_runtime(path, threads)(images).argmax(1) == labels).mean())


def check(artifact: Artifact, module: nn.Module, images: Array, *, atol: float = ATOL, threads: int = 1) -> Parity:
    """Parity of an artifact, or no artifact: a file that fails is moved to "<name>.rejected".

    Raises ExportError with the reason and the new name.
    """
    try:
        found = parity(artifact.path, module, images, threads)
    except ExportError as error:
        raise reject(artifact.path, str(error)) from error
    if not found.passes(atol):
        reason = (
            f"its logits differ from the module's by up to {found.max_abs:.3g} (allowed {atol:g}, largest logit "
            f"{found.scale:.3g}) on {found.samples} images"
        )
        raise reject(artifact.path, reason)
    return found


def reject(path: Path, reason: str) -> ExportError:
    """Move a file that failed a gate aside; the error to raise. A file that is not there is only spoken of."""
    aside = with_ending(path, ".rejected")
    if not path.exists():
        return ExportError(f"{shown(path)} is refused: {reason}")
    path.replace(aside)
    return ExportError(f"{shown(path)} is refused: {reason}; it is kept as {shown(aside)}")
