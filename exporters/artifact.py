"""What an export is made for (InputSpec) and what it gave (Artifact)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exporters.errors import ExportError


@dataclass(frozen=True)
class InputSpec:
    """One image as the model takes it: `channels` x `height` x `width`, pixels scaled to [0, 1], then (x - mean) / std.

    `layout` is the order of the axes in the file ("NCHW" or "NHWC"); modules always take NCHW.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if min(self.channels, self.height, self.width) < 1:
            raise ExportError(
                f"the input size {self.channels}x{self.height}x{self.width} must be positive on each side"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ExportError(
                f"the normalisation has {len(self.mean)} means and {len(self.std)} deviations for {self.channels} "
                "channels; give one of each per channel"
            )
        if min(self.std) <= 0:
            raise ExportError(f"the standard deviations {self.std} must be positive")
        if self.layout not in ("NCHW", "NHWC"):
            raise ExportError(f"the layout {self.layout!r} is not known; use 'NCHW' or 'NHWC'")

    def shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """The tensor's shape in this layout."""
        if self.layout == "NCHW":
            return (batch, self.channels, self.height, self.width)
        return (batch, self.height, self.width, self.channels)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


@dataclass(frozen=True)
class Artifact:
    """An exported file. `size_bytes` and `sha256` (hexadecimal) are those of the file when it was written.

    notes: what the converter said of the file that cannot be read from it.
    """

    path: Path
    format: str
    precision: str
    input: InputSpec
    output_classes: int
    sha256: str
    size_bytes: int
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "input": self.input.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Artifact:
        return cls(**{**data, "path": Path(data["path"]), "input": InputSpec.from_dict(data["input"])})


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
