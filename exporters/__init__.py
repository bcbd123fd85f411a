"""Writes verified model files: a torch module in, an artifact out. A new format is one file and one line below.

`exporters.verify` runs the files, `exporters.manifest` describes them; importing this package alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.artifact import Artifact, InputSpec
from exporters.base import Exporter, Options
from exporters.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Artifact", "ExportError", "Exporter", "InputSpec", "Options", "available", "export", "exporter", "formats"]

_REGISTRY = {
    "onnx": "exporters.onnx:OnnxExporter",
    "tflite": "exporters.tflite:TfliteExporter",
}


def formats() -> tuple[str, ...]:
    """The names of all formats, installed or not."""
    return tuple(_REGISTRY)


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
    timeout_s: float = 900.0,
    log: Path | None = None,
) -> Artifact:
    """Write `module` as one file at `path`, whole or not at all.

    The module takes normalised float32 (N, C, H, W) and gives logits (N, classes); it is copied and left as it is.
    `simplify=False` gives a throw-away file quickly (for timing); see `Options` for the rest. The converter's messages
    go to `log`, by default the path with ".log" appended. The file is not verified: `exporters.verify.check` does that.
    Raises ExportError.
    """
    from exporters.writing import write

    options = Options(precision, simplify, dynamic_batch, opset, timeout_s)
    return write(exporter(format), module, spec, Path(path), options, log)
