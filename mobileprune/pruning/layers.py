"""The layers whose channels can be cut: what axes each has, and how it is sliced along them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


class Axis(NamedTuple):
    """One channel axis: ``side`` "out" or "in" of the layer at a module path, or "param" of a bare parameter."""

    layer: str
    side: str

    def __str__(self) -> str:
        return self.layer if self.side == "param" else f"{self.layer} ({self.side})"


def is_depthwise(module: nn.Module) -> bool:
    """Each group of the convolution reads exactly one channel (it may write several)."""
    return isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels


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
            for name, parameter in module.named_parameters(recurse=False):
                yield (f"{path}.{name}" if path else name), parameter


def axis_sizes(model: nn.Module) -> dict[Axis, int]:
    """Every axis of ``model`` that can be sliced, with its length, in module order."""
    sizes = {Axis(path, side): n for path, module in model.named_modules() for side, n in axes_of(module).items()}
    for path, parameter in bare_parameters(model):
        dim = parameter_dim(parameter)
        if dim is not None:
            sizes[Axis(path, "param")] = parameter.shape[dim]
    return sizes


def slice_model(model: nn.Module, keep: Mapping[Axis, Sequence[int]]) -> None:
    """Keep only the positions ``keep[axis]`` (ascending) of each named axis of ``model``, in place."""
    by_layer: dict[str, dict[str, list[int]]] = {}
    for axis, positions in keep.items():
        by_layer.setdefault(axis.layer, {})[axis.side] = [int(i) for i in positions]
    for layer, sides in by_layer.items():
        if "param" in sides:
            owner_path, _, name = layer.rpartition(".")
            owner = model.get_submodule(owner_path)
            dim = parameter_dim(getattr(owner, name))
            assert dim is not None  # it was longer than 1 when the axis was listed
            _replace(owner, name, sides["param"], dim)
        else:
            slice_layer(model.get_submodule(layer), sides.get("out"), sides.get("in"))


def slice_layer(module: nn.Module, out: list[int] | None, into: list[int] | None) -> None:
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
        for name in ("weight", "bias", "running_mean", "running_var"):
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


def _slice_extras(module: nn.Module, size: int, out: list[int]) -> None:
    """Per-channel tensors that a subclass adds, such as the gain of a weight-standardised convolution."""
    usual = ("weight", "bias", "running_mean", "running_var")
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if name not in usual and tensor.dim() and tensor.shape[0] == size:
            _replace(module, name, out, 0)


def _slice_conv(conv: _ConvNd, out: list[int] | None, into: list[int] | None) -> None:
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
        if is_depthwise(conv):
            conv.groups = len(into)
        conv.in_channels = len(into)


def _slice_grouped(conv: _ConvNd, out: list[int] | None, into: list[int] | None) -> None:
    """Slice the weight of a grouped convolution: (out, in / groups, ...), transposed (in, out / groups, ...).

    The dimension without "/ groups" takes the positions as they are; the other one takes the positions of the
    first group, because every group keeps the same ones. A depthwise one has a single position there.
    """
    whole, shared, shared_size = (into, out, conv.out_channels) if conv.transposed else (out, into, conv.in_channels)
    per_group = shared_size // conv.groups
    if whole is not None:
        _replace(conv, "weight", whole, 0)
    if shared is not None and per_group > 1:
        local = [i for i in shared if i < per_group]
        if shared != [g * per_group + i for g in range(conv.groups) for i in local] and not is_depthwise(conv):
            raise ValueError("the groups of a grouped convolution must keep the same positions")
        if not is_depthwise(conv):
            _replace(conv, "weight", local, 1)


def _replace(owner: nn.Module, name: str, positions: Sequence[int], dim: int) -> None:
    """Index one parameter or buffer of ``owner`` along ``dim``; absent ones (no bias, not affine) are left."""
    old = getattr(owner, name, None)
    if old is None:
        return
    index = torch.as_tensor(positions, dtype=torch.long, device=old.device)
    new = old.detach().index_select(dim, index).clone()
    if isinstance(old, nn.Parameter):
        setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        owner._buffers[name] = new


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors in a model's output, whatever containers (tuple, dict, data class) hold them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in tensors_in(value)]
    if isinstance(output, (list, tuple)):
        return [t for value in output for t in tensors_in(value)]
    return [t for value in vars(output).values() for t in tensors_in(value)] if hasattr(output, "__dict__") else []


def outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Run ``model`` as it is, without gradients, and list the tensors it gives."""
    with torch.no_grad():
        return tensors_in(cast(Any, model)(inputs))
