"""The best realisable scale under several constraints, what each limit is worth, and the whole frontier."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mobileprune.errors import UsageError
from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.continuous import Continuous, Limit, Smooth, maximise
from mobileprune.search.latency import LatencySurrogate
from mobileprune.search.latency_forms import Monomials
from mobileprune.search.samples import Array, Samples, points

Predict = Callable[[Sequence[Scale]], tuple[Any, Any]]
FRONTIER = 100
DEFAULT_CONFIDENCE = (
    0.8  # under 2 % of the budgets are then missed by over 5 % on published grids (results/replay_search)
)
_LEVEL = 0.8  # of every interval that is reported


class Accuracy(Protocol):
    """What the solver needs of an accuracy surrogate; AccuracySurrogate is one."""

    def estimate(self, scales: Sequence[Scale]) -> tuple[Array, Array]: ...
    def smooth(self, x: NDArray) -> NDArray: ...


class Indifferent:
    """An accuracy surrogate that knows nothing: for asking only what is feasible."""

    def estimate(self, scales: Sequence[Scale]) -> tuple[Array, Array]:
        return np.zeros(len(scales)), np.zeros(len(scales))

    def smooth(self, x: NDArray) -> NDArray:
        return np.zeros(len(x))


@dataclass(frozen=True)
class Constraint:
    """``predict(scale) <= limit``.

    ``predict``: scales to (mean, std), std 0 where the value is counted. ``smooth``: (n, 3) scales to (n,) values for
    the continuous problem; where it is None it is fitted to the values of the candidates.
    ``margin``: the share of what was asked for that ``limit`` leaves free.
    """

    name: str
    limit: float
    unit: str
    predict: Predict
    smooth: Smooth | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.limit) and self.limit > 0.0):
            raise UsageError(f"the limit of {self.name} is {self.limit}: give a number above zero")

    def asked(self, value: float) -> str:
        """The limit that must be asked for so that ``value`` is allowed, in words."""
        return _amount(value / (1.0 - self.margin), self.unit)


def latency_constraint(
    name: str,
    limit: float,
    surrogate: LatencySurrogate,
    features: Callable[[Scale], Mapping[str, float]] | None = None,
    unit: str = "ms",
) -> Constraint:
    """A limit on a fitted latency; ``features`` counts the work of a scale for surrogates that use it."""

    def predict(scales: Sequence[Scale]) -> tuple[Array, Array]:
        counted = [features(s) for s in scales] if features is not None and surrogate.counted else None
        return surrogate.estimate(scales, counted)

    return Constraint(name, limit, unit, predict, surrogate.smooth)


def counted_constraint(name: str, limit: float, unit: str, count: Callable[[Scale], float]) -> Constraint:
    """A limit on something exactly known of every realisable scale: MACs, parameters, bytes."""

    def predict(scales: Sequence[Scale]) -> tuple[Array, Array]:
        return np.array([float(count(s)) for s in scales]), np.zeros(len(scales))

    return Constraint(name, limit, unit, predict)


@dataclass(frozen=True)
class Estimate:
    """A predicted value and the bounds that hold it with probability 0.8."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Kept:
    """One constraint at the chosen scale; ``probability`` that its limit is kept."""

    name: str
    unit: str
    limit: float
    value: Estimate
    probability: float

    def to_dict(self) -> dict[str, Any]:
        out = {"unit": self.unit, "limit": self.limit, "probability": self.probability}
        return {**out, **self.value.to_dict()}


@dataclass(frozen=True)
class FrontierPoint:
    """The best scale for one value of the first limit, the other limits unchanged."""

    limit: float
    scale: Scale
    accuracy: Estimate
    value: float

    def to_dict(self) -> dict[str, Any]:
        return {"limit": self.limit, "scale": self.scale.as_tuple(), "value": self.value, **self.accuracy.to_dict()}


