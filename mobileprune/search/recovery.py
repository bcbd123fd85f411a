"""How accuracy grows with training: what a pruned network lacks to its base shrinks as a power of the epochs since.

Probes are cut from one another, so that some have been trained for longer than others; results for longer still. One
surface is fitted to all of them, each told as if trained for as long as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import AccuracySurrogate, fit_accuracy

EXPONENTS = tuple(0.04 * i for i in range(13))
# Prior of the exponent: it foretold best what ten runs, with trainings of one to four epochs, found next.
_USUAL, SPREAD = 0.2, 0.04
_LEAST_ERROR = 1e-4  # of a fit, as a fraction: where all is exact nothing is to be told apart
_ALONE = "monotone"  # the form by which exponents are compared: the quickest


def retold(
    accuracy: ArrayLike, trained: ArrayLike, wanted: float, exponent: float, ceiling: float
) -> NDArray[np.float64]:
    """The accuracy (fractions) after ``wanted`` epochs where it was found after ``trained``; as it is if infinite.

    ceiling: the base's accuracy. Where nothing lacks to it, training is taken to change nothing.
    """
    found, epochs = np.asarray(accuracy, dtype=float), np.asarray(trained, dtype=float)
    share = np.where(np.isinf(epochs), 1.0, (wanted / np.where(np.isinf(epochs), wanted, epochs)) ** -exponent)
    return np.asarray(found + np.maximum(ceiling - found, 0.0) * (1.0 - share), dtype=np.float64)


@dataclass(frozen=True)
class Recovery:
    """The accuracy after ``epochs`` of training, and the exponent by which it changes with them; see ``retold``."""

    surrogate: AccuracySurrogate
    exponent: float
    epochs: float
    ceiling: float

    def after(self, mean: float, std: float, epochs: float) -> tuple[float, float]:
        """Mean and standard deviation (fractions) after so many epochs, from those that ``surrogate`` gives."""
        told = float(retold(mean, self.epochs, epochs, self.exponent, self.ceiling))
        lacked, lacks = max(self.ceiling - mean, _LEAST_ERROR), max(self.ceiling - told, _LEAST_ERROR)
        return told, float(np.hypot(lacks / lacked * std, lacks * SPREAD * np.log(epochs / self.epochs)))


def fit_recovery(
    scales: Sequence[Scale], accuracies: ArrayLike, stds: ArrayLike, epochs: ArrayLike, form: str = "auto"
) -> Recovery:
    """Fit the surface to accuracies (n,) found after ``epochs`` (n,) of training; infinite for the base.

    The surface is told at the geometric mean of the finite epochs. The exponent is the one at which samples left out
    are missed least, given its prior; where all were trained alike the prior alone says it. form: see ``fit_accuracy``.
    """
    trained, noise = np.asarray(epochs, dtype=float), np.asarray(stds, dtype=float)
    ceiling = max((float(a) for a, s in zip(np.asarray(accuracies), scales, strict=True) if s == BASE), default=1.0)
    finite = trained[np.isfinite(trained)]
    middle = float(np.exp(np.mean(np.log(finite)))) if len(finite) else 1.0

    def doubt(exponent: float) -> float:
        told = retold(accuracies, trained, middle, exponent, ceiling)
        error = max(fit_accuracy(scales, told, noise, _ALONE).cv_error, _LEAST_ERROR)
        return len(told) * float(np.log(error)) + (exponent - _USUAL) ** 2 / (2 * SPREAD**2)

    alike = len(set(finite.tolist())) < 2
    exponent = _USUAL if alike else min(EXPONENTS, key=doubt)
    told = retold(accuracies, trained, middle, exponent, ceiling)
    return Recovery(fit_accuracy(scales, told, noise, form), exponent, middle, ceiling)
