"""ONNX through torch's exporters: the dynamo one for artifacts, the TorchScript one for throw-away files.

Measured on resnet20 (x86-64, one thread): dynamo 1.1 s (2.5 s the first time), TorchScript 0.06 s. After ONNX Runtime's
own optimisation both run equally fast, so a file that is only timed need not wait for dynamo.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import InputSpec
from exporters.base import Exporter, Options
from exporters.errors import ExportError
from exporters.quiet import chatter_to
from exporters.writing import failed, first_line

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

# The oldest operator set that the dynamo exporter writes itself: loads in the most runtimes, needs no conversion.
OPSET = 18
_NAMES: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}


class OnnxExporter(Exporter):
    """Input "input" float32 (batch, C, H, W), output "logits" float32 (batch, classes); weights inside the file."""

    name = "onnx"
    suffix = ".onnx"
    layout = "NCHW"
    precisions = ("float32",)
    modules = ("onnx", "onnxscript", "onnxsim")
    packages = ("torch", "onnx", "onnxscript", "onnxsim")
    install = "pip install onnx onnxscript onnxsim"

    def write(self, module: nn.Module, spec: InputSpec, part: Path, options: Options, log: Path) -> None:
        opset = OPSET if options.opset is None else options.opset
        try:
            with chatter_to(log, failures_only=not options.simplify):
                if options.simplify or options.dynamic_batch:
                    model = _simplified(_dynamo(module, spec, opset, options.dynamic_batch))
                else:
                    model = _quick(module, spec, opset)
                _check_opset(model, opset)
        except ExportError:
            raise
        except Exception as error:  # torch, onnxscript and onnxsim raise types of their own
            raise failed(self.name, _reason(error), log) from error
        part.write_bytes(_stripped(model).SerializeToString(deterministic=True))


def _dynamo(module: nn.Module, spec: InputSpec, opset: int, dynamic_batch: bool) -> ModelProto:
    import torch

    # A batch of 1 would be taken for a constant when the batch is left open.
    example = torch.zeros(spec.shape(2 if dynamic_batch else 1))
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    program = torch.onnx.export(
        module,
        (example,),
        None,
        dynamo=True,
        external_data=False,
        opset_version=opset,
        dynamic_shapes=shapes,
        verbose=False,
        **_NAMES,
    )
    assert program is not None  # only the TorchScript exporter returns None
    model: ModelProto = program.model_proto
    return model


def _simplified(model: ModelProto) -> ModelProto:
    import onnx
    import onnxsim

    model, same = onnxsim.simplify(model)
    if not same:
        raise ExportError("the simplified ONNX graph does not compute what the exported one does; report the model")
    onnx.checker.check_model(model, full_check=True)
    return model


def _quick(module: nn.Module, spec: InputSpec, opset: int) -> ModelProto:
    """The TorchScript exporter, shape arithmetic folded; where it lacks an operator, the dynamo exporter."""
    import onnx
    import onnxsim
    import torch

    file: Any = io.BytesIO()  # the TorchScript exporter takes an open file too
    example = (torch.zeros(spec.shape()),)
    try:
        with _native_log_in_python():
            torch.onnx.export(module, example, file, dynamo=False, opset_version=opset, verbose=False, **_NAMES)
    except Exception:  # deprecated and frozen: newer operators and odd pooling sizes are missing in it
        return _dynamo(module, spec, opset, dynamic_batch=False)
    model, _ = onnxsim.simplify(onnx.load_from_string(file.getvalue()), perform_optimization=False)
    return model


@contextmanager
def _native_log_in_python() -> Iterator[None]:
    """A failing TorchScript exporter prints the graph from C++, whatever `verbose` says: make it print from Python."""
    import torch

    native = getattr(torch._C, "_jit_onnx_log", None)
    if native is None:  # another version of torch
        yield
        return
    torch._C._jit_onnx_log = print
    try:
        yield
    finally:
        torch._C._jit_onnx_log = native


def _check_opset(model: ModelProto, opset: int) -> None:
    """torch falls back to another operator set with no more than a warning."""
    got = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if got != opset:
        raise ExportError(
            f"ONNX operator set {opset} cannot be written for this model, only {got}; ask for opset {got}"
        )


def _stripped(model: ModelProto) -> ModelProto:
    """Remove what the exporter notes about the machine: stack traces with local paths, scopes, comments."""
    graphs: list[Any] = [model, model.graph, *model.functions]
    while graphs:
        owner = graphs.pop()
        del owner.metadata_props[:]
        owner.doc_string = ""
        for kind in ("node", "input", "output", "value_info", "initializer"):
            for entry in getattr(owner, kind, ()):
                if isinstance(entry, str):  # a function's inputs and outputs are bare names
                    continue
                del entry.metadata_props[:]
                entry.doc_string = ""
                graphs += [
                    graph for a in getattr(entry, "attribute", ()) for graph in ([a.g] if a.HasField("g") else a.graphs)
                ]
    return model


def _reason(error: Exception) -> str:
    """torch wraps the cause in pages of advice: take the innermost cause."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return first_line(cause)
