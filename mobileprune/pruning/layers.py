"""The layers whose channels can be cut: what axes each has, and how it is sliced along them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mobileprune.errors import UsageError
from mobileprune.tensors import tensors_in

_USUAL = ("weight", "bias", "running_mean", "running_var")  # tensors of a layer with channels
Positions = Sequence[int] | NDArray[np.int64]
Inputs = Tensor | tuple[Tensor, ...]
"""What a network is called with: one batch, or several tensors."""


class Axis(NamedTuple):
    """One channel axis: ``side`` "out" or "in" of the layer at a module path, or "param" of a bare parameter."""

    layer: str
    side: str

    def __str__(self) -> str:
        return self.layer if self.side == "param" else f"{self.layer} ({self.side})"


def is_depthwise(module: nn.Module) -> bool:
    """Each group of the convolution reads exactly one channel (it may write several)."""
    return isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels


def kept_groups(module: nn.Module, into: Positions) -> NDArray[np.int64] | None:
    """The groups of a convolution that keep all of their inputs where the others keep none.

    into: the inputs that it keeps, ascending. None where they are shared differently, or the layer has no groups. A
    depthwise one always keeps groups.
    """
    if not isinstance(module, _ConvNd) or module.groups == 1:
        return None
    each = module.in_channels // module.groups
    groups, counts = np.unique(np.asarray(into, dtype=np.int64) // each, return_counts=True)
    return groups if (counts == each).all() else None


def axes_of(module: nn.Module) -> dict[str, int]:
    """The sides of ``module`` that can be sliced, with their lengths; empty for a layer of another kind."""
    if isinstance(module, _ConvNd) and "weight" in module._parameters:
        return {"out": module.out_channels, "in": module.in_channels}
    if isinstance(module, nn.Linear) and "weight" in module._parameters:
        return {"out": module.out_features, "in": module.in_features}
    if isinstance(module, _NormBase):
        return {"out": module.num_features}
    if isinstance(module, nn.GroupNorm):
        return {"out": module.num_channels}
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return {"out": module.normalized_shape[0]}
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return {"out": module.num_parameters}
    return {}


def parameter_dim(parameter: Tensor) -> int | None:
    """The dimension of a bare parameter that holds channels (its last one longer than 1), as torch-pruning has it."""
    wide = [dim for dim, size in enumerate(parameter.shape) if size > 1]
    return wide[-1] if wide else None


def bare_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters held by modules that are not layers, such as a layer scale: (path, parameter)."""
    for path, module in model.named_modules():
        if not axes_of(module):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield (f"{path}.{name}" if path else name), parameter


def axis_sizes(model: nn.Module) -> dict[Axis, int]:
    """Every axis of ``model`` that can be sliced, with its length, in module order."""
    sizes = {Axis(path, side): n for path, module in model.named_modules() for side, n in axes_of(module).items()}
    for path, parameter in bare_parameters(model):
        dim = parameter_dim(parameter)
        if dim is not None:
            sizes[Axis(path, "param")] = parameter.shape[dim]
    return sizes


