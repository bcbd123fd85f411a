"""What an accuracy surface is taken to look like before a process adds what the samples say beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from mobileprune.search.curves import LossCurves
from mobileprune.search.samples import Array, Axes, Samples

RIDGE = 0.003  # keeps collinear columns apart; small beside residuals of some tenths of a point
NUGGET = 0.004  # accuracy of one architecture against a smooth surface: 0.3 to 0.5 points on published grids
_POWERS = (0.6, 0.6, 1.3)  # by which accuracy falls with depth, width and resolution


class Trend(Protocol):
    """A fitted trend; it ascends in every axis."""

    def value(self, x: NDArray) -> NDArray:
        """(n,) values at (n, 3) scales; analytic."""


def weights_of(samples: Samples) -> Array:
    """Relative weights (n,) of the samples, their root mean square being 1: measured noise and the nugget."""
    weight = 1.0 / np.sqrt(samples.noise**2 + NUGGET**2)
    return weight / np.sqrt(np.mean(weight**2))


def nonnegative(columns: Array, y: Array, weight: Array, ridge: float | Array = RIDGE, center: float = 0.0) -> Array:
    """Coefficients >= 0 of least ``|weight * (columns @ c - y)|^2 + ridge * |c|^2``, with a free intercept put last."""
    n = columns.shape[1]
    one = weight[:, None]
    penalty = np.sqrt(np.broadcast_to(np.asarray(ridge, dtype=float), (n,)))
    upper = np.hstack([columns * one, one, -one])
    lower = np.hstack([np.diag(penalty), np.zeros((n, 2))])
    solution, _ = nnls(np.vstack([upper, lower]), np.concatenate([(y - center) * weight, np.zeros(n)]))
    return np.append(solution[:n], solution[n] - solution[n + 1] + center)


def falls(x: NDArray, axes: Axes) -> NDArray:
    """(n, active axes): by how much x^-p exceeds 1 at (n, 3) scales, as a share of that at the lowest sample."""
    out = [(x[:, i] ** -_POWERS[i] - 1.0) / (axes.low[i] ** -_POWERS[i] - 1.0) for i in axes.active]
    return np.stack(out, axis=1) if out else np.zeros((len(x), 0), dtype=x.dtype)


@dataclass(frozen=True)
class PowerLaw:
    """A saturating power law a - b d^-0.6 - c w^-0.6 - e r^-1.3."""

    axes: Axes
    coefficients: Array

    @classmethod
    def fit(cls, samples: Samples, axes: Axes) -> PowerLaw:
        weight = weights_of(samples)
        columns = 1.0 - falls(samples.x, axes)
        center = float(np.average(samples.y, weights=weight**2))
        # The ridge pulls towards an equal share of the range for each axis, so that no axis is flat without evidence.
        share = 0.2 * float(np.ptp(samples.y)) / max(columns.shape[1], 1)
        pulled = nonnegative(columns, samples.y - columns.sum(axis=1) * share, weight, 0.02, center - share)
        return cls(axes, np.append(pulled[:-1] + share, pulled[-1]))

    def value(self, x: NDArray) -> NDArray:
        return (1.0 - falls(x, self.axes)) @ self.coefficients[:-1] + self.coefficients[-1]


# Priors of LossTrend, as means and standard deviations of logarithms: the drop, the share of a loss that training
# leaves, and the part of a power law. Set where three runs (resnet20, resnet56, MobileNetV1) foretold best what they
# found later; half or twice as much is as good, and two runs of other seeds are foretold as well.
_DROP, _LEFT, _PLAIN = (np.log(0.2), 0.5), (np.log(0.5), 0.8), (np.log(0.03), 1.0)
_MOST_STEPS = 100  # of the search for them


@dataclass(frozen=True)
class LossTrend:
    """a - b log(1 + sum over the axes of s_i log(1 + L_i(x_i)) + q_i P_i(x_i)).

    L_i: the loss (nats) that the axis alone adds before any training; what several add together saturates, and so does
    what training leaves of it. P_i: the power law's fall, for where an untrained network only guesses and its loss says
    no more. ``logs``: the logarithms of b, of every s and of every q.
    """

    axes: Axes
    curves: LossCurves
    level: float
    logs: Array

    @classmethod
    def fit(cls, samples: Samples, axes: Axes, curves: LossCurves) -> LossTrend:
        """The most probable parameters, given their priors."""
        count = len(axes.active)
        prior = np.array([_DROP, *[_LEFT] * count, *[_PLAIN] * count])
        columns = cls._columns(samples.x, axes, curves)
        weight = weights_of(samples) / NUGGET

        def residuals(p: Array) -> Array:
            inner = columns @ np.exp(p[2:])
            miss = p[0] - np.exp(p[1]) * np.log1p(inner) - samples.y
            return np.concatenate([miss * weight, (p[1:] - prior[:, 0]) / prior[:, 1]])

        def jacobian(p: Array) -> Array:
            parts = columns * np.exp(p[2:])
            inner = parts.sum(axis=1)
            drop = np.exp(p[1])
            upper = np.column_stack(
                [np.ones(len(inner)), -drop * np.log1p(inner), -drop * parts / (1.0 + inner)[:, None]]
            )
            lower = np.column_stack([np.zeros(len(prior)), np.diag(1.0 / prior[:, 1])])
            return np.vstack([upper * weight[:, None], lower])

        start = np.append(samples.y.max(), prior[:, 0])
        found = least_squares(residuals, start, jacobian, method="lm", max_nfev=_MOST_STEPS).x
        return cls(axes, curves, float(found[0]), found[1:])

    @staticmethod
    def _columns(x: NDArray, axes: Axes, curves: LossCurves) -> NDArray:
        return np.hstack([np.log1p(curves.value(x)[:, list(axes.active)]), falls(x, axes)])

    def value(self, x: NDArray) -> NDArray:
        inner = self._columns(x, self.axes, self.curves) @ np.exp(self.logs[1:])
        return np.asarray(self.level - np.exp(self.logs[0]) * np.log1p(inner))
