"""Which scales to probe: a few that see every axis and their mixes, then those that most improve the decision."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.samples import Array, Samples, points
from mobileprune.search.solver import Accuracy, Constraint, Field, survey

THRESHOLD = 0.0003  # an expected gain of 0.03 points is not worth another probe
_CONTENDERS = 160  # candidates that a probe's gain is computed for
# Probes beyond and before the budget, as powers of it. Single axes and pairs go beyond: they teach a slope, which
# a long step shows better against the noise of a probe (0.13 to 0.09 points of regret on simulated noisy surfaces).
_BEYOND, _DEEP, _HALF = 1.5, 1.6, 0.5
_TILT = 0.6


class Belief(Accuracy, Protocol):
    """What is believed of the accuracies of all scales together; AccuracySurrogate and ResultAccuracy are such."""

    @property
    def noise(self) -> float: ...
    @property
    def samples(self) -> Samples: ...
    def covariance(self, x: Array) -> Array: ...


Gain = Callable[[Sequence[Scale]], Array]  # what results (n,) at scales gain by beginning with probes of their own
Cost = Callable[[Sequence[Scale]], Array]  # relative or absolute cost (n,) of scales; the base must be among its domain


def parent_of(scale: Scale, done: Iterable[Scale]) -> Scale:
    """The nearest scale of ``done`` (the base counts as done) that is at least ``scale`` in every dimension.

    Near means the least sum of logarithmic steps: the least is cut from its weights.
    """
    return parents_of([scale], done)[0]


def parents_of(scales: Sequence[Scale], done: Iterable[Scale]) -> list[Scale]:
    """The parent of each of ``scales``, all at once: see ``parent_of``."""
    ancestors = sorted({*done, BASE})
    target, place = points(scales)[:, None, :], points(ancestors)[None, :, :]
    steps = np.log(place) - np.log(target)
    fit = (steps >= -1e-9).all(axis=2) & (place != target).any(axis=2)
    far = np.where(fit, steps.sum(axis=2), np.inf)
    nearest = far.argmin(axis=1)  # of several as near the first, which is the smallest
    return [ancestors[i] if np.isfinite(row[i]) else BASE for i, row in zip(nearest, far, strict=True)]


def initial_probes(
    lattice: Lattice, n: int, cost: Cost | None = None, budget: float | None = None, loss: Cost | None = None
) -> list[Scale]:
    """Up to ``n`` distinct scales of ``lattice`` to probe first, ancestors before descendants, without the base.

    With ``cost`` (predicted, any unit) and ``budget`` (a share of the base's cost) the probes lie around the scales
    that just keep the budget: all axes together, each alone, deeper and shallower, then pairs. With ``loss`` (of each
    scale before training, any unit), too, each of these is the scale of the least loss that varies its axes and keeps
    its share of the budget, so that most of what is probed is near to what will be chosen. Without a budget they are
    the corners and middles of the lattice. A lattice of fewer scales gives all of them.
    """
    low = _corner(lattice, cost, budget)
    active = [i for i in range(3) if low[i] < 0.0]
    chosen: list[Scale] = []
    design = _corners(active) if cost is None or budget is None else _around(active)
    for weights, power in design:
        if len(chosen) >= n:
            break
        direction = np.zeros(3)
        direction[active] = weights
        if cost is None or budget is None:
            scale = _along(lattice, direction * low)
        elif loss is None:
            scale = _along(lattice, direction * low * _reach(lattice, cost, budget**power, direction * low))
        else:
            scale = _least_lossy([s for s in lattice if s not in chosen], direction, cost, budget**power, loss)
        if scale != BASE and scale not in chosen:
            chosen.append(scale)
    spare = sorted((s for s in lattice if s != BASE and s not in chosen), key=lambda s: _remoteness(s, chosen, low))
    while len(chosen) < n and spare:
        chosen.append(spare.pop())
        spare.sort(key=lambda s: _remoteness(s, chosen, low))
    return sorted(chosen, key=lambda s: (-s.nominal_cost, s))


def _axes(lattice: Lattice) -> tuple[tuple[float, ...], ...]:
    return (lattice.depths, lattice.widths, lattice.resolutions)


def _corner(lattice: Lattice, cost: Cost | None, budget: float | None) -> Array:
    """Per axis the logarithm of the smallest share worth a probe: where this axis alone keeps the budget."""
    low = np.log([axis[0] for axis in _axes(lattice)])
    if cost is None or budget is None:
        return low
    base = float(np.asarray(cost([BASE]))[0])
    for i, axis in enumerate(_axes(lattice)):
        line = [Scale(*(value if k == i else 1.0 for k in range(3))) for value in axis]
        inside = np.flatnonzero(np.asarray(cost(line)) <= budget * base)
        if len(inside):
            low[i] = np.log(axis[int(inside[-1])])
    return low


def _along(lattice: Lattice, logs: Array) -> Scale:
    """The scale of ``lattice`` nearest to these logarithms of shares."""
    return lattice.nearest(Scale(*np.exp(np.clip(logs, np.log(lattice.smallest.as_tuple()), 0.0))))


def _least_lossy(scales: Sequence[Scale], direction: Array, cost: Cost, budget: float, loss: Cost) -> Scale:
    """Of the scales that vary no axis of weight 0 and take at most ``budget`` times the base's cost that of the least
    loss; the cheapest where none takes so little; the base where no other varies so few axes."""
    within = [s for s in scales if all(d > 0 or v == 1.0 for d, v in zip(direction, s.as_tuple(), strict=True))]
    if not within:
        return BASE
    costs = np.asarray(cost([BASE, *within]), dtype=float)
    inside = np.flatnonzero(costs[1:] <= budget * costs[0])
    if not len(inside):
        return within[int(costs[1:].argmin())]
    losses = np.asarray(loss([within[i] for i in inside]), dtype=float)
    return within[int(inside[np.lexsort((-costs[1:][inside], losses))[0]])]


def _reach(lattice: Lattice, cost: Cost, budget: float, direction: Array) -> float:
    """How far along ``direction`` (logarithms) the cost falls to ``budget`` times the base's, within the lattice."""
    steps = np.linspace(0.0, 4.0, 81)
    floor = np.log(lattice.smallest.as_tuple())
    line = [Scale(*np.exp(np.clip(direction * t, floor, 0.0))) for t in steps]
    values = np.asarray(cost([lattice.nearest(s) for s in [BASE, *line]]), dtype=float)
    inside = np.flatnonzero(values[1:] <= budget * values[0])
    return float(steps[inside[0]]) if len(inside) else float(steps[-1])


Design = list[tuple[Array, float]]


def _around(active: Sequence[int]) -> Design:
    """Directions (weights per active axis) and powers of the budget, the most telling first.

    All axes together are probed before, at and beyond the budget, so that each of the three starts from the last one's
    weights: the iterative pruning of arXiv 2010.04879.
    """
    m = len(active)
    unit, ones = np.eye(m), np.ones(m)
    pairs = [unit[i] + unit[j] for i, j in ((0, 2), (0, 1), (1, 2))] if m > 2 else []
    tilted = [ones + _TILT * (2.0 * u - 1.0) for u in unit] if m > 1 else []
    out: Design = [(ones, 1.0), *((u, _BEYOND) for u in unit)]
    out += [(ones, _DEEP), (ones, _HALF)]
    out += [*((p, _BEYOND) for p in pairs), *((t, 1.0) for t in tilted)]
    return out if m else []


def _corners(active: Sequence[int]) -> Design:
    """Ends of every axis, the far corner, then middles and mixes (weights of the lattice's logarithmic extent)."""
    m = len(active)
    unit, ones = np.eye(m), np.ones(m)
    pairs = [unit[i] + unit[j] for i, j in itertools.combinations(range(m), 2)] if m > 2 else []
    ends = [*unit, ones] if m > 1 else [ones]
    middles = [0.5 * ones, *(0.5 * u for u in unit)] if m > 1 else [0.5 * ones]
    mixes = [ones - 0.5 * u for u in unit] if m > 1 else [0.75 * ones, 0.25 * ones]
    return (
        [(v, 1.0) for v in [*ends, *middles[:1], *(0.75 * p for p in pairs), *middles[1:], *mixes, *pairs]] if m else []
    )


def _remoteness(scale: Scale, chosen: Sequence[Scale], low: Array) -> tuple[float, Scale]:
    """Distance to the nearest chosen scale (or the base), within the region first."""
    size = np.where(low < 0.0, -low, 1.0)
    away = [float(np.abs((np.log(scale.as_tuple()) - np.log(c.as_tuple())) / size).sum()) for c in [*chosen, BASE]]
    outside = float(np.maximum((low - np.log(scale.as_tuple())) / size, 0.0).sum())
    return (min(away) - 2.0 * outside, scale)


def next_probe(
    accuracy: Belief,
    constraints: Sequence[Constraint],
    candidates: Sequence[Scale] | Lattice,
    done: Iterable[Scale] = (),
    confidence: float = 0.5,
    threshold: float = THRESHOLD,
    gain: Gain | None = None,
    last: bool = False,
) -> Scale | None:
    """The candidate whose probe promises the largest gain of the decision, or None below ``threshold`` (a fraction).

    The gain is the knowledge gradient: the expected best accuracy after the probe less the best expected now, over the
    candidates that keep the limits, for a Gaussian belief around the surrogate. ``done`` scales are not probed again.
    gain: what a probe adds to the accuracy at its own scale, whatever it tells.
    last: no other probe can follow, so that it is of the choice, where that was not probed.
    """
    best = rate_probes(accuracy, survey(accuracy, constraints, candidates), done, confidence, gain, last)
    return best[0] if best is not None and best[1] >= threshold else None


def rate_probes(
    accuracy: Belief,
    field: Field,
    done: Iterable[Scale] = (),
    confidence: float = 0.5,
    gain: Gain | None = None,
    last: bool = False,
) -> tuple[Scale, float] | None:
    """The best next probe and its expected gain (a fraction); None where no feasible candidate is left to probe.

    gain, last: see ``next_probe``.
    """
    known = set(done) | {Scale(*row) for row in accuracy.samples.x}
    ranking = field.ranking()
    optimistic = field.mean + 3.0 * field.std
    kept = [int(i) for i in ranking if field.joint[i] >= confidence - 1e-12]
    if not kept:
        return None
    # The choice itself comes first: of probes that promise equally little, the one that verifies it is taken.
    contenders = [kept[0], *sorted(kept[1:], key=lambda i: (-optimistic[i], i))][:_CONTENDERS]
    own = gain([field.scales[i] for i in contenders]) if gain else np.zeros(len(contenders))
    gains = _knowledge_gradient(accuracy, field, contenders, own)
    open_ = [k for k, i in enumerate(contenders) if field.scales[i] not in known]
    if not open_:
        return None
    if last and open_[0] == 0:
        return field.scales[contenders[0]], float(gains[0])
    k = max(open_, key=lambda k: (round(float(gains[k]), 9), -k))
    return field.scales[contenders[k]], float(gains[k])


def _knowledge_gradient(accuracy: Belief, field: Field, contenders: Sequence[int], own: Array) -> Array:
    """Expected gain (n,) of probing each contender, by Gauss-Hermite quadrature over the probe's outcome.

    own (n,): by what each one's probe raises its own accuracy.
    """
    x = points([field.scales[i] for i in contenders])
    mean = field.mean[list(contenders)]
    covariance = accuracy.covariance(x)
    outcome = np.sqrt(np.maximum(np.diag(covariance) + accuracy.noise**2, 1e-24))  # 0 of a scale known exactly
    shift = covariance / outcome[None, :]  # column k: how all means move when the probe of k comes out one sigma high
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    weights = weights / weights.sum()
    best = np.stack([(mean[:, None] + shift * node + np.diag(own)).max(axis=0) for node in nodes])
    return weights @ best - mean.max()