def slice_model(model: nn.Module, keep: Mapping[Axis, Positions]) -> None:
    """Keep only the positions ``keep[axis]`` (ascending) of each named axis of ``model``, in place."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    for axis, positions in keep.items():
        by_layer.setdefault(axis.layer, {})[axis.side] = _index(positions)
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer, sides in by_layer.items():
        if "param" in sides:
            owner_path, _, name = layer.rpartition(".")
            owner = modules[owner_path]
            dim = parameter_dim(getattr(owner, name))
            assert dim is not None  # it was longer than 1 when the axis was listed
            _replace(owner, name, sides["param"], dim)
        else:
            slice_layer(modules[layer], sides.get("out"), sides.get("in"))


def _index(positions: Positions) -> Tensor:
    return torch.from_numpy(np.array(positions, dtype=np.int64))


def slice_layer(module: nn.Module, out: Tensor | None, into: Tensor | None) -> None:
    """Keep the output channels ``out`` and the input channels ``into`` (None: all) of one layer, in place.

    Weights, biases, running statistics and the attributes that state the sizes all follow. A layer with one
    axis, such as a norm, takes ``out``.
    """
    if out is not None:
        _slice_extras(module, axes_of(module)["out"], out)
    if isinstance(module, _ConvNd):
        _slice_conv(module, out, into)
    elif isinstance(module, nn.Linear):
        if out is not None:
            _replace(module, "weight", out, 0)
            _replace(module, "bias", out, 0)
            module.out_features = len(out)
        if into is not None:
            _replace(module, "weight", into, 1)
            module.in_features = len(into)
    elif out is not None:
        for name in _USUAL:
            _replace(module, name, out, 0)
        if isinstance(module, _NormBase):
            module.num_features = len(out)
        elif isinstance(module, nn.GroupNorm):
            module.num_channels = len(out)
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (len(out),)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(out)
        else:
            raise TypeError(f"a {type(module).__name__} has no channels to cut")


def _slice_extras(module: nn.Module, size: int, out: Tensor) -> None:
    """Per-channel tensors that a subclass adds, such as the gain of a weight-standardised convolution."""
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if name not in _USUAL and tensor is not None and tensor.dim() and tensor.shape[0] == size:
            _replace(module, name, out, 0)


def _slice_conv(conv: _ConvNd, out: Tensor | None, into: Tensor | None) -> None:
    out_dim, in_dim = (1, 0) if conv.transposed else (0, 1)
    if conv.groups == 1:
        if out is not None:
            _replace(conv, "weight", out, out_dim)
        if into is not None:
            _replace(conv, "weight", into, in_dim)
    else:
        _slice_grouped(conv, out, into)
    if out is not None:
        _replace(conv, "bias", out, 0)
        conv.out_channels = len(out)
    if into is not None:
        conv.in_channels = len(into)


def _slice_grouped(conv: _ConvNd, out: Tensor | None, into: Tensor | None) -> None:
    """Slice the weight of a grouped convolution: (out, in / groups, ...), transposed (in, out / groups, ...).

    The dimension without "/ groups" takes the positions as they are. The other one stays where whole groups go, of
    which a depthwise one has nothing else; else it takes the positions of the first group, because every group keeps
    the same ones.
    """
    whole, shared, shared_size = (into, out, conv.out_channels) if conv.transposed else (out, into, conv.in_channels)
    per_group = shared_size // conv.groups
    groups = None if into is None else kept_groups(conv, into.numpy())
    if whole is not None:
        _replace(conv, "weight", whole, 0)
    if groups is not None and len(groups) < conv.groups:
        each = conv.out_channels // conv.groups
        if out is None or not np.array_equal(np.unique(out.numpy() // each), groups) or len(out) != len(groups) * each:
            raise ValueError("the groups of a grouped convolution must lose their inputs and outputs together")
        conv.groups = len(groups)
    elif shared is not None and per_group > 1:
        local = shared[shared < per_group]
        everywhere = torch.arange(conv.groups)[:, None] * per_group + local
        if not torch.equal(shared, everywhere.flatten()):
            raise ValueError("the groups of a grouped convolution must keep the same positions")
        _replace(conv, "weight", local, 1)


def _replace(owner: nn.Module, name: str, positions: Tensor, dim: int) -> None:
    """Index one parameter or buffer of ``owner`` along ``dim``; absent ones (no bias, not affine) are left."""
    held: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
    old = held.get(name)
    if old is None:
        return
    new = old.detach().index_select(dim, positions.to(old.device))
    held[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run ``model`` as it is, without gradients, and list the tensors it gives."""
    with torch.no_grad():
        return tensors_in(cast(Any, model)(*(inputs if isinstance(inputs, tuple) else (inputs,))))


