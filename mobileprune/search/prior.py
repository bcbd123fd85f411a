"""What is assumed of a surface before its samples are seen, and how the samples correct its error bars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobileprune.search.residual import ResidualGP
from mobileprune.search.samples import Array, Axes, Samples

_LENGTH = 0.5  # correlation length of a surface between its samples, as a share of the sampled log range
_OUTLIER = 25.0  # a squared standardised residual counts for no more than this


@dataclass(frozen=True)
class Prior:
    """Standard deviations, in the unit of the samples.

    surface: of a surface between its samples. slope: of a fitted slope, per sampled log range of an axis.
    nugget: of one network against any smooth surface. worth: how many left-out residuals the prior counts for.
    """

    surface: float
    slope: float
    nugget: float
    worth: float
    most_folds: int

    def folds(self, samples: Samples) -> list[NDArray[np.int64]]:
        """Leave one out; with many samples, leave out every k-th of them together."""
        count = min(len(samples), self.most_folds)
        return [np.arange(len(samples))[i::count] for i in range(count)]

    def shape(self, samples: Samples, axes: Axes) -> ResidualGP:
        """The process whose spread says how far a scale is from the samples."""
        noise = np.hypot(samples.noise, self.nugget)
        unit = axes.unit(samples.x)
        return ResidualGP.fit(unit, np.zeros(len(samples)), noise, self.surface**2, _LENGTH, self.slope**2)

    def expected_error(self, samples: Samples, axes: Axes, fold: NDArray[np.int64]) -> Array:
        """Standard deviation of the samples of ``fold`` about what the others foretell."""
        between = self.shape(samples.without(fold), axes).spread(axes.unit(samples.x[fold]))
        return np.sqrt(between**2 + self.nugget**2 + samples.noise[fold] ** 2)

    def inflation(self, residuals: Array, samples: Samples, axes: Axes) -> float:
        """How much wider than their prior the error bars must be for the left-out residuals (n,), shrunk to 1."""
        total = 0.0
        for fold in self.folds(samples):
            standardised = residuals[fold] / self.expected_error(samples, axes, fold)
            total += float(np.minimum(standardised**2, _OUTLIER).sum())
        return float(np.sqrt((total + self.worth) / (len(samples) + self.worth)))

    def own(self, samples: Samples, x: Array, inflation: float) -> tuple[NDArray[np.int64], Array, Array]:
        """What is known of each network's own deviation from the surface at (n, 3) scales.

        Returns the sample (n,) of each scale, -1 where there is none; the share (n,) of a sample's distance to the
        surface that is the network's own and not noise; and what is left (n,) of the deviation's variance.
        """
        at = samples.index_of(x)
        variance = (inflation * self.nugget) ** 2
        trust = np.where(at >= 0, variance / (variance + samples.noise[at] ** 2), 0.0)
        return at, trust, (1.0 - trust) * variance
