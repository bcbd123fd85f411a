"""What each dimension alone adds to the loss before any training: cheap to measure, and of the shape of what training
cannot bring back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from mobileprune.scale import BASE, Scale
from mobileprune.search.samples import Array, points

_FLAT = 0.1  # nats: what lies between two shares that differ by less is not measured


def along(axis: int, share: float) -> Scale:
    """The scale at which dimension ``axis`` (0 depth, 1 width, 2 resolution) alone has ``share``."""
    return Scale(*(share if i == axis else 1.0 for i in range(3)))


def shares_along(axis: int, scales: Iterable[Scale]) -> list[float]:
    """The shares, ascending, of those of ``scales`` that vary dimension ``axis`` alone, or nothing."""
    return sorted(s.as_tuple()[axis] for s in scales if s == along(axis, s.as_tuple()[axis]))


@dataclass(frozen=True)
class LossCurves:
    """Monotone cubics per dimension: where they meet (n,), in logs of shares, and their coefficients (4, n - 1)."""

    cubics: tuple[tuple[Array, Array], ...]

    @classmethod
    def of(cls, losses: Mapping[Scale, float]) -> LossCurves:
        """From the losses (nats) of the base and of scales that vary one dimension; noise that rises is evened out."""
        cubics = []
        for axis in range(3):
            shares = shares_along(axis, {BASE, *losses})
            added = np.array([losses[along(axis, share)] - losses[BASE] for share in shares])
            falling = np.maximum.accumulate(np.maximum(added, 0.0)[::-1])[::-1]
            at = np.log(shares)
            cubics.append((at, PchipInterpolator(at, falling).c if len(at) > 1 else np.zeros((4, 1))))
        return cls(tuple(cubics))

    def value(self, x: NDArray) -> NDArray:
        """(n, 3) nats that each dimension of (n, 3) scales adds; analytic, and level beyond the smallest share."""
        return np.stack([_between(*self.cubics[axis], np.log(x[:, axis])) for axis in range(3)], axis=1)

    def together(self, scales: Sequence[Scale]) -> Array:
        """(n,) how much dimensions should cost together, on no scale in particular: only to compare."""
        return np.asarray(np.log1p(self.value(points(scales))).sum(axis=1))


def _between(at: Array, coefficients: Array, t: NDArray) -> NDArray:
    """The cubics at real or complex ``t``."""
    inside = np.where(t.real < at[0], at[0], t)
    piece = np.clip(np.searchsorted(at, inside.real, side="right") - 1, 0, coefficients.shape[1] - 1)
    step = inside - at[piece]
    a, b, c, d = coefficients[:, piece]
    return np.asarray(((a * step + b) * step + c) * step + d)


def next_share(shares: Sequence[float], losses: Mapping[float, float], most: int) -> float | None:
    """The share (of ``shares``, ascending, the last 1) to measure next: the smallest, then the middle of the widest
    gap in loss; None where ``most`` beside 1 are known or no gap is left.

    losses: what is known so far, by share, that of 1 included.
    """
    known = [i for i, share in enumerate(shares) if share in losses]
    if len(shares) < 2 or len(known) > most:
        return None
    if known[0] != 0:
        return shares[0]
    gaps = [(abs(losses[shares[a]] - losses[shares[b]]), a, b) for a, b in itertools.pairwise(known)]
    open_ = [gap for gap in gaps if gap[2] - gap[1] > 1 and gap[0] >= _FLAT]
    if not open_:
        return None
    _, a, b = max(open_)
    return shares[(a + b + 1) // 2]
