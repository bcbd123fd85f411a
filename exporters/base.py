"""The interface that every export format implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from exporters.artifact import InputSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True)
class Options:
    """How to export.

    simplify: False asks for a throw-away file, as quickly as the format can give one that computes the same.
    dynamic_batch: leave the batch size open instead of 1.
    opset: version of the ONNX operator set; None takes the format's default.
    timeout_s: seconds after which a converter that runs in a process of its own is stopped.
    calibration: normalised training images, float32 (N, C, H, W), for precisions that need activation ranges.
    kept_float: names of layers (as `exporters.quantize.layer_losses` gives them) to leave in float32.
    """

    precision: str = "float32"
    simplify: bool = True
    dynamic_batch: bool = False
    opset: int | None = None
    timeout_s: float = 900.0
    calibration: NDArray[np.float32] | None = field(default=None, compare=False)
    kept_float: tuple[str, ...] = ()


class Exporter(ABC):
    """Writes one format. Stateless; the modules it needs are imported when it writes."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    layout: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    modules: ClassVar[tuple[str, ...]]  # what must be importable
    packages: ClassVar[tuple[str, ...]]  # whose versions are recorded
    install: ClassVar[str]  # the command that installs them
    calibrated: ClassVar[frozenset[str]] = frozenset()  # the precisions that need calibration images
    ends: ClassVar[Mapping[str, str]] = {}  # the type at input and output per precision where it is not float32
    cautions: ClassVar[Mapping[str, str]] = {}  # what to know before choosing a precision

    def missing(self) -> str | None:
        """None where this format can be written here, else a sentence with the command that changes it."""
        absent = [name for name in self.modules if find_spec(name) is None]
        if not absent:
            return None
        return f"the {self.name} format needs {', '.join(absent)}, not installed here; run: {self.install}"

    def refusal(self, options: Options) -> str | None:
        """None where the options can be met, else a sentence that says which cannot."""
        if options.precision not in self.precisions:
            known = ", ".join(self.precisions)
            return f"precision {options.precision!r} cannot be written as {self.name}; it can be: {known}"
        if options.precision in self.calibrated and (options.calibration is None or not len(options.calibration)):
            return f"{self.name} in {options.precision} needs calibration images; give some hundred training images"
        return None

    def versions(self) -> dict[str, str]:
        """Versions of the packages that shape the file."""
        found = {}
        for package in self.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "unknown"
        return found

    @abstractmethod
    def write(self, module: nn.Module, spec: InputSpec, part: Path, options: Options, log: Path) -> dict[str, Any]:
        """Write the file to `part` (its folder exists; the caller renames it); the notes of its artifact.

        `module` is in eval mode on the CPU and belongs to the exporter; it takes float32 (N, C, H, W). The converter's
        own messages go to the file `log`. Raises ExportError; an OSError of writing `part` may pass through.
        """
