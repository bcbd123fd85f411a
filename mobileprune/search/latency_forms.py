"""The forms a latency surface can take, fitted to relative errors; see latency.py for how one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mobileprune.search.residual import ResidualGP
from mobileprune.search.samples import Array, Axes, Samples

RIDGE = 1e-4
NOMINAL = np.array([1.0, 2.0, 2.0])  # exponents of d * w^2 * r^2, where the power law is drawn without evidence


class LogFitted(Protocol):
    """A fitted form of the logarithm of latency."""

    def log_value(self, x: NDArray, features: Array | None) -> NDArray:
        """(n,) logarithms at (n, 3) scales; ``features`` (n, m) belong to the scales where the form uses them."""


@dataclass(frozen=True)
class LogPolynomial:
    """log t = c + sum a_i log x_i (power law), with a quadratic form in the logarithms added for degree 2."""

    degree: int
    coefficients: Array

    @staticmethod
    def columns(x: NDArray, degree: int) -> NDArray:
        z = np.log(x)
        out = [z[:, i] for i in range(3)]
        if degree == 2:
            out += [z[:, i] * z[:, j] for i in range(3) for j in range(i, 3)]
        return np.stack(out, axis=1)

    @classmethod
    def fit(cls, samples: Samples, features: Array | None, degree: int) -> LogPolynomial:
        """Weighted ridge regression; the power law's exponents are kept >= 0, drawn to d * w^2 * r^2."""
        weight = _relative_weights(samples)
        columns = cls.columns(samples.x, degree)
        pull = np.zeros(columns.shape[1])
        pull[:3] = NOMINAL
        penalty = np.full(columns.shape[1], 2e-3 if degree == 1 else 2e-2)
        rest = np.log(samples.y) - columns @ pull
        center = np.average(rest, weights=weight**2)
        design = np.vstack(
            [np.column_stack([columns * weight[:, None], weight]), np.diag(np.sqrt(np.append(penalty, 0)))]
        )
        target = np.append((rest - center) * weight, np.zeros(len(penalty) + 1))
        found = np.linalg.lstsq(design, target, rcond=None)[0]
        found[:-1] += pull
        found[-1] += center
        if degree == 1 and found[:3].min() < 0.0:  # latency does not fall as a network grows
            found = cls._nonnegative(columns, np.log(samples.y), weight)
        return cls(degree, found)

    @staticmethod
    def _nonnegative(columns: Array, y: Array, weight: Array) -> Array:
        center = y.mean()
        design = np.column_stack([columns, np.ones(len(y)), -np.ones(len(y))]) * weight[:, None]
        found, _ = nnls(design, (y - center) * weight)
        return np.append(found[:3], found[3] - found[4] + center)

    def log_value(self, x: NDArray, features: Array | None) -> NDArray:
        return self.columns(x, self.degree) @ self.coefficients[:-1] + self.coefficients[-1]


@dataclass(frozen=True)
class Monomials:
    """t = non-negative sum of the monomials a CNN's work is made of; ascends in every axis.

    Activations grow with d w r^2, convolutions with d w^2 r^2, weights with d w^2; the terms without d are the layers
    that depth cannot remove.
    """

    coefficients: Array

    EXPONENTS = np.array(
        [(0, 0, 0), (0, 0, 2), (0, 1, 2), (0, 2, 2), (1, 0, 2), (1, 1, 2), (1, 2, 2), (0, 2, 0), (1, 0, 0), (1, 2, 0)]
    )

    @classmethod
    def columns(cls, x: NDArray) -> NDArray:
        return np.exp(np.log(x) @ cls.EXPONENTS.T)

    @classmethod
    def fit(cls, samples: Samples, features: Array | None) -> Monomials:
        return cls(relative_nnls(cls.columns(samples.x), samples))

    def log_value(self, x: NDArray, features: Array | None) -> NDArray:
        return np.log(self.columns(x) @ self.coefficients)


@dataclass(frozen=True)
class Work:
    """t = non-negative sum of counted work: MACs, bytes and operators per kind."""

    coefficients: Array

    @classmethod
    def fit(cls, samples: Samples, features: Array | None) -> Work:
        if features is None:
            raise ValueError("the form 'work' needs the features of every sample")
        size = np.maximum(features.max(axis=0), 1e-300)
        columns = np.column_stack([features / size, np.ones(len(features))])
        found = relative_nnls(columns, samples)
        return cls(np.append(found[:-1] / size, found[-1]))

    def log_value(self, x: NDArray, features: Array | None) -> NDArray:
        if features is None:
            raise ValueError("the form 'work' needs the features of every scale")
        return np.log(np.maximum(features @ self.coefficients[:-1] + self.coefficients[-1], 1e-300))


@dataclass(frozen=True)
class WithResidual:
    """A form and a Gaussian process on the logarithm of what it leaves over."""

    base: LogFitted
    process: ResidualGP
    axes: Axes

    LENGTH = 0.5

    def log_value(self, x: NDArray, features: Array | None) -> NDArray:
        return self.base.log_value(x, features) + self.process.mean(self.axes.unit(x))


def relative_nnls(columns: Array, samples: Samples) -> Array:
    """Coefficients >= 0 of the least weighted squares of *relative* errors, with a small ridge."""
    weight = _relative_weights(samples)
    design = columns / samples.y[:, None] * weight[:, None]
    size = np.maximum(np.abs(design).max(axis=0), 1e-300)
    stacked = np.vstack([design / size, np.sqrt(RIDGE) * np.eye(columns.shape[1])])
    found, _ = nnls(stacked, np.append(weight, np.zeros(columns.shape[1])), maxiter=100 * columns.shape[1])
    return found / size


def _relative_weights(samples: Samples) -> Array:
    weight = 1.0 / np.sqrt(samples.noise**2 + 0.02**2)
    return weight / np.sqrt(np.mean(weight**2))


@dataclass(frozen=True)
class LatencyForm:
    """A named way to fit a latency surface; ``counted`` where it needs features of the scales."""

    name: str
    counted: bool
    fit: Callable[[Samples, Array | None, Axes], LogFitted]


def with_residual(form: LatencyForm) -> LatencyForm:
    """``form`` followed by a process on its residuals; those of a fit are too small, so the variance has a floor."""

    def fit(samples: Samples, features: Array | None, axes: Axes) -> LogFitted:
        base = form.fit(samples, features, axes)
        rest = np.log(samples.y) - base.log_value(samples.x, features)
        variance = max(float(np.mean(rest**2)), 0.03**2)
        noise = np.sqrt(samples.noise**2 + 0.01**2)
        process = ResidualGP.fit(axes.unit(samples.x), rest, noise, variance, WithResidual.LENGTH)
        return WithResidual(base, process, axes)

    return LatencyForm(f"{form.name}+gp", form.counted, fit)


POWER = LatencyForm("power-law", False, lambda s, f, a: LogPolynomial.fit(s, f, 1))
QUADRATIC = LatencyForm("log-quadratic", False, lambda s, f, a: LogPolynomial.fit(s, f, 2))
MONOMIALS = LatencyForm("monomials", False, lambda s, f, a: Monomials.fit(s, f))
WORK = LatencyForm("work", True, lambda s, f, a: Work.fit(s, f))
_PLAIN = (MONOMIALS, POWER, QUADRATIC, WORK)
FORMS = (*_PLAIN, *(with_residual(form) for form in _PLAIN))
NAMES = tuple(form.name for form in FORMS)
