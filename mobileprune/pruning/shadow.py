"""A stand-in for a network that works out shapes and nothing else: on it, what can be pruned is found quickly."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from mobileprune.errors import UsageError
from mobileprune.pruning.cost import Trace, trace
from mobileprune.pruning.layers import Inputs, like, outline, outputs
from mobileprune.tensors import tensors_in

_TORCH = str(Path(torch.__file__).parent)
_PLAIN_CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
Result = TypeVar("Result")
_ACTIVATIONS = {nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Hardtanh}


def shadow_of(model: nn.Module, example: Inputs) -> tuple[nn.Module, Inputs, Trace]:
    """A copy of ``model`` in eval mode, on tensors without data where it runs on them; its input, and its trace.

    Raises UsageError where the network does not take the input at all.
    """
    return _on_shadow(model, example, trace)


def require_runs(model: nn.Module, example: Inputs) -> None:
    """Raise UsageError where ``model`` does not take the input; found out on shapes alone where that is possible."""
    _on_shadow(model, example, outputs)


def _on_shadow(
    model: nn.Module, example: Inputs, run: Callable[[nn.Module, Inputs], Result]
) -> tuple[nn.Module, Inputs, Result]:
    """The shadow, its input, and what ``run`` gives for them."""
    try:
        shadow, shapes = _shadow(model).eval(), like(example, 1, torch.empty, device="meta")
        return shadow, shapes, run(shadow, shapes)
    except Exception:  # whatever: data-dependent control flow, an operation that has no shape function
        shadow = outline(model).eval()
    try:
        return shadow, example, run(shadow, example)
    except Exception as error:
        shapes_given = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(example))
        raise UsageError(f"the model fails on an input {shapes_given}: {error}") from error


def values_read(model: nn.Module, inputs: Inputs) -> list[str]:
    """Where the network's own Python code reads values of tensors while it runs: "net.py:41". It may decide by them.

    What is traced then holds for the path that these inputs take.
    """
    watch = _Watch()
    with watch:
        outputs(model, inputs)
    return list(dict.fromkeys(watch.places))


class _Watch(TorchDispatchMode):
    """Notes the line of code that asks for a value: ``item()``, ``if tensor > 0``."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = reversed(traceback.extract_stack()[:-1])
            users = (f for f in frames if not f.filename.startswith((_TORCH, __file__)))
            self.places += [f"{Path(frame.filename).name}:{frame.lineno}" for frame in islice(users, 1)]
        return func(*args, **(kwargs or {}))


def _shadow(model: nn.Module) -> nn.Module:
    """A copy on the "meta" device whose usual layers work out their shapes by hand: torch's way takes up to 4 ms each.

    Every stand-in gives a fresh tensor, so that a tensor still stands for one value.
    """
    shadow = outline(model, "meta")
    for module in shadow.modules():
        stand_in = _stand_in(module)
        if stand_in is not None:
            module.forward = partial(stand_in, module)
        elif isinstance(module, nn.MultiheadAttention):
            raise NotImplementedError("attention has no shape function here")
    return shadow


def _stand_in(module: nn.Module) -> Callable[..., Tensor] | None:
    if type(module) in _PLAIN_CONVOLUTIONS and not isinstance(module.padding, str):
        return _convolved
    if isinstance(module, _NormBase):
        return _normalised
    return _activated if type(module) in _ACTIVATIONS else None


def _convolved(conv: Any, x: Tensor) -> Tensor:
    made, reads = conv.weight.shape[0], conv.weight.shape[1] * conv.groups
    if x.dim() != len(conv.kernel_size) + 2 or x.shape[1] != reads or made % conv.groups:
        raise ValueError(f"expected {reads} channels and got a tensor of shape {tuple(x.shape)}")
    around = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    sides = [(side + 2 * pad - gap * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, pad, gap in around]
    if min(sides) < 1:
        raise ValueError(f"a kernel of {conv.kernel_size} is larger than its input {tuple(x.shape[2:])}")
    return x.new_empty((x.shape[0], made, *sides))


def _normalised(norm: Any, x: Tensor) -> Tensor:
    features = norm.num_features if norm.weight is None else len(norm.weight)
    if x.dim() < 2 or x.shape[1] != features:
        raise ValueError(f"expected {features} channels and got a tensor of shape {tuple(x.shape)}")
    return x.new_empty(x.shape)


def _activated(_: nn.Module, x: Tensor) -> Tensor:
    return x.detach()  # the same channels, and an identity path leads through it
