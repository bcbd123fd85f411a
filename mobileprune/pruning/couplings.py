"""Which channels must be cut together: the traced ties, taken apart into groups of equal channels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.layers import Axis, Inputs, axes_of, is_depthwise, kept_groups, outline
from mobileprune.pruning.tracing import FIXED, ChannelTracer, Labels

_STEP = 8  # of channels, that most devices like: what the steps of grouped convolutions are compared by


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are interchangeable: each can be kept or removed on its own, on all its axes at once.

    ``members[axis]`` has shape (count, m): row i lists the m positions that channel i holds on that axis. A channel
    of a grouped convolution is one position in every group, or one of its groups as a whole; a flattened one is a
    position per pixel.
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

    def cuts_groups(self, layer: str, module: nn.Module) -> bool:
        """Whether the channels go with whole groups of ``module``, a grouped convolution at the path ``layer``."""
        into = self.members.get(Axis(layer, "in"))
        return into is not None and kept_groups(module, np.sort(into[0])) is not None


@dataclass(frozen=True)
class Couplings:
    """The channel groups of a network, and which layers have channels that must stay, by the reason."""

    groups: list[ChannelGroup]
    held: Mapping[str, Sequence[str]]


def find_groups(model: nn.Module, inputs: Inputs, through: Sequence[str] = ()) -> list[ChannelGroup]:
    """The channel groups of ``model`` in any mode, see ``find_couplings``."""
    return find_couplings(outline(model).eval(), inputs, through).groups


def find_couplings(
    model: nn.Module, inputs: Inputs, through: Sequence[str] = (), *, training: bool = False
) -> Couplings:
    """Trace ``model`` (in eval mode) and return its channel groups, in the order of the layers that make them.

    through: modules that may be taken out, so that what they give must be cut like what they get.

    Input channels and whatever the model gives are in no group. What is traced is a claim, since code can do what a
    tracer does not see: ``mobileprune.pruning.proof`` decides which couplings are true. ``model`` may be on the meta
    device: nothing is computed then. training: follow a call in training mode, too (on a copy), where further layers
    run in it.
    """
    tracer = ChannelTracer(model)
    tracer.run(model, inputs, through)
    if training:
        tracer.run_training(model, inputs)
    ties = [tracer.edges()]
    for axis in shared_axes(model):
        numbers = tracer.numbers(axis)
        ties.append(np.stack([numbers, np.full_like(numbers, FIXED)]))
    whole = {path for path, module in model.named_modules() if _finer_by_whole_groups(module)}
    while True:
        found = _groups(tracer, _labels(tracer, [*ties, *_grouped_ties(model, tracer, whole)]))
        able = {axis.layer for group in found if group.count > 1 for axis in group.members if axis.side == "in"}
        if whole <= able:
            break
        whole &= able  # what stands around the others ties all of their groups to each other
    return Couplings(found, {why: _owners(tracer, held) for why, held in tracer.held.items()})


def _labels(tracer: ChannelTracer, ties: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """For each of the tracer's channels, the number of the component it is in."""
    pairs = np.concatenate(ties, axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(tracer.count,) * 2)
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _finer_by_whole_groups(module: nn.Module) -> bool:
    """Whether a grouped convolution shrinks in smaller steps by whole groups than by as many channels of each."""
    if not isinstance(module, _ConvNd) or module.groups == 1 or not axes_of(module):
        return False
    return math.lcm(_STEP, module.in_channels // module.groups) <= math.lcm(_STEP, module.groups)


def _owners(tracer: ChannelTracer, labels: Sequence[Labels]) -> list[str]:
    """The layers that make the channels of these labels."""
    axes = list(tracer.start)
    numbers = np.unique(np.concatenate([part.ravel() for part in labels]))
    at = np.searchsorted([tracer.start[axis] for axis in axes], numbers[numbers != FIXED], side="right") - 1
    return list(dict.fromkeys(axes[i].layer for i in at.tolist()))


def _grouped_ties(model: nn.Module, tracer: ChannelTracer, whole: Collection[str]) -> Iterator[NDArray[np.int64]]:
    """What the groups of convolutions and norms tie: in the layers ``whole`` all that a group reads and gives.

    Every group of the others keeps the same positions. A depthwise convolution has whole groups alone.
    """

    def tied(axis: Axis, other: Axis, partner: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([tracer.numbers(axis), partner + tracer.start[other]])

    for path, module in model.named_modules():
        out, into = Axis(path, "out"), Axis(path, "in")
        if isinstance(module, _ConvNd) and (is_depthwise(module) or path in whole):
            each, reads = module.out_channels // module.groups, module.in_channels // module.groups
            yield tied(out, into, np.arange(module.out_channels) // each * reads)
            yield tied(into, into, np.arange(module.in_channels) // reads * reads)
        elif isinstance(module, _ConvNd) and module.groups > 1:
            for axis, size in ((out, module.out_channels), (into, module.in_channels)):
                yield tied(axis, axis, np.arange(size) % (size // module.groups))
        elif isinstance(module, nn.GroupNorm) and axes_of(module):
            size = module.num_channels
            yield tied(out, out, np.arange(size) % (size // module.num_groups))


def _groups(tracer: ChannelTracer, label: NDArray[np.int64]) -> list[ChannelGroup]:
    """Components with the same count of positions on the same axes form one group."""
    axes = [axis for axis in tracer.sizes if axis in tracer.seen]
    numbers = np.concatenate([tracer.numbers(axis) for axis in axes] or [np.zeros(0, dtype=np.int64)])
    owner = np.repeat(np.arange(len(axes)), [tracer.sizes[axis] for axis in axes])
    position = numbers - np.array([tracer.start[axis] for axis in axes])[owner]
    component = label[numbers]
    wanted = component != label[FIXED]
    owner, position, component = owner[wanted], position[wanted], component[wanted]
    order = np.argsort(component, kind="stable")
    start = np.flatnonzero(np.diff(component[order], prepend=-1))
    length = np.diff(start, append=len(order))
    # What a component holds of each axis, as a sum of random numbers: comparing all its axes would take longer.
    code = np.random.default_rng(0).integers(2**63, size=len(axes), dtype=np.uint64)
    signature = np.add.reduceat(code[owner[order]], start) if len(start) else start
    found: list[tuple[int, ChannelGroup]] = []
    for value in np.unique(signature):
        alike = start[signature == value]
        rows = order[alike[:, None] + np.arange(length[signature == value][0])]  # (channels, positions of each)
        rows = rows[np.argsort(rows[:, 0])]
        owners = owner[rows[0]]
        members = {axes[i]: position[rows[:, owners == i]] for i in dict.fromkeys(owners.tolist())}
        root = ChannelGroup("", members).root
        found.append((int(rows[0, 0]), ChannelGroup(root.layer, members)))
    return [group for _, group in sorted(found, key=lambda pair: pair[0])]


def shared_axes(model: nn.Module) -> Iterator[Axis]:
    """The axes of layers that hold a parameter of another layer too: cutting one alone would part them."""
    own = [(path, m, [id(p) for p in m._parameters.values() if p is not None]) for path, m in model.named_modules()]
    holders = Counter(parameter for _, _, parameters in own for parameter in parameters)
    for path, module, parameters in own:
        if any(holders[parameter] > 1 for parameter in parameters):
            yield from (Axis(path, side) for side in axes_of(module))
