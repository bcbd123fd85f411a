"""The scale (d, w, r) of a network relative to its base, and the lattice of scales it can really take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

DIMENSIONS = ("depth", "width", "resolution")


@dataclass(frozen=True, order=True)
class Scale:
    """A point (depth, width, resolution), each in (0, 1].

    depth: share of the removable blocks that is kept. width: share of the channels that is kept.
    resolution: share of the base's input side that is kept. ``Scale(1, 1, 1)`` is the base.
    """

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name}={value} is not in (0, 1]: a scale is a share of the base")

    @property
    def nominal_cost(self) -> float:
        """d * w^2 * r^2, the cost relative to the base that arXiv 2010.04879 uses."""
        return self.depth * self.width**2 * self.resolution**2

    def as_tuple(self) -> tuple[float, float, float]:
        return (self.depth, self.width, self.resolution)

    def __str__(self) -> str:
        return f"d={self.depth:.3g} w={self.width:.3g} r={self.resolution:.3g}"


BASE = Scale()


@dataclass(frozen=True)
class Lattice:
    """The realisable values per dimension, each ascending and ending at 1.0."""

    depths: tuple[float, ...]
    widths: tuple[float, ...]
    resolutions: tuple[float, ...]

    def __iter__(self) -> Iterator[Scale]:
        """All scales, ascending in (depth, width, resolution)."""
        return (Scale(*point) for point in itertools.product(self.depths, self.widths, self.resolutions))

    def __len__(self) -> int:
        return len(self.depths) * len(self.widths) * len(self.resolutions)

    def nearest(self, scale: Scale) -> Scale:
        """The lattice scale closest to ``scale``, dimension by dimension."""

        def closest(axis: tuple[float, ...], target: float) -> float:
            return min(axis, key=lambda value: abs(value - target))

        return Scale(
            closest(self.depths, scale.depth),
            closest(self.widths, scale.width),
            closest(self.resolutions, scale.resolution),
        )

    @property
    def smallest(self) -> Scale:
        return Scale(self.depths[0], self.widths[0], self.resolutions[0])
