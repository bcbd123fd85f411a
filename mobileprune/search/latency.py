"""The latency surrogate of one device: forms are fitted to measured samples, cross-validation chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from mobileprune.errors import UsageError
from mobileprune.scale import Scale
from mobileprune.search import latency_forms as forms
from mobileprune.search.prior import Prior
from mobileprune.search.residual import ResidualGP
from mobileprune.search.samples import Array, Axes, Samples, collect, points

SAMPLE_NOISE = 0.015  # relative noise of one measured latency where none is given
# All relative. The nugget: steps of channel and cache sizes that no smooth function follows.
_PRIOR = Prior(surface=0.055, slope=0.05, nugget=0.035, worth=4.0, most_folds=16)
_PREFERENCE = 0.95


@dataclass(frozen=True)
class LatencyCandidate:
    """One form that was compared; ``cv_error`` is its root mean square relative error on samples left out."""

    name: str
    cv_error: float
    chosen: bool


@dataclass(frozen=True)
class LatencySurrogate:
    """Latency in the unit of its samples as a function of the scale (and of counted work, where that was better).

    ``cv_error``: relative error on samples left out. ``smooth_name``: the form behind ``smooth``.
    """

    name: str
    smooth_name: str
    cv_error: float
    candidates: tuple[LatencyCandidate, ...]
    samples: Samples
    axes: Axes
    keys: tuple[str, ...]
    form: forms.LogFitted
    smooth_form: forms.LogFitted
    inflation: float
    smooth_inflation: float
    shape: ResidualGP

    @property
    def counted(self) -> bool:
        """Whether ``predict`` does better with the features of the scales."""
        return self.form is not self.smooth_form

    def smooth(self, x: NDArray) -> NDArray:
        """(n,) latencies at (n, 3) scales; analytic, for the continuous problem."""
        return np.exp(self.smooth_form.log_value(x, None))

    def predict(
        self, scales: Sequence[Scale], features: Sequence[Mapping[str, float]] | None = None
    ) -> tuple[Array, Array]:
        """Mean and standard deviation (n,) of the latency at each scale.

        ``features`` are those named at the fit; without them the best form that needs none answers.
        By the fit alone, as if no scale had been measured itself. Raises UsageError where a scale leaves an axis that
        no sample varied.
        """
        x = points(scales)
        counted = self.counted and features is not None
        if not counted:
            self.axes.check(x, "latency")
        table = _table(features, self.keys, len(x)) if counted and features is not None else None
        mean = np.exp((self.form if counted else self.smooth_form).log_value(x, table))
        between = self.shape.spread(self.axes.unit(x))
        return mean, mean * self._inflation(counted) * np.hypot(between, _PRIOR.nugget)

    def _inflation(self, counted: bool) -> float:
        return self.inflation if counted else self.smooth_inflation

    def estimate(
        self, scales: Sequence[Scale], features: Sequence[Mapping[str, float]] | None = None
    ) -> tuple[Array, Array]:
        """As ``predict``, but of a scale that was measured its own distance to the fit is known, too.

        The fit has learnt from that sample already: what is added is the part of the distance that is the network's own
        and not the noise of measuring it. Relative, as all errors of latencies are.
        """
        x = points(scales)
        mean, _ = self.predict(scales, features)
        inflation = self._inflation(self.counted and features is not None)
        at, trust, left = _PRIOR.own(self.samples, x, inflation)
        value = self.samples.y[at]
        mean = np.where(trust == 1.0, value, mean * (value / mean) ** trust)
        between = (1.0 - trust) * inflation * self.shape.spread(self.axes.unit(x))
        return mean, mean * np.sqrt(between**2 + left)

    def measured(self, scale: Scale) -> float | None:
        """The measured latency of ``scale``, where there is one."""
        at = int(self.samples.index_of(points([scale]))[0])
        return None if at < 0 else float(self.samples.y[at])

    def interval(
        self,
        scales: Sequence[Scale],
        level: float = 0.8,
        features: Sequence[Mapping[str, float]] | None = None,
    ) -> tuple[Array, Array]:
        """Lower and upper bounds (n,) that hold the latency with probability ``level``."""
        mean, std = self.estimate(scales, features)
        reach = np.exp(float(norm.ppf(0.5 + level / 2.0)) * std / mean)
        return mean / reach, mean * reach

    def to_dict(self) -> dict[str, Any]:
        """What was chosen and against what, for JSON."""
        return {
            "form": self.name,
            "smooth_form": self.smooth_name,
            "cv_error": self.cv_error,
            "samples": len(self.samples),
            "candidates": [{"form": c.name, "cv_error": c.cv_error, "chosen": c.chosen} for c in self.candidates],
        }


def fit_latency(
    scales: Sequence[Scale],
    latencies_ms: ArrayLike,
    stds: ArrayLike | None = None,
    features: Sequence[Mapping[str, float]] | None = None,
    form: str = "auto",
) -> LatencySurrogate:
    """Fit latency (any unit, positive) to measured samples.

    ``stds`` (n,) are in the unit of the latencies. ``features`` (n mappings with the same keys, values >= 0) count the
    work at each scale: MACs, bytes, operators. Raises UsageError for bad samples or fewer than three distinct scales.
    """
    y = np.asarray(latencies_ms, dtype=float).reshape(-1)
    if np.any(y <= 0.0):
        raise UsageError(f"latency number {int(np.argmax(y <= 0.0)) + 1} is {y.min():.4g}: a latency is above zero")
    if form != "auto" and form not in forms.NAMES:
        raise UsageError(f"no latency form is called {form!r}: choose one of auto, {', '.join(forms.NAMES)}")
    log_stds = None if stds is None else np.asarray(stds, dtype=float).reshape(-1) / y
    logs = collect(scales, np.log(y), log_stds, what="latency", default_noise=SAMPLE_NOISE, minimum=3)
    merged = np.exp(logs.y)
    at = logs.index_of(points(scales))
    alone = logs.counts[at] == 1
    merged[at[alone]] = y[alone]  # not through the logarithm: a table's own figures come back unchanged
    samples = Samples(logs.x, merged, logs.noise, logs.counts)
    keys = tuple(sorted(features[0])) if features else ()
    table = _merged_table(scales, features, keys, samples) if features else None
    axes = Axes.of(samples.x)
    kinds = [kind for kind in forms.FORMS if (not kind.counted or table is not None) and form in ("auto", kind.name)]
    if not kinds:
        raise UsageError(
            f"the latency form {form!r} needs counted features of every sample: give them or choose another"
        )
    if all(kind.counted for kind in kinds):
        kinds = [kind for kind in forms.FORMS if not kind.counted] + kinds
    residuals = [_leave_out(kind, samples, table, axes) for kind in kinds]
    errors = [float(np.sqrt(np.mean(r**2))) for r in residuals]
    allowed = [i for i, kind in enumerate(kinds) if form in ("auto", kind.name)]
    best = _choose(allowed, errors)
    smooth = best if not kinds[best].counted else _choose([i for i, k in enumerate(kinds) if not k.counted], errors)
    fitted = {i: kinds[i].fit(samples, table, axes) for i in {best, smooth}}
    return LatencySurrogate(
        name=kinds[best].name,
        smooth_name=kinds[smooth].name,
        cv_error=errors[best],
        candidates=tuple(
            LatencyCandidate(k.name, e, i == best) for i, (k, e) in enumerate(zip(kinds, errors, strict=True))
        ),
        samples=samples,
        axes=axes,
        keys=keys,
        form=fitted[best],
        smooth_form=fitted[smooth],
        inflation=_PRIOR.inflation(residuals[best], samples, axes),
        smooth_inflation=_PRIOR.inflation(residuals[smooth], samples, axes),
        shape=_PRIOR.shape(samples, axes),
    )


def _choose(allowed: list[int], errors: list[float]) -> int:
    """The least error; a later form must beat the ones before it clearly."""
    best = allowed[0]
    for i in allowed[1:]:
        if errors[i] < _PREFERENCE * errors[best]:
            best = i
    return best


def _table(features: Sequence[Mapping[str, float]], keys: tuple[str, ...], rows: int) -> Array:
    if len(features) != rows:
        raise UsageError(f"{rows} scales but features of {len(features)}: give the features of every scale")
    for i, row in enumerate(features):
        missing = [key for key in keys if key not in row]
        if missing:
            raise UsageError(
                f"the features of scale number {i + 1} lack {missing[0]!r}: count the same work for every scale"
            )
    return np.array([[float(row[key]) for key in keys] for row in features], dtype=float).reshape(rows, len(keys))


def _merged_table(
    scales: Sequence[Scale], features: Sequence[Mapping[str, float]], keys: tuple[str, ...], samples: Samples
) -> Array:
    """Features (len(samples), m) in the order of the merged samples; repeats of a scale have the same."""
    table = _table(features, keys, len(scales))
    if not np.all(np.isfinite(table)) or np.any(table < 0.0):
        raise UsageError("counted features must be finite and not negative: a count of work is missing or wrong")
    out = np.zeros((len(samples), len(keys)))
    out[samples.index_of(points(scales))] = table
    return out


def _leave_out(kind: forms.LatencyForm, samples: Samples, table: Array | None, axes: Axes) -> Array:
    """Logarithmic residuals (n,) of samples left out of the fit."""
    residuals = np.empty(len(samples))
    for fold in _PRIOR.folds(samples):
        keep = np.setdiff1d(np.arange(len(samples)), fold)
        model = kind.fit(samples.without(fold), None if table is None else table[keep], axes)
        guess = model.log_value(samples.x[fold], None if table is None else table[fold])
        residuals[fold] = np.log(samples.y[fold]) - guess
    return residuals
