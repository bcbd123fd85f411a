"""Which channels must be cut together: torch-pruning's dependency graph, taken apart into groups of equal channels."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.layers import Axis, axes_of, axis_sizes, bare_parameters, is_depthwise, tensors_in

_MOST_VISITS = 10_000  # per group


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are interchangeable: each can be kept or removed on its own, on all its axes at once.

    ``members[axis]`` has shape (count, m): row i lists the m positions that channel i holds on that axis. A channel
    of a grouped convolution is one position in every group, a flattened one is a position per pixel.
    """

    name: str
    members: Mapping[Axis, NDArray[np.int64]] = field(repr=False)

    @property
    def count(self) -> int:
        return len(next(iter(self.members.values())))

    @property
    def positions_each(self) -> int:
        """Positions that one channel holds on the layer that makes it (more than 1 for grouped convolutions)."""
        return int(self.members[self.root].shape[1])

    @property
    def root(self) -> Axis:
        """The axis that makes the channels: the first output of a convolution or linear layer."""
        return next((axis for axis in self.members if axis.side == "out"), next(iter(self.members)))

    @property
    def channels(self) -> int:
        return self.count * self.positions_each


def find_groups(model: nn.Module, example_input: Tensor, through: Sequence[str] = ()) -> list[ChannelGroup]:
    """Trace ``model`` and return its channel groups, in the order in which the layers that make them appear.

    through: convolutions whose output channel i must stay with input channel i, because the layer may be taken out.

    Input channels and the layers that give the model's output are in no group. The couplings are torch-pruning's
    word: ``mobileprune.pruning.proof`` decides which are true. Raises what torch-pruning raises when it cannot trace.
    """
    import torch_pruning as tp

    model = copy.deepcopy(model).eval().requires_grad_(True)
    finals = _output_layers(model, example_input)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, example_input, verbose=False)
        for node in graph.module2node.values():
            node.dependencies = _Counted(node.dependencies)
        tied, _Counted.visits = [], 0
        for group in graph.get_all_groups():
            tied.append(group)
            _Counted.visits = 0
    table = _Positions(model)
    paths = {module: path for path, module in model.named_modules()}
    paths.update({parameter: path for path, parameter in bare_parameters(model)})
    for group in tied:
        for number, (dependency, positions) in enumerate(group):
            target = dependency.target.module
            if target not in paths:
                continue
            side = _side(target, graph.is_out_channel_pruning_fn(dependency.handler))
            roots = group[number].root_idxs
            table.tie(id(group), roots, Axis(paths[target], side), positions)
    for path in finals:
        table.freeze(Axis(path, "out"))
    for axis in shared_axes(model):
        table.freeze(axis)
    table.tie_grouped(model)
    for path in through:
        table.tie_through(path)
    return table.groups()


class _Counted(list[Any]):
    """The dependencies of a node, which may be looked through only so often.

    torch-pruning walks every path of some graphs (channels added into a slice) and then does not end: it visits a
    node of densenet121 1,300 times per group at the most, and those of rexnet_100 without limit.
    """

    visits = 0

    def __iter__(self) -> Iterator[Any]:
        _Counted.visits += 1
        if _Counted.visits > _MOST_VISITS:
            _Counted.visits = 0
            raise RecursionError("its search for coupled channels does not end")
        return super().__iter__()


def _side(target: nn.Module | nn.Parameter, is_out: bool) -> str:
    if isinstance(target, nn.Parameter):
        return "param"
    return "out" if is_out or is_depthwise(target) or "in" not in axes_of(target) else "in"


