"""Width: how many channels of each group stay at a width, and which ones."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.layers import Axis, is_depthwise

SMALLEST = 8  # no group falls below this many channels, unless it is asked to

Kept = tuple[int, ...]  # channels (rows of the group's members) kept per group


@dataclass(frozen=True)
class WidthAxis:
    """The widths that a network can take: ``values[i]`` is the share of channels kept by ``kept[i]``, ascending.

    A group of C channels can keep C, or a multiple of ``unit`` below it and not below max(step, least); unit is the
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
    def of(cls, group: ChannelGroup, step: int, least: int) -> _Rule:
        unit = math.lcm(step, group.positions_each)
        floor = -(-max(step, least) // unit) * unit
        return cls(group.channels, unit, min(floor, group.channels))

    @property
    def counts(self) -> NDArray[np.int64]:
        """What can be kept, ascending."""
        return np.array([*range(self.floor, self.channels, self.unit), self.channels])

    def at(self, nominal: NDArray[np.float64]) -> NDArray[np.int64]:
        """What is kept at each nominal width: the count closest to it, the greater of two as close."""
        counts, wanted = self.counts, nominal * self.channels
        right = np.minimum(np.searchsorted(counts, wanted), len(counts) - 1)
        left = np.maximum(right - 1, 0)
        nearer = np.abs(counts[left] - wanted) < np.abs(counts[right] - wanted)
        return np.asarray(np.where(nearer, counts[left], counts[right]))

    def thresholds(self) -> NDArray[np.float64]:
        """The nominal widths at which ``at`` changes."""
        counts = self.counts
        return np.asarray((counts[:-1] + counts[1:]) / 2 / self.channels)


def unit_of(group: ChannelGroup, model: nn.Module, channel_step: int | Mapping[str, int]) -> int:
    """The channel step of ``group``: a common multiple of those of the kinds of layers that make or read its channels.

    channel_step: one number, or one per kind "dense", "pointwise" (1x1 and linear) and "depthwise"; missing: 1.
    """
    if isinstance(channel_step, int):
        return channel_step
    kinds = {_kind(model.get_submodule(axis.layer)) for axis in group.members if axis.side != "param"}
    return math.lcm(*(channel_step.get(kind, 1) for kind in kinds if kind))


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "pointwise"
    if not isinstance(module, _ConvNd):
        return ""
    if is_depthwise(module):
        return "depthwise"
    return "pointwise" if all(k == 1 for k in module.kernel_size) else "dense"


def can_shrink(group: ChannelGroup, step: int, least: int = SMALLEST) -> bool:
    """Whether any width keeps fewer channels of the group than it has."""
    rule = _Rule.of(group, step, least)
    return rule.floor < rule.channels


def width_axis(groups: Sequence[ChannelGroup], step: int | Sequence[int], least: int = SMALLEST) -> WidthAxis:
    """Enumerate the configurations of ``groups`` (each able to shrink) at channel step ``step``, or one step each.

    least: the fewest channels of any group.
    """
    steps = [step] * len(groups) if isinstance(step, int) else step
    rules = [_Rule.of(group, unit, least) for group, unit in zip(groups, steps, strict=True)]
    total = sum(rule.channels for rule in rules)
    if not total:
        return WidthAxis((1.0,), ((),))
    edges = np.unique(np.concatenate([[0.0, 1.0], *(rule.thresholds() for rule in rules)]))
    edges = edges[edges <= 1.0]
    nominal = np.append((edges[:-1] + edges[1:]) / 2, 1.0)
    table = np.stack([rule.at(nominal) for rule in rules], axis=1)
    found = dict.fromkeys(map(tuple, table.tolist()))  # ascending: every group is monotone
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
        gone = np.ones(group.count, dtype=bool)
        gone[rows] = False
        if not gone.any():
            continue
        for axis, members in group.members.items():
            stays.setdefault(axis, np.ones(sizes[axis], dtype=bool))[members[gone]] = False
    return {axis: np.flatnonzero(mask) for axis, mask in stays.items()}