@dataclass(frozen=True)
class Solution:
    """The best candidate, and the continuous optimum it was rounded from (None where the smooth problem has none)."""

    scale: Scale
    accuracy: Estimate
    constraints: dict[str, Kept]
    continuous: Continuous | None
    prices: tuple[str, ...]
    frontier: tuple[FrontierPoint, ...]
    base_suffices: bool
    confidence: float
    feasible: int
    candidates: int

    def to_dict(self) -> dict[str, Any]:
        c = self.continuous
        return {
            "scale": dict(zip(("depth", "width", "resolution"), self.scale.as_tuple(), strict=True)),
            "accuracy": self.accuracy.to_dict(),
            "constraints": {name: kept.to_dict() for name, kept in self.constraints.items()},
            "continuous": None
            if c is None
            else {"scale": c.scale.as_tuple(), "accuracy": c.accuracy, "values": c.values},
            "multipliers": {} if c is None else c.multipliers,
            "kkt_residual": None if c is None else c.kkt_residual,
            "prices": list(self.prices),
            "base_suffices": self.base_suffices,
            "confidence": self.confidence,
            "feasible": self.feasible,
            "candidates": self.candidates,
            "frontier": [point.to_dict() for point in self.frontier],
        }


@dataclass(frozen=True)
class Field:
    """All candidates with what is predicted of them: accuracy (n,), and value, std and probability (k, n) per limit."""

    scales: tuple[Scale, ...]
    mean: Array
    std: Array
    values: Array
    value_stds: Array
    probabilities: Array

    @property
    def joint(self) -> Array:
        """The probability (n,) that all limits are kept, their errors taken as independent."""
        return self.probabilities.prod(axis=0) if len(self.probabilities) else np.ones(len(self.scales))

    def part(self, which: NDArray[np.bool_]) -> Field:
        """The candidates at which ``which`` (n,) is true."""
        scales = tuple(s for s, wanted in zip(self.scales, which, strict=True) if wanted)
        limits = (self.values[:, which], self.value_stds[:, which], self.probabilities[:, which])
        return Field(scales, self.mean[which], self.std[which], *limits)

    def ranking(self) -> NDArray[np.int64]:
        """Candidates from the best on: by accuracy, ties to the cheaper, then to the larger scale."""
        cost = self.values[0] if len(self.values) else np.zeros(len(self.scales))
        x = points(self.scales)
        return np.lexsort((-x[:, 2], -x[:, 1], -x[:, 0], cost, -self.mean))


def survey(accuracy: Accuracy, constraints: Sequence[Constraint], candidates: Sequence[Scale] | Lattice) -> Field:
    """Predict accuracy and every constrained value at all distinct candidates."""
    scales = tuple(sorted(set(candidates)))
    if not scales:
        raise UsageError("there is no candidate scale to choose from: give a lattice or a table with at least one")
    names = [c.name for c in constraints]
    if len(set(names)) < len(names):
        raise UsageError(f"two limits have the name {max(names, key=names.count)!r}: give each its own")
    mean, std = accuracy.estimate(scales)
    predicted = [_checked(c, scales) for c in constraints]
    values = np.array([m for m, _ in predicted]).reshape(len(constraints), len(scales))
    stds = np.array([s for _, s in predicted]).reshape(len(constraints), len(scales))
    limits = np.array([[c.limit] for c in constraints]).reshape(len(constraints), 1)
    return Field(scales, mean, std, values, stds, _probability(values, stds, limits))


def _checked(constraint: Constraint, scales: Sequence[Scale]) -> tuple[Array, Array]:
    mean, std = (np.asarray(v, dtype=float).reshape(-1) for v in constraint.predict(scales))
    if not (len(mean) == len(std) == len(scales) and np.all(np.isfinite(mean)) and np.all(np.isfinite(std))):
        raise ValueError(f"{constraint.name} must predict a finite mean and std for each of {len(scales)} scales")
    return mean, std


def _probability(values: Array, stds: Array, limits: Array) -> Array:
    """P(value <= limit); a value known exactly keeps its limit up to rounding or not at all."""
    exact = (values <= limits * (1.0 + 1e-9)).astype(float)
    return np.where(stds > 0.0, norm.cdf((limits - values) / np.where(stds > 0.0, stds, 1.0)), exact)


