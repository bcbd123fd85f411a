"""Which channels stay: as many of every group as its width says, or more where they matter more."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy, Choice
from mobileprune.pruning.filters import Kept, removed_positions
from mobileprune.pruning.groups import rows_left
from mobileprune.pruning.importance import Importance, best, spread_globally
from mobileprune.pruning.layers import Axis
from mobileprune.pruning.reach import Reached
from mobileprune.pruning.recipe import within

Widths = Literal["uniform", "global"]
FLOOR = 0.5  # of the uniform number; measured: results/width_choices.csv
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """How the channels of a width are shared between the groups.

    uniform: every group keeps the same share. global: as many channels in all, where they matter most across the
    groups; none keeps less than ``floor`` of its uniform number. Raises UsageError for values that make no sense.
    """

    widths: Widths = "uniform"
    floor: float = FLOOR

    def __post_init__(self) -> None:
        if self.widths not in get_args(Widths):
            raise UsageError(f"widths={self.widths!r}: choose one of {', '.join(get_args(Widths))}")
        if not 0.0 <= self.floor <= 1.0:
            raise UsageError(f"floor={self.floor} is no share of a group's channels: give one between 0 and 1")

    def of(
        self,
        anatomy: Anatomy,
        choice: Choice,
        importance: Importance,
        before: Mapping[Axis, tuple[int, ...]],
        target: Reached | None = None,
    ) -> tuple[Choice, dict[Axis, tuple[int, ...]]]:
        """The choice with the channels that each group really keeps, and the base positions of the most important ones.

        before: the base positions that the model still has, where it was pruned before. target: the share of the base
        that was requested, which global widths of another cost than the uniform ones are to meet, too.
        """
        alive = [
            rows_left(group, before) if count else np.zeros(0, dtype=np.int64)  # it goes with a removed block
            for group, count in zip(anatomy.groups, choice.kept, strict=True)
        ]
        spread = self.widths == "global" and choice.scale.width < 1.0
        scores = [
            importance.of_channels(group, rows, before) if spread or count < len(rows) else np.zeros(len(rows))
            for group, rows, count in zip(anatomy.groups, alive, choice.kept, strict=True)
        ]
        counts = self._globally(anatomy, choice, scores, target) if spread else choice.kept
        rows = [best(s, at, min(n, len(at))) for s, at, n in zip(scores, alive, counts, strict=True)]
        real = tuple(len(at) for at in rows)
        if real != choice.kept:
            choice = replace(choice, kept=real, scale=replace(choice.scale, width=_width(anatomy, choice, real)))
        kept = removed_positions(anatomy.groups, rows, anatomy.axes)
        return choice, {axis: tuple(at.tolist()) for axis, at in kept.items()}

    def _globally(self, anatomy: Anatomy, choice: Choice, scores: Sequence[Scores], target: Reached | None) -> Kept:
        """As many channels as ``choice`` keeps, spread by their scores; with a target, as many as come closest."""
        going = [all(within(axis.layer, choice.removed) for axis in group.members) for group in anatomy.groups]
        scores = [s[:n] if goes else s for s, n, goes in zip(scores, choice.kept, going, strict=True)]
        units, floors = self._limits(anatomy, choice.kept, going, scores)

        def spread(total: int) -> Kept:
            return spread_globally(scores, total, units, floors)

        if target is None:
            return spread(sum(choice.kept))

        def error(total: int) -> float:
            return target.error_of(anatomy.cost_of(replace(choice, kept=spread(total))))

        totals = range(sum(floors), sum(map(len, scores)) + 1)
        above = bisect_left(totals, 0.0, key=error)
        return spread(min(totals[max(0, above - 1) : above + 1], key=lambda total: abs(error(total))))

    def _limits(
        self, anatomy: Anatomy, uniform: Kept, going: Sequence[bool], scores: Sequence[Scores]
    ) -> tuple[list[int], list[int]]:
        """The unit in which each group's channels come and go, and the fewest it may keep.

        Groups that go with a removed block take no part: they keep their uniform number.
        """
        units, floors = [], []
        for group, step, count, goes, values in zip(anatomy.groups, anatomy.units, uniform, going, scores, strict=True):
            unit = math.lcm(step, group.positions_each) // group.positions_each
            least = max(count if goes else self.floor * count, anatomy.least_channels / group.positions_each)
            units.append(unit)
            floors.append(min(count, math.ceil(least / unit) * unit, len(values)))
        return units, floors


def _width(anatomy: Anatomy, choice: Choice, kept: Kept) -> float:
    """The share of channels kept, over the groups that are there (removed blocks may take theirs along)."""
    there = [(g, n) for g, n, asked in zip(anatomy.groups, kept, choice.kept, strict=True) if asked]
    return sum(n * g.positions_each for g, n in there) / max(1, sum(g.channels for g, _ in there))