def quickly(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """``func(*args, **kwargs)``, the sum of two equal shapes without data by hand: torch's way takes 0.1 ms."""
    if func is torch.ops.aten.add.Tensor and not kwargs and all(isinstance(a, Tensor) and a.is_meta for a in args):
        one, other = args
        if one.shape == other.shape and one.dtype == other.dtype:
            return torch.empty_like(one)
    return func(*args, **kwargs)


_CONTAINERS = frozenset([dict, OrderedDict, set, list])
_PLAIN = frozenset([int, float, complex, str, bool, bytes, type(None), type, torch.dtype, torch.Size, torch.device])


def outline(model: nn.Module, device: str | None = None) -> nn.Module:
    """A copy of the modules of ``model`` that holds the very same tensors: to be cut, never to be written into.

    What ``copy.deepcopy`` gives, without the tensors. device: "meta" for a copy that knows but their shapes.
    """
    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for module in modules:
        memo[id(module)] = module.__class__.__new__(module.__class__)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = tensor if device is None else _moved(tensor, device)
    for module in modules:
        copied = memo[id(module)].__dict__
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _PLAIN:
                copied[name] = value
            else:
                copied[name] = kind() if kind in _CONTAINERS and not value else _copied(value, memo)
    return cast(nn.Module, memo[id(model)])


def _moved(tensor: Tensor, device: str) -> Tensor:
    moved = tensor.detach().to(device)
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) is tuple and all(type(v) in _PLAIN for v in value):
        return value
    if type(value) in (dict, OrderedDict) and all(id(v) in memo or v is None for v in value.values()):
        return type(value)((k, None if v is None else memo[id(v)]) for k, v in value.items())
    if type(value) is partial:  # what a stand-in's ``forward`` is
        return partial(value.func, *(_copied(v, memo) for v in value.args), **_copied(value.keywords, memo))
    return copy.deepcopy(value, memo)


def own_tensors(model: nn.Module, other: nn.Module) -> None:
    """Give ``model`` copies of those tensors that it still shares with ``other``."""
    holders = [tensors for module in other.modules() for tensors in (module._parameters, module._buffers)]
    theirs = {id(tensor) for tensors in holders for tensor in tensors.values()} - {id(None)}
    mine: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in theirs:
                    if id(tensor) not in mine:
                        mine[id(tensor)] = copy.deepcopy(tensor)
                    tensors[name] = mine[id(tensor)]  # type: ignore[assignment]


def image_of(inputs: Inputs) -> Tensor:
    """The first of the inputs that is a batch of images (N, C, H, W): the one whose size is pruned."""
    return next(t for t in tensors_in(inputs) if t.dim() == 4)


def resized(inputs: Inputs, size: tuple[int, int]) -> Inputs:
    """Empty inputs like ``inputs`` whose image has ``size`` (h, w); other images shrink in the same ratio."""
    height, width = image_of(inputs).shape[2:]

    def one(tensor: Tensor) -> Tensor:
        if tensor.dim() != 4:
            return tensor
        h, w = tensor.shape[2] * size[0] / height, tensor.shape[3] * size[1] / width
        return tensor.new_zeros((*tensor.shape[:2], max(1, round(h)), max(1, round(w))))

    return tuple(one(t) for t in inputs) if isinstance(inputs, tuple) else one(inputs)


def like(inputs: Inputs, batch: int, fill: Callable[[tuple[int, ...]], Tensor], device: str | None = None) -> Inputs:
    """Inputs of the shape of ``inputs`` for ``batch`` samples, of what ``fill(shape)`` gives; integers are zeros.

    They are on ``device``, by default that of ``inputs``, and float32.
    """

    def one(tensor: Tensor) -> Tensor:
        shape = (batch, *tensor.shape[1:])
        made = fill(shape) if tensor.is_floating_point() else torch.zeros(shape, dtype=tensor.dtype)
        return made.to(tensor.device if device is None else device)

    return tuple(one(t) for t in inputs) if isinstance(inputs, tuple) else one(inputs)


def first_sample(inputs: Inputs) -> Inputs:
    """The first sample of a batch."""
    return tuple(t[:1].detach() for t in inputs) if isinstance(inputs, tuple) else inputs[:1].detach()


def size_of(inputs: Inputs) -> tuple[int, int]:
    """(h, w) of the image."""
    height, width = image_of(inputs).shape[2:]
    return int(height), int(width)


def require_image(inputs: Inputs) -> None:
    """Raise UsageError where none of the inputs is a batch of images."""
    tensors = tensors_in(inputs)
    if not any(tensor.dim() == 4 for tensor in tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise UsageError(f"the example input has shape {shapes}: give a batch (N, C, H, W)")
