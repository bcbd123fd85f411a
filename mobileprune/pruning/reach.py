"""Hitting a share of the base's MACs or parameters: the scale that has it, and how the dimensions share the cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import Cost
from mobileprune.pruning.recipe import Recipe
from mobileprune.scale import BASE, DIMENSIONS, Scale

TOLERANCE = 0.01  # of the requested share: scales this close count as equal, and the evenest of them is taken
MISSED = 0.02  # a request further off than this was missed

Measure = Literal["macs", "params"]


@dataclass(frozen=True)
class Reached:
    """The scale found for a request, and the shares of the base's MACs and parameters that it really has."""

    scale: Scale
    measure: Measure
    requested: float
    macs: float
    params: float
    base: Cost = field(repr=False, compare=False)

    @property
    def share(self) -> float:
        """The share reached of what was requested."""
        return self.macs if self.measure == "macs" else self.params

    @property
    def error(self) -> float:
        """How far the share reached is from the requested one, relative to it; negative: smaller."""
        return self.share / self.requested - 1.0

    def error_of(self, cost: Cost) -> float:
        """The same of another network's ``cost``."""
        return getattr(cost, self.measure) / max(1, getattr(self.base, self.measure)) / self.requested - 1.0

    def __str__(self) -> str:
        what = "MACs" if self.measure == "macs" else "parameters"
        missed = abs(self.error) > MISSED
        remark = f", the nearest to the requested {self.requested:.1%} that this network can take" if missed else ""
        return f"{self.scale}: {self.share:.1%} of the {what}{remark}"


def reach(
    anatomy: Anatomy,
    *,
    macs: float | None = None,
    params: float | None = None,
    along: Sequence[str] = DIMENSIONS,
    ranking: Mapping[str, float] | None = None,
    parent: Recipe | None = None,
) -> Reached:
    """The scale whose share of the base's MACs (or parameters) is the requested one, in (0, 1).

    All depths, all widths and all sizes of the network are searched. Of the scales within 1 % of the request the one
    is taken along whose dimensions the cut is shared most evenly: with m(x) the share of the MACs that remains when
    dimension x alone is pruned, the values log m(depth), log m(width), log m(resolution) are as equal as can be (least
    variance), which is the compound direction of equal shares of the logarithm. Where no scale is that close, the
    nearest is taken: read ``error`` or ``str`` of the result.

    along: the dimensions that may be pruned; those in which the network cannot be are left out, and the resolution too
    where parameters are requested. ranking: the one that ``prune`` will be given. parent: the recipe of an already
    pruned model; only scales below its own are then looked at.

    Raises UsageError for a request that is no share, for no dimension to go along, and where even the smallest scale
    is more than 2 % above the request: it names the smallest share.
    """
    measure, requested = _request(macs, params)
    axes = _axes(anatomy, along, measure, parent)
    search = _Search(anatomy, measure, ranking, parent)
    found = list(search.around(requested, *axes))
    close = [point for point in found if abs(point[0] / requested - 1.0) <= TOLERANCE]
    if close:
        uneven = _Uneven(search, axes)
        _, scale = min(close, key=lambda point: (uneven(point[1]), abs(point[0] - requested), point[1]))
    else:
        share, scale = min(found, key=lambda point: (abs(point[0] - requested), point[1]))
        if share > requested * (1.0 + MISSED) and share <= min(point[0] for point in found):
            what = "MACs" if measure == "macs" else "parameters"
            raise UsageError(
                f"{requested:.1%} of the {what} was asked and along {', '.join(along)} this network goes down to "
                f"{share:.1%} ({scale}): ask for at least that"
            )
    cost = search.cost(scale)
    base = search.base
    return Reached(scale, measure, requested, cost.macs / base.macs, cost.params / base.params, base)


def _request(macs: float | None, params: float | None) -> tuple[Measure, float]:
    if (macs is None) == (params is None):
        raise UsageError("give either macs= or params=, as a share of the base's, such as macs=0.5")
    measure: Measure = "macs" if params is None else "params"
    requested = params if macs is None else macs
    if requested is None or not 0.0 < requested < 1.0:
        raise UsageError(f"{measure}={requested} is no share to prune to: give one between 0 and 1, such as 0.5")
    return measure, float(requested)


