"""How accuracy grows with training: what a pruned network lacks to its base shrinks as a power of the epochs since.

Probes are cut from one another, so that some have been trained for longer than others; results for longer still. One
surface is fitted to all of them, each told as if trained for as long as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import AccuracySurrogate, fit_accuracy
from mobileprune.search.curves import LossCurves
from mobileprune.search.samples import Array, Samples

EXPONENTS = tuple(0.04 * i for i in range(13))
# Prior of the exponent: what 19 results of six runs, by trainings of one and two epochs, came to.
USUAL, SPREAD = 0.28, 0.04
_LEAST_ERROR = 1e-4  # of a fit, as a fraction: where all is exact nothing is to be told apart
_ALONE = "monotone"  # the form by which exponents are compared: the quickest


def retold(
    accuracy: ArrayLike, trained: ArrayLike, wanted: ArrayLike, exponent: float, ceiling: float
) -> NDArray[np.float64]:
    """The accuracy (fractions) after ``wanted`` epochs where it was found after ``trained``; as it is if infinite.

    ceiling: the base's accuracy. Where nothing lacks to it, training is taken to change nothing.
    """
    found, epochs = np.asarray(accuracy, dtype=float), np.asarray(trained, dtype=float)
    wanted = np.asarray(wanted, dtype=float)
    share = np.where(np.isinf(epochs), 1.0, (wanted / np.where(np.isinf(epochs), wanted, epochs)) ** -exponent)
    return np.asarray(found + np.maximum(ceiling - found, 0.0) * (1.0 - share), dtype=np.float64)


@dataclass(frozen=True)
class Recovery:
    """The accuracy after ``epochs`` of training, and the exponent by which it changes with them; see ``retold``."""

    surrogate: AccuracySurrogate
    exponent: float
    epochs: float
    ceiling: float

    def after(self, mean: ArrayLike, std: ArrayLike, epochs: ArrayLike) -> tuple[Array, Array]:
        """Mean and standard deviation (fractions) after so many epochs, from those that ``surrogate`` gives."""
        told = retold(mean, self.epochs, epochs, self.exponent, self.ceiling)
        lacked = np.maximum(self.ceiling - np.asarray(mean, dtype=float), _LEAST_ERROR)
        lacks = np.maximum(self.ceiling - told, _LEAST_ERROR)
        longer = np.log(np.asarray(epochs, dtype=float) / self.epochs)
        return told, np.hypot(lacks / lacked * np.asarray(std, dtype=float), lacks * SPREAD * longer)

    def left(self, epochs: ArrayLike) -> Array:
        """What is left after so many epochs of what lacks to the ceiling, as a share."""
        return np.asarray((np.asarray(epochs, dtype=float) / self.epochs) ** -self.exponent)


@dataclass(frozen=True)
class ResultAccuracy:
    """The accuracy (a fraction) of results, which start from probes that were trained for longer or shorter.

    trained: scales (n,) to the epochs (n,) that their results come to, in trainings of a probe.
    usual: that of most, for the smooth problem.
    """

    recovery: Recovery
    trained: Callable[[Sequence[Scale]], Array]
    usual: float

    @property
    def noise(self) -> float:
        """Standard deviation of a new probe, as far as it moves what is expected of a result."""
        return self.recovery.surrogate.noise * float(self.recovery.left(self.usual))

    @property
    def samples(self) -> Samples:
        return self.recovery.surrogate.samples

    def estimate(self, scales: Sequence[Scale]) -> tuple[Array, Array]:
        """Mean and standard deviation (n,) of the results at ``scales``."""
        return self.recovery.after(*self.recovery.surrogate.estimate(scales), self.trained(scales))

    def gain(self, scales: Sequence[Scale]) -> Array:
        """What the results (n,) at ``scales``, none of them probed, gain by a probe: they begin one training later."""
        mean, std = self.recovery.surrogate.estimate(scales)
        trained = self.trained(scales)
        later, now = (self.recovery.after(mean, std, epochs)[0] for epochs in (trained + 1.0, trained))
        return np.asarray(later - now)

    def smooth(self, x: NDArray) -> NDArray:
        """(n,) values at (n, 3) scales, as if all results were trained for as long; analytic, as the surface is."""
        surface = self.recovery.surrogate.smooth(x)
        lacks = np.where(surface.real < self.recovery.ceiling, self.recovery.ceiling - surface, 0.0)
        return np.asarray(surface + lacks * (1.0 - self.recovery.left(self.usual)))

    def covariance(self, x: Array) -> Array:
        """(n, n) covariance of the results at (n, 3) scales, as far as it comes from the surface."""
        left = self.recovery.left(self.trained([Scale(*row) for row in x]))
        return left[:, None] * left * self.recovery.surrogate.covariance(x)


def fit_recovery(
    scales: Sequence[Scale],
    accuracies: ArrayLike,
    stds: ArrayLike,
    epochs: ArrayLike,
    form: str = "auto",
    curves: LossCurves | None = None,
) -> Recovery:
    """Fit the surface to accuracies (n,) found after ``epochs`` (n,) of training; infinite for the base.

    The surface is told at the geometric mean of the finite epochs. The exponent is the one at which samples left out
    are missed least, given its prior; where all were trained alike the prior alone says it. form, curves: see
    ``fit_accuracy``.
    """
    trained, noise = np.asarray(epochs, dtype=float), np.asarray(stds, dtype=float)
    ceiling = max((float(a) for a, s in zip(np.asarray(accuracies), scales, strict=True) if s == BASE), default=1.0)
    finite = trained[np.isfinite(trained)]
    middle = float(np.exp(np.mean(np.log(finite)))) if len(finite) else 1.0

    def doubt(exponent: float) -> float:
        told = retold(accuracies, trained, middle, exponent, ceiling)
        error = max(fit_accuracy(scales, told, noise, _ALONE).cv_error, _LEAST_ERROR)
        return len(told) * float(np.log(error)) + (exponent - USUAL) ** 2 / (2 * SPREAD**2)

    alike = len(set(finite.tolist())) < 2
    exponent = USUAL if alike else min(EXPONENTS, key=doubt)
    told = retold(accuracies, trained, middle, exponent, ceiling)
    return Recovery(fit_accuracy(scales, told, noise, form, curves), exponent, middle, ceiling)
