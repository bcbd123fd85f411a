"""The forms an accuracy surface can take; each is monotone in depth, width and resolution.

A form is fitted to samples by ``fit(samples, axes)`` and evaluated by ``value(x)`` on (n, 3) scales. Evaluation uses
analytic functions only, so that gradients come from complex steps to machine precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mobileprune.errors import UsageError
from mobileprune.search.curves import LossCurves
from mobileprune.search.residual import ResidualGP
from mobileprune.search.samples import Array, Axes, Samples
from mobileprune.search.trends import NUGGET, RIDGE, LossTrend, PowerLaw, Trend, nonnegative, weights_of


class Fitted(Protocol):
    """A fitted form."""

    def value(self, x: NDArray) -> NDArray:
        """(n,) values at (n, 3) scales."""


@dataclass(frozen=True)
class MonotoneLog:
    """Non-negative least squares on concave functions of log d, log w and log r.

    With t in [0, 1] the scaled logarithms the columns are t, 1-(1-t)^2 per axis and 1-prod(1-t) per pair and triple of
    axes: all of them ascend in every axis, and the products let one dimension be worth less where another is large.
    """

    axes: Axes
    coefficients: Array

    @staticmethod
    def columns(u: NDArray) -> NDArray:
        rest = 1.0 - u
        n = u.shape[1]
        out = [u[:, i] for i in range(n)] + [1.0 - rest[:, i] ** 2 for i in range(n)]
        for size in range(2, n + 1):
            out += [1.0 - rest[:, list(group)].prod(axis=1) for group in itertools.combinations(range(n), size)]
        return np.stack(out, axis=1) if out else np.zeros((len(u), 0), dtype=u.dtype)

    @classmethod
    def fit(cls, samples: Samples, axes: Axes) -> MonotoneLog:
        columns = cls.columns(axes.unit(samples.x))
        center = float(np.average(samples.y, weights=weights_of(samples) ** 2))
        return cls(axes, nonnegative(columns, samples.y, weights_of(samples), center=center))

    def value(self, x: NDArray) -> NDArray:
        return self.columns(self.axes.unit(x)) @ self.coefficients[:-1] + self.coefficients[-1]


@dataclass(frozen=True)
class TrendGP:
    """A trend and a Gaussian process on what it leaves over.

    The process is damped just enough for the sum to ascend in every axis over the sampled box.
    """

    axes: Axes
    trend: Trend
    process: ResidualGP
    damping: float

    LENGTH = 0.7

    @classmethod
    def fit(cls, samples: Samples, axes: Axes, trend: Trend) -> TrendGP:
        residual = samples.y - trend.value(samples.x)
        noise = np.sqrt(samples.noise**2 + NUGGET**2)
        variance = max(float(np.ptp(samples.y)) * 0.08, 0.005) ** 2
        process = ResidualGP.fit(axes.unit(samples.x), residual, noise, variance, cls.LENGTH)
        free = cls(axes, trend, process, 1.0)
        return cls(axes, trend, process, free._admissible_damping())

    def _admissible_damping(self) -> float:
        """The largest share of the process (at most 1) that keeps every slope above a small positive one."""
        active = self.axes.active
        if not active:
            return 1.0
        steps = 9 if len(active) < 3 else 7
        sides = [np.geomspace(self.axes.low[i], 1.0, steps) for i in active]
        grid = np.ones((steps ** len(active), 3))
        grid[:, list(active)] = np.stack([g.ravel() for g in np.meshgrid(*sides, indexing="ij")], axis=1)
        damping = 1.0
        for axis in active:
            shifted = grid.astype(complex)
            shifted[:, axis] += 1e-20j
            rise = self.trend.value(shifted).imag / 1e-20
            wave = self.process.mean(self.axes.unit(shifted)).imag / 1e-20
            falling = wave < -0.8 * rise
            if falling.any():
                damping = min(damping, float((0.8 * rise[falling] / -wave[falling]).min()))
        return damping

    def value(self, x: NDArray) -> NDArray:
        return self.trend.value(x) + self.damping * self.process.mean(self.axes.unit(x))


@dataclass(frozen=True)
class LowRank:
    """F(d, w, r) = sum over q of H(d; s_q) H(w; u_q) H(r; v_q), H of degree K (arXiv 2010.04879, section 3.2).

    H is written on the Bernstein basis of [0, 1] with coefficients that ascend from a value >= 0, which makes H, and so
    the sum of products, ascend on the whole domain. ``factors``: (R, 3, K+1) coefficients >= 0 of the cumulated basis.
    """

    degree: int
    factors: Array

    @staticmethod
    def columns(t: NDArray, degree: int) -> NDArray:
        """(n, K+1) cumulated Bernstein polynomials: column j is the sum of B_k for k >= j, ascending in t."""
        from math import comb

        single = [comb(degree, k) * t**k * (1.0 - t) ** (degree - k) for k in range(degree + 1)]
        return np.cumsum(np.stack(single, axis=1)[:, ::-1], axis=1)[:, ::-1]

    @classmethod
    def fit(
        cls, samples: Samples, axes: Axes, rank: int, degree: int, start: LowRank | None = None, rounds: int = 60
    ) -> LowRank:
        """Alternating non-negative least squares: with two of the three factors held the third is linear."""
        weight = weights_of(samples)
        scale = float(np.abs(samples.y).max()) or 1.0
        basis = [cls.columns(samples.x[:, i], degree) for i in range(3)]
        factors = cls._start(rank, degree) if start is None else start.factors / [[[1.0], [1.0], [scale]]]
        target = np.concatenate([samples.y / scale * weight, np.zeros(rank * (degree + 1))])
        penalty = np.sqrt(RIDGE * 0.1) * np.diag(np.tile([0.01] + [1.0] * degree, rank))
        last = np.inf
        for _ in range(rounds):
            for axis in (*axes.active, 2) if 2 not in axes.active else axes.active:
                factors = _balanced(factors)
                values = np.stack([basis[i] @ factors[:, i].T for i in range(3)])
                others = np.prod(np.delete(values, axis, axis=0), axis=0) * weight[:, None]
                design = (others[:, :, None] * basis[axis][:, None, :]).reshape(len(weight), -1)
                found, miss = nnls(np.vstack([design, penalty]), target, maxiter=200 * design.shape[1])
                factors[:, axis] = found.reshape(rank, -1)
            if last - miss < 1e-5 * max(miss, 1e-3):
                break
            last = miss
        factors[:, 2] *= scale
        return cls(degree, factors)

    @staticmethod
    def _start(rank: int, degree: int) -> Array:
        """Terms that differ: the first is nearly constant, the later ones rise."""
        factors = np.full((rank, 3, degree + 1), 0.2)
        factors[:, :, 0] = 1.0
        for q in range(1, rank):
            factors[q, :, 0] = 0.1
            factors[q, :, 1:] = 0.3 + 0.2 * q
        return factors

    def value(self, x: NDArray) -> NDArray:
        terms = [self.columns(x[:, i], self.degree) @ self.factors[:, i].T for i in range(3)]
        return (terms[0] * terms[1] * terms[2]).sum(axis=1)


def _balanced(factors: Array) -> Array:
    """The same products with depth and width factors of maximum 1, so that alternating steps stay well scaled."""
    size = np.maximum(factors.sum(axis=2, keepdims=True), 1e-12)
    carried = factors / size
    carried[:, 2:] *= size.prod(axis=1, keepdims=True)
    return carried


@dataclass(frozen=True)
class Form:
    """A named way to fit a surface; ``rank`` and ``degree`` where it is a low-rank polynomial."""

    name: str
    rank: int | None
    degree: int | None
    fit: Callable[[Samples, Axes, Fitted | None], Fitted]

    def parameters(self, axes: Axes) -> int:
        """How many numbers are free; 0 for the forms that a prior or a ridge holds where samples say nothing."""
        return 0 if self.rank is None or self.degree is None else self.rank * (len(axes.active) * self.degree + 1)


def low_rank_form(rank: int, degree: int) -> Form:
    def fit(samples: Samples, axes: Axes, start: Fitted | None) -> Fitted:
        warm = start if isinstance(start, LowRank) else None
        return LowRank.fit(samples, axes, rank, degree, warm, 60 if warm is None else 12)

    return Form("polynomial", rank, degree, fit)


MONOTONE = Form("monotone", None, None, lambda samples, axes, _: MonotoneLog.fit(samples, axes))
POWER_LAW_GP = Form(
    "power-law-gp", None, None, lambda samples, axes, _: TrendGP.fit(samples, axes, PowerLaw.fit(samples, axes))
)
NAMES = ("monotone", "power-law-gp", "loss-curves", "polynomial")


def loss_curves_form(curves: LossCurves) -> Form:
    def fit(samples: Samples, axes: Axes, _: Fitted | None) -> Fitted:
        return TrendGP.fit(samples, axes, LossTrend.fit(samples, axes, curves))

    return Form("loss-curves", None, None, fit)


def candidates(name: str, samples: Samples, axes: Axes, curves: LossCurves | None = None) -> list[Form]:
    """The forms to compare under ``name`` ("auto" or one of NAMES): ranks and degrees that the samples can carry.

    Raises UsageError for "loss-curves" where there are no ``curves``.
    """
    if name == "loss-curves" and curves is None:
        raise UsageError("the form loss-curves needs the losses before training, which only a run that probes measures")
    largest = 3 if len(samples) >= 10 else 2
    pairs = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    carried = [
        (rank, degree)
        for rank, degree in pairs
        if degree <= largest and (rank == 1 or rank * (len(axes.active) * degree + 1) <= len(samples) + 2)
    ]
    named = {
        "loss-curves": [loss_curves_form(curves)] if curves else [],
        "power-law-gp": [POWER_LAW_GP],
        "monotone": [MONOTONE],
        "polynomial": [low_rank_form(rank, degree) for rank, degree in carried],
    }
    return [form for forms in named.values() for form in forms] if name == "auto" else named[name]