def _axes(
    anatomy: Anatomy, along: Sequence[str], measure: Measure, parent: Recipe | None
) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """The values of each dimension that may be taken, ascending; a single one where a dimension stays as it is."""
    unknown = [name for name in along if name not in DIMENSIONS]
    if unknown or not along:
        raise UsageError(f"along={list(along)}: name one or more of {', '.join(DIMENSIONS)}")
    start = parent.scale if parent else BASE
    every = {"depth": anatomy.depths, "width": anatomy.widths.values, "resolution": anatomy.resolutions}
    axes = []
    for name, values in every.items():
        most = getattr(start, name)
        fixed = name not in along or (measure == "params" and name == "resolution")
        axes.append((most,) if fixed else tuple(v for v in values if v <= most + 1e-9))
    if all(len(axis) < 2 for axis in axes):
        reasons = [note for note in anatomy.notes if note.startswith(tuple(along))]
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise UsageError(f"nothing along {', '.join(along)} changes this network's {measure}{why}")
    return axes[0], axes[1], axes[2]


class _Search:
    """Shares of the base at scales, each computed once."""

    def __init__(
        self, anatomy: Anatomy, measure: Measure, ranking: Mapping[str, float] | None, parent: Recipe | None
    ) -> None:
        self.anatomy, self.measure, self.ranking = anatomy, measure, ranking
        self.gone = parent.removed if parent else ()
        self.start = parent.scale if parent else BASE
        self.base = anatomy.cost(BASE)
        self._known: dict[Scale, float] = {}

    def cost(self, scale: Scale) -> Cost:
        return self.anatomy.cost_of(self.anatomy.choose(scale, self.ranking, self.gone))

    def share(self, scale: Scale) -> float:
        if scale not in self._known:
            cost = self.cost(scale)
            self._known[scale] = getattr(cost, self.measure) / max(1, getattr(self.base, self.measure))
        return self._known[scale]

    def around(
        self, requested: float, depths: Sequence[float], widths: Sequence[float], resolutions: Sequence[float]
    ) -> Iterator[tuple[float, Scale]]:
        """(share, scale) of those that can be best: per depth and size, the widths next to the request.

        The share grows with the width, so these are found by halving. The start itself is no result.
        """
        for depth, resolution in product(depths, resolutions):

            def at(i: int, depth: float = depth, resolution: float = resolution) -> tuple[float, Scale]:
                scale = Scale(depth, widths[i], resolution)
                return self.share(scale), scale

            low, high = 0, len(widths)
            while low < high:  # the first width whose share is at or above the lower edge
                middle = (low + high) // 2
                low, high = (low, middle) if at(middle)[0] >= requested * (1.0 - TOLERANCE) else (middle + 1, high)
            for i in range(max(0, low - 1), len(widths)):
                point = at(i)
                if point[1] != self.start:
                    yield point
                if point[0] > requested * (1.0 + TOLERANCE):
                    break


class _Uneven:
    """How unevenly a scale shares its cut between the dimensions: the variance of their logarithms of the share."""

    def __init__(self, search: _Search, axes: Sequence[Sequence[float]]) -> None:
        self.tables: dict[str, dict[float, float]] = {}
        for name, axis in zip(DIMENSIONS, axes, strict=True):
            if len(axis) > 1:
                alone = {value: Scale(**{**_as_dict(search.start), name: value}) for value in axis}
                self.tables[name] = {value: math.log(max(1e-12, search.share(s))) for value, s in alone.items()}

    def __call__(self, scale: Scale) -> float:
        logs = [table[getattr(scale, name)] for name, table in self.tables.items()]
        mean = sum(logs) / len(logs)
        return sum((value - mean) ** 2 for value in logs)


def _as_dict(scale: Scale) -> dict[str, float]:
    return dict(zip(DIMENSIONS, scale.as_tuple(), strict=True))
