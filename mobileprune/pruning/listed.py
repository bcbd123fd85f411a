"""Depth of networks that loop over a list of layers: an entry whose loss the loop survives, such as a dense layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mobileprune.pruning.blocks import Block, Holders, has_weights, verified
from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.filters import removed_positions
from mobileprune.pruning.layers import Axis, Inputs, axis_sizes, is_depthwise, outputs
from mobileprune.tensors import tensors_in


def find_listed_layers(
    model: nn.Module, example_input: Inputs, groups: Sequence[ChannelGroup]
) -> tuple[list[Block], Mapping[str, Sequence[int]]]:
    """The removable entries of ``nn.ModuleList`` and ``nn.ModuleDict``, and the channel groups that go with each.

    Without the entry, which leaves the list, the network gives tensors of the same shapes: because its loop adds what
    the entry computes, or because it concatenates it (DenseNet, arXiv 1608.06993) and the entry's own channels, whole
    groups that nobody else makes, are no longer read.
    """
    given, shapes = _called_once(model, example_input)
    sizes, holders = axis_sizes(model), Holders(model)
    blocks: list[Block] = []
    growth: dict[str, tuple[int, ...]] = {}
    for parent, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.ModuleDict) or len(container) < 2:
            continue
        for key, entry in container.named_children():
            name = f"{parent}.{key}" if parent else key
            if name not in given or not has_weights(entry) or not holders.owns(name, entry):
                continue
            own = _made_by(name, groups, model, sizes)
            into, out = given[name]
            if not own and into != out:
                continue
            leaves = {axis: at for axis, at in _left(groups, own, sizes).items() if not _within(axis, name)}
            parameters = sum(p.numel() for p in entry.parameters())
            blocks.append(Block(name, out[1:], parameters, listed=True, leaves=leaves))
            growth[name] = own
    good, _ = verified(model, blocks, example_input, shapes)
    return good, {block.name: growth[block.name] for block in good}


def _left(
    groups: Sequence[ChannelGroup], gone: Sequence[int], sizes: Mapping[Axis, int]
) -> dict[Axis, tuple[int, ...]]:
    """The positions that the axes keep when the groups of these numbers go as a whole."""
    whole = [groups[number] for number in gone]
    left = removed_positions(whole, [np.zeros(0, dtype=np.int64)] * len(whole), sizes)
    return {axis: tuple(positions.tolist()) for axis, positions in left.items()}


def _within(axis: Axis, name: str) -> bool:
    return axis.layer == name or axis.layer.startswith(name + ".")


def _made_by(name: str, groups: Sequence[ChannelGroup], model: nn.Module, sizes: Mapping[Axis, int]) -> tuple[int, ...]:
    """The groups whose channels are made in the module ``name`` alone and read outside of it."""
    found = []
    for number, group in enumerate(groups):
        if not _within(group.root, name) or all(_within(axis, name) for axis in group.members):
            continue
        makers = [axis for axis in group.members if axis.side == "out" and Axis(axis.layer, "in") in sizes]
        if all(_within(axis, name) or is_depthwise(model.get_submodule(axis.layer)) for axis in makers):
            found.append(number)
    return tuple(found)


def _called_once(
    model: nn.Module, example_input: Inputs
) -> tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...]]], list[torch.Size]]:
    """The shapes of what the modules called exactly once get (the first tensor) and give (one), and of all outputs."""
    calls: dict[str, list[tuple[list[Tensor], list[Tensor]]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, a, out, name=name: calls.setdefault(name, []).append((tensors_in(a), tensors_in(out)))
        )
        for name, module in model.named_modules()
    ]
    shapes = [t.shape for t in outputs(model, example_input)]
    for hook in hooks:
        hook.remove()
    once = {name: made[0] for name, made in calls.items() if len(made) == 1}
    pairs = {name: (into[0], out[0]) for name, (into, out) in once.items() if into and len(out) == 1}
    return {name: (tuple(into.shape), tuple(out.shape)) for name, (into, out) in pairs.items()}, shapes