def solve(
    accuracy: Accuracy,
    constraints: Sequence[Constraint],
    candidates: Sequence[Scale] | Lattice,
    confidence: float = 0.5,
    frontier: int = FRONTIER,
    continuous: bool = True,
    among: Collection[Scale] | None = None,
) -> Solution:
    """The candidate of largest predicted accuracy that keeps all limits with probability ``confidence``.

    Give probed scales among the candidates, so that no feasible probe beats the result. The base, where it is a
    candidate and keeps every limit, is the answer (``base_suffices``). The frontier runs along the first constraint.
    among: where given the only scales that may be chosen; the frontier is of all candidates in any case.
    Raises UsageError where no candidate keeps the limits, with the smallest value that can be reached.
    """
    field = survey(accuracy, constraints, candidates)
    return solve_surveyed(accuracy, constraints, field, confidence, frontier, continuous, among)


def solve_surveyed(
    accuracy: Accuracy,
    constraints: Sequence[Constraint],
    field: Field,
    confidence: float = 0.5,
    frontier: int = FRONTIER,
    continuous: bool = True,
    among: Collection[Scale] | None = None,
) -> Solution:
    """``solve`` where the candidates have been surveyed already."""
    if not 0.0 < confidence < 1.0:
        raise UsageError(
            f"the confidence {confidence} is not between 0 and 1: 0.9 keeps the budget in nine of ten cases"
        )
    allowed = np.array([among is None or scale in among for scale in field.scales])
    kept = allowed & (field.joint >= confidence - 1e-12)
    if not kept.any():
        raise UsageError(_unreachable(field.part(allowed) if allowed.any() else field, constraints, confidence))
    ranking = field.ranking()
    best = int(ranking[np.argmax(kept[ranking])])
    suffices = BASE in field.scales and bool(kept[field.scales.index(BASE)])
    if suffices:
        best = field.scales.index(BASE)
    optimum = _continuous(accuracy, constraints, field, field.scales[best], confidence) if continuous else None
    return Solution(
        scale=field.scales[best],
        accuracy=_accuracy_at(field, best),
        constraints={c.name: _kept_at(field, j, best, c) for j, c in enumerate(constraints)},
        continuous=optimum,
        prices=() if optimum is None else prices(optimum, constraints),
        frontier=trace(field, constraints, confidence, frontier),
        base_suffices=suffices,
        confidence=confidence,
        feasible=int(kept.sum()),
        candidates=len(field.scales),
    )


def _accuracy_at(field: Field, i: int) -> Estimate:
    reach = float(norm.ppf(0.5 + _LEVEL / 2.0)) * float(field.std[i])
    mean = float(field.mean[i])
    return Estimate(mean, max(mean - reach, 0.0), min(mean + reach, 1.0))


def _kept_at(field: Field, j: int, i: int, constraint: Constraint) -> Kept:
    mean, std = float(field.values[j, i]), float(field.value_stds[j, i])
    reach = float(norm.ppf(0.5 + _LEVEL / 2.0)) * std
    value = Estimate(mean, max(mean - reach, 0.0), mean + reach)
    return Kept(constraint.name, constraint.unit, constraint.limit, value, float(field.probabilities[j, i]))


def _unreachable(field: Field, constraints: Sequence[Constraint], confidence: float) -> str:
    """Why nothing is feasible: the limit that cannot be kept and the smallest reachable value."""
    for j, c in enumerate(constraints):
        if field.probabilities[j].max() >= confidence - 1e-12:
            continue
        need = field.values[j] + float(norm.ppf(confidence)) * field.value_stds[j]
        i = int(need.argmin())
        with_confidence = (
            f" with confidence {confidence:.3g}" if field.value_stds[j, i] > 0.0 and confidence != 0.5 else ""
        )
        spared = f" less the {100 * c.margin:.3g} % that are left free" if c.margin else ""
        return (
            f"no scale keeps {c.name} within {c.asked(c.limit)}{spared}: the smallest reachable{with_confidence} is "
            f"{_amount(float(need[i]), c.unit)} at {field.scales[i]}; raise the budget to at least "
            f"{c.asked(float(need[i])) if c.margin else 'that'}"
        )
    names = ", ".join(f"{c.name} {c.asked(c.limit)}" for c in constraints)
    i = int(field.joint.argmax())
    values = ", ".join(f"{c.name} {_amount(float(field.values[j, i]), c.unit)}" for j, c in enumerate(constraints))
    return (
        f"each limit can be kept alone but no scale keeps all of them ({names}) with confidence {confidence:.3g}: "
        f"the nearest is {field.scales[i]} with {values}; raise one of the budgets"
    )


