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
from mobileprune.search.curves import LossCurves
from mobileprune.search.prior import Prior
from mobileprune.search.residual import ResidualGP
from mobileprune.search.samples import Array, Axes, Samples, collect, points
from mobileprune.search.trends import NUGGET

PROBE_NOISE = 0.004  # standard deviation of one fine-tuned probe where none is given (0.3 to 0.6 points were measured)
_PRIOR = Prior(surface=0.006, slope=0.02, nugget=NUGGET, worth=8.0, most_folds=12)
_DOUBT = 2.0  # a form further down the list must beat those before it by the factor 1 - _DOUBT / samples


@dataclass(frozen=True)
class Candidate:
    """One form that was compared: ``cv_error`` is its mean absolute leave-one-out error (a fraction)."""

    name: str
    rank: int | None
    degree: int | None
    cv_error: float
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

        By the surface alone, as if no scale had been probed itself. Raises UsageError where a scale leaves an axis that
        no probe varied.
        """
        x = points(scales)
        self.axes.check(x, "accuracy")
        own = (self.inflation * _PRIOR.nugget) ** 2
        return np.clip(self.smooth(x), 0.0, 1.0), np.sqrt(self._surface_variance(x) + own)

    def _surface_variance(self, x: Array) -> Array:
        between = self.inflation * self.shape.spread(self.axes.unit(x))
        return np.asarray(between**2 + (self._disagreement(x) ** 2).sum(axis=0))

    def _disagreement(self, x: Array) -> Array:
        """(rivals, n): how far each other form lies from the chosen one, times the root of its credibility."""
        chosen = self.form.value(x)
        return np.array([np.sqrt(w) * (f.value(x) - chosen) for w, f in self.rivals]).reshape(len(self.rivals), len(x))

    def covariance(self, x: Array) -> Array:
        """(n, n) covariance of the accuracies at (n, 3) scales given the probes: what one probe tells of the others."""
        _, trust, left = _PRIOR.own(self.samples, x, self.inflation)
        apart = self._disagreement(x)
        surface = self.inflation**2 * self.shape.covariance(self.axes.unit(x)) + apart.T @ apart
        return np.asarray(np.outer(1.0 - trust, 1.0 - trust) * surface + np.diag(left))

    def estimate(self, scales: Sequence[Scale]) -> tuple[Array, Array]:
        """As ``predict``, but of a scale that was probed its own distance to the surface is known, too.

        The surface has learnt from that probe already: what is added is the part of the distance that is the network's
        own and not the probe's noise.
        """
        x = points(scales)
        mean, _ = self.predict(scales)
        at, trust, left = _PRIOR.own(self.samples, x, self.inflation)
        mean += trust * (self.samples.y[at] - mean)
        return mean, np.sqrt((1.0 - trust) ** 2 * self._surface_variance(x) + left)

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
    scales: Sequence[Scale],
    accuracies: ArrayLike,
    stds: ArrayLike | None = None,
    form: str = "auto",
    curves: LossCurves | None = None,
) -> AccuracySurrogate:
    """Fit an accuracy surface to probes.

    ``accuracies`` (n,) are fractions; ``stds`` (n,) their standard deviations (noise, as fractions), 0 for exact.
    ``form`` is "auto" (best leave-one-out error), "loss-curves" (which ``curves`` are for), "power-law-gp", "monotone"
    or "polynomial" (the paper's, its rank and degree chosen by leave-one-out). Raises UsageError for bad samples or
    fewer than three distinct scales.
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
    tried = [(kind, *_leave_out(kind, samples, axes)) for kind in forms.candidates(form, samples, axes, curves)]
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
        Candidate(k.name, k.rank, k.degree, float(np.abs(r).mean()), i == best) for i, (k, r, _, _) in enumerate(tried)
    )
    noise = float(np.sqrt(np.mean(samples.noise**2 * samples.counts)))
    inflation = _PRIOR.inflation(residuals, samples, axes)
    error = float(np.abs(residuals).mean())
    shape = _PRIOR.shape(samples, axes)
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


def _leave_out(kind: forms.Form, samples: Samples, axes: Axes) -> tuple[Array, float, forms.Fitted]:
    """Leave-one-out residuals (n,), a score in which far extrapolations weigh less, and the fit to all samples."""
    fitted = kind.fit(samples, axes, None)
    residuals, expected = np.empty(len(samples)), np.empty(len(samples))
    for fold in _PRIOR.folds(samples):
        rest = samples.without(fold)
        model = kind.fit(rest, axes, fitted)
        residuals[fold] = samples.y[fold] - model.value(samples.x[fold])
        expected[fold] = _PRIOR.expected_error(samples, axes, fold)
    return residuals, float(np.sqrt(np.mean((residuals / expected) ** 2))), fitted