def shared_axes(model: nn.Module) -> Iterator[Axis]:
    """The axes of layers that hold a parameter of another layer too: cutting one alone would part them."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for path, module in model.named_modules():
        if any(holders[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
            yield from (Axis(path, side) for side in axes_of(module))


def _output_layers(model: nn.Module, example_input: Tensor) -> set[str]:
    """Paths of the layers whose output is itself an output of the model: their channels are the answer."""
    made: dict[int, str] = {}
    alive: list[Tensor] = []

    def note(path: str, output: object) -> None:
        for tensor in tensors_in(output):
            made[id(tensor)] = path
            alive.append(tensor)  # an id is unique only while its tensor lives

    hooks = [
        module.register_forward_hook(lambda _m, _a, out, path=path: note(path, out))
        for path, module in model.named_modules()
        if axes_of(module)
    ]
    with torch.no_grad():
        final = tensors_in(model(example_input))
    for hook in hooks:
        hook.remove()
    return {made[id(tensor)] for tensor in final if id(tensor) in made}


class _Positions:
    """Numbers every position of every axis, records which are tied, and reads off the connected components."""

    def __init__(self, model: nn.Module) -> None:
        self.sizes = axis_sizes(model)
        self.axes = list(self.sizes)
        self.offset = dict(zip(self.axes, np.cumsum([0, *self.sizes.values()]).tolist(), strict=False))
        self.total = sum(self.sizes.values())
        self.roots: dict[tuple[int, int], int] = {}
        self.edges: list[tuple[int, int]] = []
        self.frozen: set[int] = set()  # nodes (positions or roots) that must stay
        self.seen: set[int] = set()

    def tie(self, group: int, roots: Iterable[int | None], axis: Axis, positions: Iterable[int]) -> None:
        """Position ``positions[k]`` of ``axis`` belongs to root channel ``roots[k]`` of torch-pruning's ``group``."""
        size = self.sizes.get(axis)
        for root, position in zip(roots, positions, strict=True):
            if root is None:
                continue
            node = self.roots.setdefault((group, root), self.total + len(self.roots))
            if size is None or not 0 <= position < size:
                self.frozen.add(node)  # a layer that cannot be sliced here: the channel stays
            else:
                self.edges.append((node, self.offset[axis] + position))
                self.seen.add(self.offset[axis] + position)

    def freeze(self, axis: Axis) -> None:
        self.frozen.update(range(self.offset[axis], self.offset[axis] + self.sizes[axis]))

    def tie_grouped(self, model: nn.Module) -> None:
        """Every group of a grouped convolution or norm keeps the same positions; a depthwise one ties in to out."""
        for path, module in model.named_modules():
            if isinstance(module, _ConvNd) and is_depthwise(module):
                each = module.out_channels // module.in_channels
                self._tie_pairs(Axis(path, "out"), Axis(path, "in"), np.arange(module.out_channels) // each)
            elif isinstance(module, _ConvNd) and module.groups > 1:
                for axis, size in ((Axis(path, "out"), module.out_channels), (Axis(path, "in"), module.in_channels)):
                    self._tie_pairs(axis, axis, np.arange(size) % (size // module.groups))
            elif isinstance(module, nn.GroupNorm) and axes_of(module):
                size = module.num_channels
                self._tie_pairs(Axis(path, "out"), Axis(path, "out"), np.arange(size) % (size // module.num_groups))

    def tie_through(self, path: str) -> None:
        """Input position i of the layer at ``path`` is tied to its output position i."""
        self._tie_pairs(Axis(path, "out"), Axis(path, "in"), np.arange(self.sizes[Axis(path, "in")]))

    def _tie_pairs(self, axis: Axis, other: Axis, partner: NDArray[np.int64]) -> None:
        nodes = np.arange(self.sizes[axis]) + self.offset[axis]
        self.edges.extend(zip(nodes.tolist(), (partner + self.offset[other]).tolist(), strict=True))

    def groups(self) -> list[ChannelGroup]:
        """Components with the same count of positions on the same axes form one group."""
        nodes = self.total + len(self.roots)
        if not self.edges:
            return []
        pairs = np.array(self.edges)
        graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(nodes, nodes))
        label = np.asarray(connected_components(graph, directed=False)[1])
        frozen = {int(label[node]) for node in self.frozen}
        wanted = {int(label[node]) for node in self.seen} - frozen
        channels: dict[int, dict[Axis, list[int]]] = {}
        for axis in self.axes:
            start = self.offset[axis]
            for position, which in enumerate(label[start : start + self.sizes[axis]].tolist()):
                if which in wanted:
                    channels.setdefault(which, {}).setdefault(axis, []).append(position)
        alike: dict[tuple[tuple[Axis, int], ...], list[dict[Axis, list[int]]]] = {}
        for channel in channels.values():
            alike.setdefault(tuple((axis, len(where)) for axis, where in channel.items()), []).append(channel)
        groups = []
        for signature, rows in alike.items():
            members = {axis: np.array([row[axis] for row in rows], dtype=np.int64) for axis, _ in signature}
            group = ChannelGroup("", members)
            groups.append(ChannelGroup(group.root.layer, members))
        return groups
