"""Samples on scales: checking them, merging repeats, and the coordinates in which the surrogates are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mobileprune.errors import UsageError
from mobileprune.scale import Scale

Array = NDArray[np.float64]
AXES = ("depth", "width", "resolution")
_SAME = 1e-9  # two scales closer than this are the same scale


def points(scales: Sequence[Scale]) -> Array:
    """The scales as an array of shape (n, 3)."""
    return np.array([s.as_tuple() for s in scales], dtype=float).reshape(-1, 3)


@dataclass(frozen=True)
class Samples:
    """Distinct sampled scales in ascending order.

    ``x``: (n, 3) scales, ``y``: (n,) values, ``noise``: (n,) standard deviation of each (merged) value,
    ``counts``: (n,) how many rows were merged into it.
    """

    x: Array
    y: Array
    noise: Array
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def without(self, fold: NDArray[np.int64]) -> Samples:
        """These samples without the rows ``fold``."""
        keep = np.setdiff1d(np.arange(len(self)), fold)
        return Samples(self.x[keep], self.y[keep], self.noise[keep], self.counts[keep])

    def index_of(self, x: Array) -> NDArray[np.int64]:
        """For each row of ``x`` the sample at the same scale, or -1."""
        distance = np.abs(x[:, None, :] - self.x[None, :, :]).max(axis=2)
        nearest = distance.argmin(axis=1)
        return np.where(distance[np.arange(len(x)), nearest] < _SAME, nearest, -1)


def collect(
    scales: Sequence[Scale],
    values: ArrayLike,
    stds: ArrayLike | None,
    *,
    what: str,
    default_noise: float,
    minimum: int,
) -> Samples:
    """Check samples and merge those at the same scale, weighted by their precision.

    A value without a standard deviation gets ``default_noise``, or what repeats of one scale show where there are any.
    Raises UsageError for unequal lengths, values that are not finite, negative deviations or too few distinct scales.
    """
    x = points(scales)
    y = np.asarray(values, dtype=float).reshape(-1)
    if len(x) != len(y):
        raise UsageError(f"{len(x)} scales but {len(y)} values of {what}: give one value for each scale")
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise UsageError(
            f"{what} number {bad[0] + 1} is {y[bad[0]]}: every sample must be a finite number; leave it out"
        )
    given = None if stds is None else np.asarray(stds, dtype=float).reshape(-1)
    if given is not None and (len(given) != len(y) or not np.all(np.isfinite(given)) or np.any(given < 0)):
        raise UsageError(f"the standard deviations of {what} must be {len(y)} finite numbers that are not negative")
    order = np.lexsort((y, x[:, 2], x[:, 1], x[:, 0]))
    x, y = x[order], y[order]
    steps = np.abs(np.diff(x, axis=0)).max(axis=1) > _SAME if len(x) > 1 else np.zeros(0, dtype=bool)
    group: NDArray[np.int64] = np.concatenate([[0], np.cumsum(steps)])[: len(x)].astype(np.int64)
    distinct = int(group[-1]) + 1 if len(x) else 0
    if distinct < minimum:
        raise UsageError(
            f"{what} is known at {distinct} distinct scale{'s' if distinct != 1 else ''}: "
            f"a fit needs at least {minimum}; measure more scales"
        )
    noise = given[order] if given is not None else _noise_of_repeats(y, group, distinct, default_noise)
    weight = 1.0 / np.maximum(noise, 1e-12) ** 2
    total = np.bincount(group, weight)
    first = np.searchsorted(group, np.arange(distinct))
    counts = np.bincount(group).astype(np.int64)
    merged = np.where(counts == 1, y[first], np.bincount(group, weight * y) / total)
    return Samples(x[first], merged, np.where(total < 1e23, total**-0.5, 0.0), counts)


def _noise_of_repeats(y: Array, group: NDArray[np.int64], distinct: int, default: float) -> Array:
    """One standard deviation for all rows: the default, moved to the scatter of repeats as their number grows."""
    freedom = len(y) - distinct
    means = np.bincount(group, y) / np.bincount(group)
    scatter = float(((y - means[group]) ** 2).sum())
    prior = 2.0  # the default counts as much as two repeats
    return np.full(len(y), ((scatter + prior * default**2) / (freedom + prior)) ** 0.5)


@dataclass(frozen=True)
class Axes:
    """Coordinates for fitting: ``unit`` maps log d, log w, log r to [0, 1] between ``low`` and 1.

    An axis on which the samples hold a single value is not ``active``: nothing can be learnt along it.
    """

    low: tuple[float, float, float]
    fixed: tuple[float | None, float | None, float | None]

    @classmethod
    def of(cls, x: Array) -> Axes:
        low = [max(min(float(v), 0.999), 1e-6) for v in x.min(axis=0)]
        fixed = [float(c[0]) if np.ptp(c) < _SAME else None for c in x.T]
        return cls((low[0], low[1], low[2]), (fixed[0], fixed[1], fixed[2]))

    @property
    def active(self) -> tuple[int, ...]:
        return tuple(i for i in range(3) if self.fixed[i] is None)

    def unit(self, x: NDArray) -> NDArray:
        """(n, 3) scales to (n, number of active axes); analytic, so that complex steps pass through."""
        columns = [1.0 - np.log(x[:, i]) / np.log(self.low[i]) for i in self.active]
        return np.stack(columns, axis=1) if columns else np.zeros((len(x), 0), dtype=x.dtype)

    def check(self, x: Array, what: str) -> None:
        """UsageError where ``x`` leaves the single value an inactive axis was sampled at."""
        for axis, value in enumerate(self.fixed):
            if value is not None and np.any(np.abs(x[:, axis] - value) > 1e-6):
                raise UsageError(
                    f"every sample of {what} has {AXES[axis]} {value:.3g}, so nothing is known of other values of "
                    f"{AXES[axis]}: sample some, or keep {AXES[axis]} at {value:.3g}"
                )
