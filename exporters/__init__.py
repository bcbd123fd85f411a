"""Writes verified model files: a torch module in, an artifact out. A new format is one file and one line below.

`exporters.verify` runs the files, `exporters.manifest` describes them; importing this package alone imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.artifact import Artifact, InputSpec
from exporters.base import Exporter, Options
from exporters.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

__all__ = [
    "Artifact",
    "ExportError",
    "Exporter",
    "InputSpec",
    "Options",
    "available",
    "export",
    "export_draft",
    "exporter",
    "formats",
    "suffix",
]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported: nothing leaves the machine

_REGISTRY = {
    "onnx": "exporters.onnx:OnnxExporter",
    "tflite": "exporters.tflite:TfliteExporter",
    "executorch": "exporters.executorch:ExecutorchExporter",
}

_DRAFT_IMAGES = 2


def formats() -> tuple[str, ...]:
    """The names of all formats, installed or not."""
    return tuple(_REGISTRY)


def suffix(name: str) -> str:
    """The ending of the format's file names."""
    return exporter(name).suffix


def exporter(name: str) -> Exporter:
    """The exporter of the format `name`. Raises ExportError for a name that is none."""
    if name not in _REGISTRY:
        raise ExportError(f"unknown format {name!r}; choose one of: {', '.join(_REGISTRY)}")
    module, kind = _REGISTRY[name].split(":")
    made: Exporter = getattr(import_module(module), kind)()
    return made


def available(name: str) -> str | None:
    """None where the format `name` can be written here, else a sentence with the pip command that changes it."""
    return exporter(name).missing()


def export(
    module: nn.Module,
    spec: InputSpec,
    path: Path,
    *,
    format: str,  # noqa: A002 (the word that users type)
    precision: str = "float32",
    simplify: bool = True,
    dynamic_batch: bool = False,
    opset: int | None = None,
    calibration: NDArray[np.float32] | None = None,
    kept_float: Sequence[str] = (),
    timeout_s: float = 900.0,
    log: Path | None = None,
) -> Artifact:
    """Write `module` as one file at `path`, whole or not at all.

    The module takes normalised float32 (N, C, H, W) and gives logits (N, classes); it is copied and left as it is.
    Integer precisions need `calibration`: normalised training images (N, C, H, W), some hundred of them.
    `simplify=False` gives a throw-away file quickly (for timing); see `Options` for the rest. The converter's messages
    go to `log`, by default the path with ".log" appended. The file is not verified: `exporters.verify.check` does that.
    Raises ExportError.
    """
    from exporters.writing import write

    options = Options(precision, simplify, dynamic_batch, opset, timeout_s, calibration, tuple(kept_float))
    return write(exporter(format), module, spec, Path(path), options, log)


def export_draft(
    module: nn.Module,
    spec: InputSpec,
    path: Path,
    *,
    format: str,  # noqa: A002
    precision: str = "float32",
    calibration: NDArray[np.float32] | None = None,
) -> Artifact:
    """A throw-away file that takes the time of the final one, for measuring; its accuracy means nothing.

    Integer precisions are calibrated on the first two images of `calibration`, or on noise where it is None: ranges do
    not change the time. The converter's process stays for the next draft. Raises ExportError.
    """
    if precision in exporter(format).calibrated:
        import numpy as np

        shape = spec.shape(_DRAFT_IMAGES)
        if calibration is None:
            calibration = np.random.default_rng(0).standard_normal(shape, np.float32)
        calibration = calibration[:_DRAFT_IMAGES]
    return export(module, spec, path, format=format, precision=precision, simplify=False, calibration=calibration)