def _amount(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def _continuous(
    accuracy: Accuracy, constraints: Sequence[Constraint], field: Field, best: Scale, confidence: float
) -> Continuous | None:
    """The continuous optimum in the bounding box of the candidates.

    Confidence tightens a limit by the relative uncertainty at the chosen scale; multipliers are of the limits given.
    """
    x = points(field.scales)
    i = field.scales.index(best)
    limits, tightened = [], {}
    for j, c in enumerate(constraints):
        error = float(norm.ppf(confidence)) * float(field.value_stds[j, i]) / max(float(field.values[j, i]), 1e-300)
        smooth = c.smooth if c.smooth is not None else smooth_of(field.scales, field.values[j])
        tightened[c.name] = 1.0 / max(1.0 + error, 1e-3)
        limits.append(Limit(c.name, c.limit * tightened[c.name], smooth))
    found = maximise(accuracy.smooth, limits, [float(v) for v in x.min(axis=0)], [best])
    if found is None:
        return None
    return replace(found, multipliers={name: m * tightened[name] for name, m in found.multipliers.items()})


def smooth_of(scales: Sequence[Scale], values: Array) -> Smooth:
    """A smooth ascending function fitted to values counted at scales (a thinned sample of them)."""
    positive = np.flatnonzero(values > 0.0)
    chosen = positive[:: max(1, len(positive) // 300)]
    x = points([scales[i] for i in chosen])
    samples = Samples(x, values[chosen], np.zeros(len(chosen)), np.ones(len(chosen), dtype=np.int64))
    fitted = Monomials.fit(samples, None)
    return lambda point: np.exp(fitted.log_value(point, None))


def prices(optimum: Continuous, constraints: Sequence[Constraint]) -> tuple[str, ...]:
    """What each limit is worth at the optimum, in words."""
    out = []
    for c in constraints:
        worth = optimum.multipliers.get(c.name, 0.0) * 100.0
        step = _step(c.limit)
        if worth * step < 5e-4:
            out.append(f"the {c.name} limit ({_amount(c.limit, c.unit)}) does not bind")
        else:
            more = f"one more {c.unit}" if step == 1.0 else f"{step:g} more {c.unit}"
            out.append(f"{more} on {c.name} is worth {worth * step:.2g} points")
    return tuple(out)


def _step(limit: float) -> float:
    """A round step of which the limit holds five or more, so that its price is read as a small change."""
    return 1.0 if 5.0 <= limit < 500.0 else float(10.0 ** np.floor(np.log10(limit / 5.0)))


def trace(
    field: Field, constraints: Sequence[Constraint], confidence: float, count: int = FRONTIER
) -> tuple[FrontierPoint, ...]:
    """The best scale at ``count`` values of the first limit, from the smallest reachable to where more is useless."""
    if not constraints or count < 1:
        return ()
    others = field.probabilities[1:].prod(axis=0)
    open_ = np.flatnonzero(others >= confidence - 1e-12)
    if len(open_) == 0:
        return ()
    level = np.clip(confidence / np.maximum(others[open_], 1e-12), 1e-9, 1.0 - 1e-9)
    need = field.values[0, open_] + norm.ppf(level) * field.value_stds[0, open_]
    order = np.lexsort((need, -field.mean[open_]))
    rank = np.empty(len(open_), dtype=int)
    rank[order] = np.arange(len(open_))
    low, high = float(need.min()), float(need[order[0]])
    limits = np.geomspace(low, high, count) if high > low * (1 + 1e-9) and low > 0 else np.array([low])
    out = []
    for limit in limits:
        inside = np.flatnonzero(need <= limit * (1.0 + 1e-9))
        i = int(open_[inside[rank[inside].argmin()]])
        out.append(FrontierPoint(float(limit), field.scales[i], _accuracy_at(field, i), float(field.values[0, i])))
    return tuple(out)
