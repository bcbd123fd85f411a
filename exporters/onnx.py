"""ONNX through torch's exporters: the dynamo one for artifacts, the TorchScript one for throw-away files.

Artifacts are made in a process of their own; a throw-away float file is not worth the start of one.

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
from exporters.program import blame, load_program
from exporters.quiet import chatter_to
from exporters.writing import convert_in_child, failed, first_line

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

# The oldest operator set that the dynamo exporter writes itself: loads in the most runtimes, needs no conversion.
OPSET = 18
# The first that has GELU: older ones spell it out in five operators, which ONNX Runtime does not put together again.
GELU_OPSET = 20
_NAMES: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}


class OnnxExporter(Exporter):
    """Input "input" float32 (batch, C, H, W), output "logits" float32 (batch, classes); weights inside the file.

    "int8" keeps float32 at both ends; ONNX Runtime fuses its quantise and dequantise pairs into integer kernels.
    """

    name = "onnx"
    suffix = ".onnx"
    layout = "NCHW"
    precisions = ("float32", "int8")
    calibrated = frozenset(("int8",))
    modules = ("onnx", "onnxscript", "onnxsim", "onnxruntime")
    packages = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")
    install = "pip install onnx onnxscript onnxsim onnxruntime"

    def write(self, module: nn.Module, spec: InputSpec, part: Path, options: Options, log: Path) -> dict[str, Any]:
        opset = options.opset
        quick = not options.simplify and not options.dynamic_batch
        if quick and self._write_quickly(module, spec, part, opset or GELU_OPSET, options, log):
            return {}
        arguments = {"opset": opset, "precision": options.precision, "kept_float": list(options.kept_float)}
        return convert_in_child(self, "exporters.onnx:convert", module, spec, part, options, log, **arguments)

    def _write_quickly(
        self, module: nn.Module, spec: InputSpec, part: Path, opset: int, options: Options, log: Path
    ) -> bool:
        """Through the TorchScript exporter; False where it lacks an operator (newer ones, odd pooling sizes)."""
        try:
            with chatter_to(log, failures_only=True):
                model = _torchscript(module, spec, opset)
                if model is None:
                    return False
                _check_opset(model, opset)
                data = _stripped(model).SerializeToString(deterministic=True)
                if options.precision == "int8":
                    from exporters.quantize_onnx import quantize_bytes

                    data = quantize_bytes(data, options.calibration, options.kept_float)
        except ExportError:
            raise
        except Exception as error:  # torch, onnx, onnxsim and onnxruntime raise types of their own
            raise failed(self.name, first_line(_innermost(error)), log) from error
        part.write_bytes(data)
        return True


def convert(
    source: str, made: str, images: str | None, opset: int | None, precision: str, kept_float: list[str]
) -> None:
    """In the child: the program `source` as an ONNX file `made`."""
    import torch

    program = load_program(source)
    if opset is None:
        opset = GELU_OPSET if any("gelu" in str(node.target) for node in program.graph.nodes) else OPSET
    try:
        exported = torch.onnx.export(
            program, (), None, dynamo=True, external_data=False, opset_version=opset, verbose=False, **_NAMES
        )
        assert exported is not None  # only the TorchScript exporter returns None
        model = _simplified(exported.model_proto)
        _check_opset(model, opset)
    except ExportError:
        raise
    except Exception as error:  # torch wraps the cause in pages of advice
        cause = _innermost(error)
        raise ExportError(blame(program, cause) or first_line(cause)) from error
    data = _stripped(model).SerializeToString(deterministic=True)
    if precision == "int8":
        import numpy as np

        from exporters.quantize_onnx import quantize_bytes

        data = quantize_bytes(data, np.load(str(images)), kept_float)
    Path(made).write_bytes(data)


def _simplified(model: ModelProto) -> ModelProto:
    import onnx
    import onnxsim

    model, same = onnxsim.simplify(model)
    if not same:
        raise ExportError("the simplified ONNX graph does not compute what the exported one does; report the model")
    onnx.checker.check_model(model, full_check=True)
    return model


def _torchscript(module: nn.Module, spec: InputSpec, opset: int) -> ModelProto | None:
    """The TorchScript exporter, folded; None where it cannot take the module.

    It is given the operators that the module runs at this size. Of the module itself it would export the arithmetic on
    shapes too, where it rounds negative quotients up: TensorFlow's SAME padding, -(-size // stride), came out smaller.
    """
    import onnx
    import onnxsim
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    file: Any = io.BytesIO()  # the TorchScript exporter takes an open file too
    example = torch.zeros(spec.shape())
    try:
        with torch.no_grad(), _native_log_in_python():
            flat = make_fx(module, pre_dispatch=True)(example)
            torch.onnx.export(flat, (example,), file, dynamo=False, opset_version=opset, verbose=False, **_NAMES)
    except Exception:  # deprecated and frozen
        return None
    # Folded as the final file is: ONNX Runtime leaves a padding of its own in front of every convolution.
    model, _ = onnxsim.simplify(onnx.load_from_string(file.getvalue()))
    folded: ModelProto = model
    return folded


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


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
