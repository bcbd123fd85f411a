"""The module as a torch.export program (.pt2, weights inside): a converter's process needs none of the user's classes.

Also says which operator of which module a converter could not take.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import InputSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

# Operators that CNNs are made of; any other in a failed program is a suspect.
_USUAL = re.compile(
    r"aten\.(_?(native_)?(batch|layer|group)_norm.*|_to_copy|_assert.*|add_?|addmm|adaptive_\w+|alias|amax|arange|avg_pool2d"
    r"|bmm|cat|clamp\w*|clone|constant_pad_nd|contiguous|conv\w*|detach|div_?|dropout|elu|expand|flatten|full\w*|gelu|hard\w+"
    r"|leaky_relu_?|linear|lift_fresh_copy|matmul|max_pool2d\w*|mean|mish|mm|mul_?|neg|ones\w*|pad|permute|pow|prelu"
    r"|relu6?_?|reshape|rsqrt|scaled_dot\w+|select|sigmoid|silu_?|slice|softmax|softplus|split\w*|sqrt|squeeze|stack|sub"
    r"|sum|sym_size|tanh|transpose|unsqueeze|upsample\w+|view|zeros\w*|unbind|chunk|_unsafe_view|t|size|to)\."
)
_OVERLOAD = re.compile(r"(?:aten|prims|torchvision|quantized_decomposed)[.:]+(\w+)")
_INSTEAD = {
    "fft": "a convolution, or compute the transform before the network",
    "linalg": "fixed weights computed before the export",
    "grid_sampler": "F.interpolate",
    "unique": "a mask of fixed size",
    "nonzero": "a mask of fixed size",
    "sort": "max pooling or torch.amax",
    "topk": "max pooling or torch.amax",
    "kthvalue": "max pooling or torch.amax",
    "deform_conv2d": "an ordinary convolution",
    "nms": "post-processing outside the network",
    "roi_align": "adaptive average pooling",
    "special": "GELU, SiLU or another common activation",
    "bessel": "GELU, SiLU or another common activation",
    "cumsum": "a convolution with fixed weights",
    "cumprod": "sums of logarithms",
}
_DEFAULT = "operators that phones' runtimes have (convolutions, pooling, common activations)"


def program_bytes(module: nn.Module, spec: InputSpec, *, dynamic_batch: bool = False) -> bytes:
    """`module` (eval mode, on the CPU) exported for `spec`; torch.export raises many types."""
    import torch

    # A batch of 1 would be taken for a constant when the batch is left open.
    example = torch.zeros(spec.shape(2 if dynamic_batch else 1))
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def load_program(source: str) -> ExportedProgram:
    import torch

    return torch.export.load(Path(source))


def blame(program: ExportedProgram, error: BaseException) -> str | None:
    """A sentence that names the operator that a converter could not take, its modules and what to use instead.

    None where the failure names no operator and all operators of the program are usual ones.
    """
    named = set(_OVERLOAD.findall(str(error)))
    found: dict[str, set[str]] = {}
    for node in program.graph.nodes:
        operator = str(node.target)
        if node.op != "call_function" or not operator.startswith(("aten.", "torchvision.", "prims.")):
            continue
        name = operator.split(".")[1]
        if _same(name, named) or (not named and _suspect(node, operator)):
            found.setdefault(operator, set()).add(module_path(node))
    if not found:
        return f"the operator {', '.join(sorted(named))} is not supported; use {_instead(*named)}" if named else None
    listed = "; ".join(f"{operator} in {', '.join(sorted(paths))}" for operator, paths in sorted(found.items()))
    return f"operator not supported: {listed}; use {_instead(*found)} instead"


def _same(name: str, named: set[str]) -> bool:
    """Whether a failure names this operator; decompositions drop "special_" and add "_ex" and the like."""
    return any(name == other or name.endswith(f"_{other}") or other.startswith(f"{name}_") for other in named)


def _suspect(node: Any, operator: str) -> bool:
    value = node.meta.get("val")
    return not _USUAL.match(operator + ".") or bool(getattr(value, "is_complex", lambda: False)())


def module_path(node: Any) -> str:
    """The innermost module that an operator belongs to, as named_modules() calls it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return f"module {path!r}" if path else "the model's own forward"


def _instead(*operators: str) -> str:
    for operator in operators:
        for part, advice in _INSTEAD.items():
            if part in operator:
                return advice
    return _DEFAULT
