"""A small Gaussian process on what a form leaves over, and the uncertainty between the samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from mobileprune.search.samples import Array


def kernel(a: NDArray, b: NDArray, length: float) -> NDArray:
    """Squared-exponential correlations (n, m) of points in unit coordinates."""
    return np.exp(-((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2) / (2.0 * length**2))


@dataclass(frozen=True)
class ResidualGP:
    """Zero-mean Gaussian process at unit coordinates ``sites`` (n, axes).

    ``variance``: prior variance of the process, ``slope``: prior variance of a level and of a slope per axis (what a
    trend may still be wrong by), ``weights``: the solved residuals, ``length``: correlation length.
    """

    sites: Array
    length: float
    variance: float
    slope: float
    factor: Array
    weights: Array

    @classmethod
    def fit(
        cls, sites: Array, residuals: Array, noise: Array, variance: float, length: float, slope: float = 0.0
    ) -> ResidualGP:
        """Condition on ``residuals`` (n,) seen with standard deviations ``noise`` (n,)."""
        empty = cls(sites, length, variance, slope, np.eye(len(sites)), np.zeros(len(sites)))
        covariance = empty.prior(sites, sites) + np.diag(noise**2 + 1e-9 * (variance + slope) + 1e-18)
        factor, _ = cho_factor(covariance, lower=True)
        return cls(sites, length, variance, slope, np.tril(factor), cho_solve((factor, True), residuals))

    def prior(self, a: NDArray, b: NDArray) -> NDArray:
        """Prior covariance (n, m) of two sets of coordinates."""
        out = self.variance * kernel(a, b, self.length)
        return out + self.slope * (1.0 + a @ b.T) if self.slope else out

    def mean(self, u: NDArray) -> NDArray:
        """The expected residual at (m, axes) coordinates; analytic."""
        return self.prior(u, self.sites) @ self.weights

    def spread(self, u: Array) -> Array:
        """The standard deviation that remains at (m, axes) coordinates."""
        cross = self.prior(u, self.sites)
        explained = (cross * cho_solve((self.factor, True), cross.T).T).sum(axis=1)
        before = self.variance + self.slope * (1.0 + (u**2).sum(axis=1))
        return np.sqrt(np.maximum(before - explained, 0.0))

    def covariance(self, u: Array) -> Array:
        """(m, m) covariance that remains at (m, axes) coordinates."""
        cross = self.prior(u, self.sites)
        return self.prior(u, u) - cross @ cho_solve((self.factor, True), cross.T)
