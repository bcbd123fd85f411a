"""TFLite through litert-torch, in a process of its own: the converter is native code that can crash or hang.

The module travels as a torch.export program (.pt2, weights inside), so the child needs none of the user's classes.
Measured on resnet20 (x86-64): 7 s, of which 3.4 s is the conversion and 3 s are the child's imports.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.artifact import InputSpec
from exporters.base import Exporter, Options
from exporters.quiet import chatter_to
from exporters.writing import failed, first_line

if TYPE_CHECKING:
    from torch import nn


class TfliteExporter(Exporter):
    """Input float32 (1, H, W, C), output float32 (1, classes); the layout is changed once, at the input."""

    name = "tflite"
    suffix = ".tflite"
    layout = "NHWC"
    precisions = ("float32",)
    modules = ("litert_torch", "ai_edge_litert")
    packages = ("torch", "litert-torch", "litert-converter", "ai-edge-litert")
    install = "pip install 'mobileprune[tflite]'"

    def refusal(self, options: Options) -> str | None:
        if options.dynamic_batch:
            return "a tflite file takes one image at a time; leave dynamic_batch off or choose the onnx format"
        if options.opset is not None:
            return f"the operator set {options.opset} is ONNX's and means nothing to the tflite format; leave it out"
        return super().refusal(options)

    def write(self, module: nn.Module, spec: InputSpec, part: Path, options: Options, log: Path) -> None:
        try:
            with chatter_to(log):
                program = _program(module, spec)
        except Exception as error:  # torch.export raises many types
            raise failed(self.name, first_line(error), log) from error
        with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
            source, made, verdict = (Path(folder, name) for name in ("model.pt2", "model.tflite", "verdict.json"))
            source.write_bytes(program)
            reason = _convert(worker_command(source, made, spec, verdict), verdict, options.timeout_s, log)
            if reason is None and not made.is_file():
                reason = "the converter ended well but wrote nothing"
            if reason:
                raise failed(self.name, reason, log)
            # The converter's own writer ends the process on a full disk: only this copy meets the user's folder.
            shutil.copyfile(made, part)


def _program(module: nn.Module, spec: InputSpec) -> bytes:
    import torch

    with torch.no_grad():
        exported = torch.export.export(module, (torch.zeros(spec.shape()),))
    file = io.BytesIO()
    torch.export.save(exported, file)
    return file.getvalue()


def worker_command(source: Path, made: Path, spec: InputSpec, verdict: Path) -> list[str]:
    """The command that converts; -P keeps the current folder off the child's module path."""
    shape = "x".join(str(side) for side in (1, spec.height, spec.width, spec.channels))
    return [sys.executable, "-P", "-m", "exporters.tflite_worker", str(source), str(made), shape, str(verdict)]


def _convert(command: list[str], verdict: Path, timeout_s: float, log: Path) -> str | None:
    """Run the child; None where it succeeded, else why it did not.

    The child's standard input is a pipe that nothing is written to: it closes when this process dies, even by
    SIGKILL, and the child then stops too.
    """
    home = str(Path(__file__).resolve().parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with log.open("ab") as noise:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=noise, stderr=subprocess.STDOUT, env=environment
        )
        with child:
            try:
                status = child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return f"the converter did not finish within {timeout_s:g} s and was stopped"
            finally:
                child.kill()  # does nothing where it has ended
    if status == 0:
        return None
    if status < 0:
        return f"the converter was killed by {signal.Signals(-status).name}"
    if verdict.is_file():
        return str(json.loads(verdict.read_text(encoding="utf-8"))["reason"])
    return f"the converter ended with status {status}: {_last_line(log)}"


def _last_line(log: Path) -> str:
    """What the native code said before it ended the process."""
    lines = log.read_text(encoding="utf-8", errors="backslashreplace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
