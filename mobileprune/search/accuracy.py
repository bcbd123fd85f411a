"""The accuracy surrogate: forms are fitted to the probes, the one that predicts best out of sample is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from mobileprune.errors import UsageError
from mobileprune.scale import Scale
from mobileprune.search import forms
from mobileprune.search.residual import ResidualGP
from mobileprune.search.samples import Array, Axes, Samples, collect, points

PROBE_NOISE = 0.004  # standard deviation of one fine-tuned probe where none is given (0.3 to 0.6 points were measured)
SURFACE = 0.006  # prior standard deviation of a surface between its samples
SLOPE = 0.02  # prior standard deviation of a fitted slope, per sampled log range of an axis
LENGTH = 0.5  # its correlation length, as a share of the sampled log range
_PRIOR_COUNT = 8.0  # how many leave-one-out residuals the prior of the error bars is worth
_DOUBT = 2.0  # a form further down the list must beat those before it by the factor 1 - _DOUBT / samples
_MOST_FOLDS = 12


@dataclass(frozen=True)
class Candidate:
    """One form that was compared: ``cv_error`` is its mean absolute leave-one-out error (a fraction)."""

    name: str
    rank: int | None
    degree: int | None
    cv_error: float
    score: float
    chosen: bool

    @property
    def label(self) -> str:
        return self.name if self.rank is None else f"{self.name} R={self.rank} K={self.degree}"


@dataclass(frozen=True)
class AccuracySurrogate:
    """Accuracy (a fraction) as a function of the scale, ascending in every axis, with error bars.

    ``cv_error``: mean absolute leave-one-out error of the form. ``noise``: standard deviation of a new probe.
    """

    name: str
    rank: int | None
    degree: int | None
    cv_error: float
    noise: float
    candidates: tuple[Candidate, ...]
    samples: Samples
    axes: Axes
    form: forms.Fitted
    rivals: tuple[tuple[float, forms.Fitted], ...]
    inflation: float
    shape: ResidualGP

    def smooth(self, x: NDArray) -> NDArray:
        """(n,) values at (n, 3) scales; analytic and unclipped, for the continuous problem."""
        return self.form.value(x)

    def predict(self, scales: Sequence[Scale]) -> tuple[Array, Array]:
        """Mean and standard deviation (n,) of the accuracy of a network pruned to each scale, probe noise left out.

        Raises UsageError where a scale leaves an axis that no probe varied.
        """
        x = points(scales)
        self.axes.check(x, "accuracy")
        return np.clip(self.smooth(x), 0.0, 1.0), self._spread(x)

    def _spread(self, x: Array) -> Array:
        between = self.shape.spread(self.axes.unit(x))
        return np.sqrt(self.inflation**2 * (between**2 + forms.NUGGET**2) + (self._disagreement(x) ** 2).sum(axis=0))

    def _disagreement(self, x: Array) -> Array:
        """(rivals, n): how far each other form lies from the chosen one, times the root of its credibility."""
        chosen = self.form.value(x)
        return np.array([np.sqrt(w) * (f.value(x) - chosen) for w, f in self.rivals]).reshape(len(self.rivals), len(x))

    def covariance(self, x: Array) -> Array:
        """(n, n) covariance of the accuracies at (n, 3) scales given the probes: what one probe tells of the others."""
        smooth = self.shape.covariance(self.axes.unit(x))
        known = self.samples.index_of(x)
        own = np.full(len(x), forms.NUGGET**2)
        own[known >= 0] *= self.samples.noise[known[known >= 0]] ** 2 / (
            self.samples.noise[known[known >= 0]] ** 2 + forms.NUGGET**2
        )
        apart = self._disagreement(x)
        return self.inflation**2 * (smooth + np.diag(own)) + apart.T @ apart

    def estimate(self, scales: Sequence[Scale]) -> tuple[Array, Array]:
        """As ``predict``, but a scale that was probed is known from its probe too, as well as its noise allows."""
        mean, std = self.predict(scales)
        at = self.samples.index_of(points(scales))
        seen = at >= 0
        noise, value = self.samples.noise[at[seen]], self.samples.y[at[seen]]
        trust = std[seen] ** 2 / (std[seen] ** 2 + noise**2)
        mean[seen] += trust * (value - mean[seen])
        std[seen] *= np.sqrt(1.0 - trust)
        return mean, std

    def interval(self, scales: Sequence[Scale], level: float = 0.8, *, probe: bool = True) -> tuple[Array, Array]:
        """Lower and upper bounds (n,) that hold a new probe's accuracy (its noise included) with probability ``level``.

        With ``probe=False`` they hold the accuracy itself, without the noise of measuring it.
        """
        mean, std = self.predict(scales)
        reach = float(norm.ppf(0.5 + level / 2.0)) * np.sqrt(std**2 + (self.noise**2 if probe else 0.0))
        return np.clip(mean - reach, 0.0, 1.0), np.clip(mean + reach, 0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """What was chosen and against what, for JSON."""
        return {
            "form": self.name,
            "rank": self.rank,
            "degree": self.degree,
            "cv_error": self.cv_error,
            "samples": len(self.samples),
            "candidates": [
                {"form": c.name, "rank": c.rank, "degree": c.degree, "cv_error": c.cv_error, "chosen": c.chosen}
                for c in self.candidates
            ],
        }


def fit_accuracy(
    scales: Sequence[Scale], accuracies: ArrayLike, stds: ArrayLike | None = None, form: str = "auto"
) -> AccuracySurrogate:
    """Fit an accuracy surface to probes.

    ``accuracies`` (n,) are fractions; ``stds`` (n,) their standard deviations (noise, as fractions), 0 for exact.
    ``form`` is "auto" (best leave-one-out error), "monotone", "power-law-gp" or "polynomial" (the paper's, its rank and
    degree chosen by leave-one-out). Raises UsageError for bad samples or fewer than three distinct scales.
    """
    if form != "auto" and form not in forms.NAMES:
        raise UsageError(f"no surrogate is called {form!r}: choose one of auto, {', '.join(forms.NAMES)}")
    samples = collect(scales, accuracies, stds, what="accuracy", default_noise=PROBE_NOISE, minimum=3)
    outside = np.flatnonzero((samples.y < 0.0) | (samples.y > 1.0))
    if len(outside):
        raise UsageError(
            f"accuracy {samples.y[outside[0]]:.4g} is not a fraction between 0 and 1: divide percent by 100"
        )
    axes = Axes.of(samples.x)
    tried = [(kind, *_leave_out(kind, samples, axes)) for kind in forms.candidates(form, samples, axes)]
    best = 0
    for i, (kind, _, score, _) in enumerate(tried):
        if form == "auto" and 2 * kind.parameters(axes) > len(samples):
            continue  # it can fit so few samples by chance, each one left out included
        lead = 0.97 if kind.name == tried[best][0].name else 1.0 - _DOUBT / len(samples)
        if score < lead * tried[best][2]:
            best = i
    kind, residuals, _, fitted = tried[best]
    rivals = _rivals([(k.name, score, f) for k, _, score, f in tried], best)
    table = tuple(
        Candidate(k.name, k.rank, k.degree, float(np.abs(r).mean()), s, i == best)
        for i, (k, r, s, _) in enumerate(tried)
    )
    noise = float(np.sqrt(np.mean(samples.noise**2 * samples.counts)))
    inflation = _inflation(residuals, samples, axes)
    error = float(np.abs(residuals).mean())
    shape = _shape(samples, axes)
    return AccuracySurrogate(
        kind.name, kind.rank, kind.degree, error, noise, table, samples, axes, fitted, rivals, inflation, shape
    )


def _rivals(tried: list[tuple[str, float, forms.Fitted]], best: int) -> tuple[tuple[float, forms.Fitted], ...]:
    """The best form of each other name with its credibility: what is left undecided widens the error bars."""
    leaders: dict[str, tuple[float, forms.Fitted]] = {}
    for name, score, fitted in tried:
        if name not in leaders or score < leaders[name][0]:
            leaders[name] = (score, fitted)
    name, chosen, _ = tried[best]
    credit = {n: 1.0 / (0.5 + s**2) for n, (s, _) in leaders.items()} | {name: 1.0 / (0.5 + chosen**2)}
    total = sum(credit.values())
    return tuple((credit[n] / total, f) for n, (_, f) in leaders.items() if n != name)


def _shape(samples: Samples, axes: Axes) -> ResidualGP:
    """The process whose spread says how far a scale is from what was probed."""
    noise = np.sqrt(samples.noise**2 + forms.NUGGET**2)
    return ResidualGP.fit(axes.unit(samples.x), np.zeros(len(samples)), noise, SURFACE**2, LENGTH, SLOPE**2)


def _folds(samples: Samples) -> list[NDArray[np.int64]]:
    """Leave one out; with many samples, leave out every k-th of them together."""
    count = min(len(samples), _MOST_FOLDS)
    return [np.arange(len(samples))[i::count] for i in range(count)]


def _leave_out(kind: forms.Form, samples: Samples, axes: Axes) -> tuple[Array, float, forms.Fitted]:
    """Leave-one-out residuals (n,), a score in which far extrapolations weigh less, and the fit to all samples."""
    fitted = kind.fit(samples, axes, None)
    residuals, expected = np.empty(len(samples)), np.empty(len(samples))
    for fold in _folds(samples):
        rest = samples.without(fold)
        model = kind.fit(rest, axes, fitted)
        residuals[fold] = samples.y[fold] - model.value(samples.x[fold])
        expected[fold] = _expected_error(rest, axes, samples, fold)
    return residuals, float(np.sqrt(np.mean((residuals / expected) ** 2))), fitted


def _expected_error(rest: Samples, axes: Axes, samples: Samples, fold: NDArray[np.int64]) -> Array:
    between = _shape(rest, axes).spread(axes.unit(samples.x[fold]))
    return np.sqrt(between**2 + forms.NUGGET**2 + samples.noise[fold] ** 2)


def _inflation(residuals: Array, samples: Samples, axes: Axes) -> float:
    """How much wider than their prior the error bars must be for the leave-one-out residuals, shrunk to 1."""
    total = 0.0
    for fold in _folds(samples):
        expected = _expected_error(samples.without(fold), axes, samples, fold)
        total += float(np.minimum((residuals[fold] / expected) ** 2, 25.0).sum())
    return float(np.sqrt((total + _PRIOR_COUNT) / (len(samples) + _PRIOR_COUNT)))
