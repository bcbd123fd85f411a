"""Width: how many channels of each group stay at a width, and which ones."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.layers import Axis

SMALLEST = 8  # no group falls below this many channels: a residual stream of 8 has cost 10 points (18 blocks, CIFAR-10)

Kept = tuple[int, ...]  # channels (rows of the group's members) kept per group


@dataclass(frozen=True)
class WidthAxis:
    """The widths that a network can take: ``values[i]`` is the share of channels kept by ``kept[i]``, ascending.

    A group of C channels can keep C, or a multiple of ``unit`` below it and not below max(step, 8); unit is the
    channel step, or the least multiple of it that a grouped convolution can take. At a nominal width t it keeps
    whichever of these is closest to t C (the greater of two as close). As t falls from 1 to 0 this passes through
    finitely many configurations; each is named by the share of the prunable channels that it really keeps, so asking
    for that share gives that configuration again.
    """

    values: tuple[float, ...]
    kept: tuple[Kept, ...]

    def nearest(self, width: float) -> int:
        """The position of the configuration whose share of kept channels is closest to ``width``."""
        return nearest(self.values, width)


def nearest(values: Sequence[float], value: float) -> int:
    """The position in ascending ``values`` of the one closest to ``value`` (the greater one of two as close)."""
    right = min(bisect_left(values, value), len(values) - 1)
    left = max(right - 1, 0)
    return left if abs(values[left] - value) < abs(values[right] - value) else right


@dataclass(frozen=True)
class _Rule:
    """Rounding of one group, in positions of the layer that makes its channels."""

    channels: int
    unit: int
    floor: int

    @classmethod
    def of(cls, group: ChannelGroup, step: int) -> _Rule:
        unit = math.lcm(step, group.positions_each)
        floor = -(-max(step, SMALLEST) // unit) * unit
        return cls(group.channels, unit, min(floor, group.channels))

    @property
    def counts(self) -> list[int]:
        """What can be kept, ascending."""
        return [*range(self.floor, self.channels, self.unit), self.channels]

    def at(self, nominal: float) -> int:
        counts = self.counts
        return counts[nearest(counts, nominal * self.channels)]

    def thresholds(self) -> Iterable[float]:
        """The nominal widths at which ``at`` changes."""
        return ((low + high) / 2 / self.channels for low, high in itertools.pairwise(self.counts))


def can_shrink(group: ChannelGroup, step: int) -> bool:
    """Whether any width keeps fewer channels of the group than it has."""
    rule = _Rule.of(group, step)
    return rule.floor < rule.channels


def width_axis(groups: Sequence[ChannelGroup], step: int) -> WidthAxis:
    """Enumerate the configurations of ``groups`` (each able to shrink) at channel step ``step``."""
    rules = [_Rule.of(group, step) for group in groups]
    total = sum(rule.channels for rule in rules)
    if not total:
        return WidthAxis((1.0,), ((),))
    edges = sorted({0.0, 1.0} | {t for rule in rules for t in rule.thresholds() if 0.0 < t < 1.0})
    nominal = [(low + high) / 2 for low, high in itertools.pairwise(edges)] + [1.0]
    found = dict.fromkeys(tuple(rule.at(t) for rule in rules) for t in nominal)  # ascending: every group is monotone
    values = tuple(sum(counts) / total for counts in found)
    each = [group.positions_each for group in groups]
    kept = tuple(tuple(n // m for n, m in zip(counts, each, strict=True)) for counts in found)
    return WidthAxis(values, kept)


def removed_positions(
    groups: Sequence[ChannelGroup], kept: Sequence[NDArray[np.int64]], sizes: Mapping[Axis, int]
) -> dict[Axis, NDArray[np.int64]]:
    """For each axis that loses channels, the positions it keeps, ascending, when group i keeps the rows kept[i]."""
    stays: dict[Axis, NDArray[np.bool_]] = {}
    for group, rows in zip(groups, kept, strict=True):
        gone = np.setdiff1d(np.arange(group.count), rows)
        if not len(gone):
            continue
        for axis, members in group.members.items():
            stays.setdefault(axis, np.ones(sizes[axis], dtype=bool))[members[gone]] = False
    return {axis: np.flatnonzero(mask) for axis, mask in stays.items()}


def importance(
    group: ChannelGroup, model: nn.Module, alive: NDArray[np.int64], kept: Mapping[Axis, Sequence[int]]
) -> NDArray[np.float64]:
    """Group L2 importance of the channels ``alive`` (rows of ``group``) in the weights of ``model``.

    The mean, over the layers that make, scale or read the channel, of the sum of its squared weights there: the
    group importance of DepGraph (arXiv 2301.12900, with p = 2) as torch-pruning computes it. ``kept`` gives the base
    positions that an axis of ``model`` still has, where it was pruned before. Removed layers do not count.
    """
    scores = []
    for axis, members in group.members.items():
        squares = _squares(model, axis)
        if squares is None:
            continue
        at = members[alive]
        if axis in kept:
            at = np.searchsorted(np.asarray(kept[axis]), at)
        scores.append(squares[at].sum(axis=1))
    return np.mean(scores, axis=0) if scores else np.zeros(len(alive))


def _squares(model: nn.Module, axis: Axis) -> NDArray[np.float64] | None:
    """Sum of squared weights per position of ``axis``; None where torch-pruning counts nothing or the layer is gone."""
    try:
        module = model.get_submodule(axis.layer)
    except AttributeError:
        return None  # inside a removed block, or a bare parameter
    weight: Tensor | None = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or isinstance(module, nn.PReLU | nn.GroupNorm):
        return None
    with torch.no_grad():
        square = weight.detach().double().square().cpu()
        if isinstance(module, _NormBase | nn.LayerNorm):
            return np.asarray(square)
        if isinstance(module, _ConvNd) and module.groups > 1:
            return _grouped_squares(module, square, axis)
        is_out = (axis.side == "out") != bool(getattr(module, "transposed", False))
        return np.asarray((square if is_out else square.transpose(0, 1)).flatten(1).sum(1))


def _grouped_squares(conv: _ConvNd, square: Tensor, axis: Axis) -> NDArray[np.float64] | None:
    """The same for a grouped convolution, whose second dimension is that of one group; a depthwise one counts once."""
    if axis.side == ("out" if conv.transposed else "in"):
        if conv.in_channels == conv.groups:
            return None
        per_group = square.unflatten(0, (conv.groups, -1)).transpose(1, 2)  # (groups, per group, rest of dim 0, ...)
        return np.asarray(per_group.flatten(2).sum(2).flatten())
    return np.asarray(square.flatten(1).sum(1))


def choose(
    group: ChannelGroup, model: nn.Module, alive: NDArray[np.int64], count: int, kept: Mapping[Axis, Sequence[int]]
) -> NDArray[np.int64]:
    """The ``count`` most important of the channels ``alive``, ascending; of equal ones the first."""
    order = np.argsort(-importance(group, model, alive, kept), kind="stable")
    return np.sort(alive[order[:count]])
