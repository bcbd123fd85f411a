"""From a module to a file under its final name: what is the same for every format."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import Artifact, InputSpec, sha256_of
from exporters.base import Exporter, Options
from exporters.child import ChildError, shared_child
from exporters.errors import ExportError
from exporters.files import atomic, check_target, shown, with_ending
from exporters.program import program_bytes
from exporters.quiet import chatter_to

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
    _check_calibration(spec, options)
    frozen = _frozen(module)
    classes = _output_classes(frozen, spec)
    with atomic(path, durable=options.simplify) as part:
        notes = exporter.write(frozen, spec, part, options, log or with_ending(path, ".log"))
        digest, size = sha256_of(part), part.stat().st_size
    file_spec = replace(spec, layout=exporter.layout)
    versions = exporter.versions()
    return Artifact(path, exporter.name, options.precision, file_spec, classes, digest, size, versions, notes)


def _check_calibration(spec: InputSpec, options: Options) -> None:
    import numpy as np

    images = options.calibration
    if images is None:
        return
    if images.ndim != 4 or images.shape[1:] != spec.shape()[1:]:
        want = "x".join(map(str, spec.shape()[1:]))
        raise ExportError(f"calibration needs images of {want} (N, C, H, W), but was given an array of {images.shape}")
    if not np.isfinite(images).all():
        raise ExportError("the calibration images hold NaN or infinite values; check the data and its normalisation")


def convert_in_child(
    exporter: Exporter,
    function: str,
    module: nn.Module,
    spec: InputSpec,
    part: Path,
    options: Options,
    log: Path,
    **arguments: Any,
) -> dict[str, Any]:
    """Send the module as a program to `function` (see `exporters.child`), which writes a file; move it to `part`.

    `function` is called with source (.pt2), made (where to write), images (.npy or None) and `arguments`; what it
    returns are the artifact's notes.
    """
    try:
        with chatter_to(log):
            program = program_bytes(module, spec, dynamic_batch=options.dynamic_batch)
    except Exception as error:  # torch.export raises many types
        raise failed(exporter.name, first_line(error), log) from error
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
        source, made = Path(folder, "model.pt2"), Path(folder, "model" + exporter.suffix)
        source.write_bytes(program)
        images = save_images(options.calibration, Path(folder, "calibration.npy"))
        try:
            notes = shared_child().call(
                function,
                log=log,
                timeout_s=options.timeout_s,
                source=str(source),
                made=str(made),
                images=images,
                **arguments,
            )
        except ChildError as error:
            raise failed(exporter.name, str(error), log) from error
        if not made.is_file():
            raise failed(exporter.name, "the converter ended well but wrote nothing", log)
        # A converter's own writer may end the process on a full disk: only this copy meets the user's folder.
        shutil.copyfile(made, part)
    if not options.simplify:
        log.unlink(missing_ok=True)
    return dict(notes or {})


def save_images(images: Any, path: Path) -> str | None:
    """Write images for a child; the path as the child takes it, None for None."""
    import numpy as np

    if images is None:
        return None
    np.save(path, np.ascontiguousarray(images, dtype=np.float32))
    return os.fspath(path)


def _frozen(module: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, so that the caller's module keeps its mode and device.

    Its tensors lie in the usual order: litert-torch misreads channels_last weights.
    """
    import torch

    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExportError(
                f"the weights hold NaN or infinite values (first in {name!r}); train the model again before the export"
            )
    try:
        copied = copy.deepcopy(module).cpu().eval().requires_grad_(False)
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.data = tensor.data.contiguous()
        return copied
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
