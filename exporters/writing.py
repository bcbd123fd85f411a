"""From a module to a file under its final name: what is the same for every format."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.artifact import Artifact, InputSpec, sha256_of
from exporters.base import Exporter, Options
from exporters.errors import ExportError
from exporters.files import atomic, check_target, shown, with_ending

if TYPE_CHECKING:
    from torch import nn


def write(
    exporter: Exporter, module: nn.Module, spec: InputSpec, path: Path, options: Options, log: Path | None
) -> Artifact:
    """Check what can be checked first, convert a copy of the module, and rename the finished file to `path`."""
    reason = exporter.missing() or exporter.refusal(options)
    if reason:
        raise ExportError(reason)
    if spec.layout != "NCHW":
        raise ExportError(
            f"a module takes NCHW input, but the spec says {spec.layout}; the format chooses the file's own"
        )
    check_target(path, exporter.suffix)
    frozen = _frozen(module)
    classes = _output_classes(frozen, spec)
    with atomic(path, durable=options.simplify) as part:
        exporter.write(frozen, spec, part, options, log or with_ending(path, ".log"))
        digest, size = sha256_of(part), part.stat().st_size
    file_spec = replace(spec, layout=exporter.layout)
    return Artifact(path, exporter.name, options.precision, file_spec, classes, digest, size, exporter.versions())


def _frozen(module: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, so that the caller's module keeps its mode and device."""
    import torch

    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExportError(
                f"the weights hold NaN or infinite values (first in {name!r}); train the model again before the export"
            )
    try:
        return copy.deepcopy(module).cpu().eval().requires_grad_(False)
    except Exception as error:  # tensors that belong to a graph, handles that cannot be copied
        raise ExportError(f"the model cannot be copied for the export: {first_line(error)}; load it anew") from error


def _output_classes(module: nn.Module, spec: InputSpec) -> int:
    """Run one blank image; the number of logits it gives."""
    import torch

    shape = spec.shape()
    try:
        with torch.inference_mode():
            logits = module(torch.zeros(shape))
    except Exception as error:  # user code may raise anything
        size = "x".join(str(side) for side in shape)
        raise ExportError(
            f"the model does not run on an input of {size}: {first_line(error)}; check the size"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[0] != 1:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ExportError(
            f"the model must give logits of shape (batch, classes), but gives {got}; wrap it so that it does"
        )
    return int(logits.shape[1])


def first_line(error: BaseException) -> str:
    """The first line of an exception that says something, without the final stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def failed(name: str, reason: str, log: Path) -> ExportError:
    """The sentence for a converter that failed."""
    return ExportError(f"the {name} export failed: {reason} (the whole story is in {shown(log)})")
