"""The continuous problem: the largest accuracy under smooth constraints, with multipliers and a KKT residual."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls, root

from mobileprune.scale import Scale
from mobileprune.search.samples import Array

Smooth = Callable[[NDArray], NDArray]  # (n, 3) scales to (n,) values
_ACTIVE = 1e-7  # a bound or limit this close (in unit coordinates, or relative) binds


@dataclass(frozen=True)
class Continuous:
    """A stationary point of the continuous problem.

    ``multipliers``: per constraint the gain of accuracy (a fraction) per unit of its limit. ``kkt_residual``: the
    largest violation of stationarity (relative to the gradient of the accuracy) and of the limits.
    """

    scale: Scale
    accuracy: float
    values: dict[str, float]
    multipliers: dict[str, float]
    kkt_residual: float


@dataclass(frozen=True)
class Limit:
    """``smooth(x) <= limit``, limit > 0, for the continuous problem."""

    name: str
    limit: float
    smooth: Smooth


class _Problem:
    """The problem in coordinates z in [0, 1]^m: the logarithms of the axes that have room, scaled to the box."""

    def __init__(self, accuracy: Smooth, limits: Sequence[Limit], low: Array) -> None:
        self.accuracy, self.limits, self.low = accuracy, limits, low
        self.free = np.flatnonzero(low < 1.0)
        self.log_low = np.log(low[self.free])
        self.unit = 1.0

    @property
    def size(self) -> int:
        return len(self.free)

    def scales(self, z: NDArray) -> NDArray:
        x = np.ones((len(z), 3), dtype=z.dtype)
        x[:, self.free] = np.exp(self.log_low * (1.0 - z))
        return x

    def objective(self, z: NDArray) -> NDArray:
        return self.accuracy(self.scales(z)) / self.unit

    def excess(self, j: int, z: NDArray) -> NDArray:
        """log(value / limit): at most zero where the limit holds."""
        return np.log(self.limits[j].smooth(self.scales(z)) / self.limits[j].limit)

    def gradient(self, f: Callable[[NDArray], NDArray], z: Array) -> Array:
        """Gradient of ``f`` at ``z`` by complex steps; central differences where ``f`` takes no complex numbers."""
        try:
            stepped = z[None, :] + 1e-30j * np.eye(self.size)
            values = f(stepped)
            if np.iscomplexobj(values):
                return np.asarray(np.imag(values) / 1e-30, dtype=float)
        except (TypeError, np.exceptions.ComplexWarning):
            pass
        step = 1e-5 * np.eye(self.size)
        return np.asarray((f(z + step) - f(z - step)) / 2e-5, dtype=float)

    def slopes(self, z: Array) -> tuple[Array, Array]:
        """Gradients of the objective (m,) and of the constraints (k, m)."""
        rows = [self.gradient(lambda p, j=j: self.excess(j, p), z) for j in range(len(self.limits))]  # type: ignore[misc]
        return self.gradient(self.objective, z), np.array(rows).reshape(len(self.limits), self.size)


def maximise(
    accuracy: Smooth, limits: Sequence[Limit], low: Sequence[float], starts: Sequence[Scale] = ()
) -> Continuous | None:
    """The best point of the box [low, 1]^3 that keeps all limits; None where no start leads to a feasible one.

    SLSQP from ``starts`` and from points spread over the box, then Newton steps on the KKT system of the active set.
    """
    problem = _Problem(accuracy, limits, np.asarray(low, dtype=float))
    if problem.size == 0:
        x = np.ones((1, 3))
        feasible = all(float(limit.smooth(x)[0]) <= limit.limit * (1 + _ACTIVE) for limit in limits)
        return _describe(problem, np.zeros(0), *_multipliers(problem, np.zeros(0))) if feasible else None
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=problem.size)))
    heights = problem.objective(corners)
    problem.unit = max(float(np.ptp(heights)), 1e-12)
    best: Array | None = None
    for z in _starts(problem, starts):
        found = _slsqp(problem, z)
        if found is not None and (best is None or _better(problem, found, best)):
            best = found
    if best is None:
        return None
    polished = _polish(problem, best)
    return _describe(problem, polished, *_multipliers(problem, polished))


def _better(problem: _Problem, a: Array, b: Array) -> bool:
    return float(problem.objective(a[None])[0]) > float(problem.objective(b[None])[0]) + 1e-12


def _starts(problem: _Problem, starts: Sequence[Scale]) -> list[Array]:
    """The given scales, and where the diagonal and the edges from the base meet the tightest limit."""
    given = [np.array(s.as_tuple())[problem.free] for s in starts]
    out = [np.clip(1.0 - np.log(x) / problem.log_low, 0.0, 1.0) for x in given]
    directions = [np.ones(problem.size), *np.eye(problem.size)]
    for direction in directions:
        steps = np.linspace(0.0, 1.0, 33)
        line = 1.0 - steps[:, None] * direction[None, :]
        excess = np.max([problem.excess(j, line) for j in range(len(problem.limits))], axis=0, initial=-np.inf)
        inside = np.flatnonzero(excess <= 0.0)
        out.append(line[inside[0]] if len(inside) else line[-1])
    return out


def _slsqp(problem: _Problem, z: Array) -> Array | None:
    constraints: list[Any] = [
        {
            "type": "ineq",
            "fun": lambda p, j=j: -float(problem.excess(j, p[None])[0]),
            "jac": lambda p, j=j: -problem.gradient(lambda q: problem.excess(j, q), p),
        }
        for j in range(len(problem.limits))
    ]
    options: Any = {"maxiter": 60, "ftol": 1e-12}

    def loss(p: Array) -> float:
        return -float(problem.objective(p[None])[0])

    def slope(p: Array) -> Array:
        return -problem.gradient(problem.objective, p)

    box = [(0.0, 1.0)] * problem.size
    result = minimize(loss, z, jac=slope, bounds=box, constraints=constraints, method="SLSQP", options=options)
    found = np.clip(result.x, 0.0, 1.0)
    if not np.all(np.isfinite(found)):
        return None
    excess = [float(problem.excess(j, found[None])[0]) for j in range(len(problem.limits))]
    return found if max(excess, default=-1.0) <= 1e-6 else None


def _multipliers(problem: _Problem, z: Array) -> tuple[Array, float]:
    """Multipliers >= 0 (k,) of the limits in log units that fit stationarity best, and the KKT residual."""
    height, rows = problem.slopes(z) if problem.size else (np.zeros(0), np.zeros((len(problem.limits), 0)))
    excess = np.array([float(problem.excess(j, z[None])[0]) for j in range(len(problem.limits))])
    active = np.flatnonzero(excess > -_ACTIVE)
    upper, lower = np.flatnonzero(z > 1.0 - _ACTIVE), np.flatnonzero(z < _ACTIVE)
    unit = np.eye(problem.size)
    normals = np.vstack([rows[active], unit[upper], -unit[lower]])
    out = np.zeros(len(problem.limits))
    missing = 0.0
    if problem.size:
        if len(normals):
            found, _ = nnls(normals.T, height, maxiter=300)
            out[active] = found[: len(active)]
            height = height - normals.T @ found
        missing = float(np.abs(height).max()) / max(float(np.abs(problem.slopes(z)[0]).max()), 1e-9)
    return out, max(missing, float(np.maximum(excess, 0.0).max(initial=0.0)))


def _polish(problem: _Problem, z: Array) -> Array:
    """Newton on stationarity and active limits, bounds held; kept only where it lowers the KKT residual."""
    multipliers, residual = _multipliers(problem, z)
    if residual < 1e-10:
        return z
    active = np.flatnonzero(multipliers > 0.0)
    inner = np.flatnonzero((z > 1e-6) & (z < 1.0 - 1e-6))
    snapped = np.where(z <= 1e-6, 0.0, np.where(z >= 1.0 - 1e-6, 1.0, z))

    def equations(v: Array) -> Array:
        point = snapped.copy()
        point[inner] = v[: len(inner)]
        height, rows = problem.slopes(point)
        pull = height[inner] - rows[active][:, inner].T @ v[len(inner) :]
        return np.append(pull, [float(problem.excess(int(j), point[None])[0]) for j in active])

    if len(inner) == 0 or len(active) > len(inner):
        options = [snapped]
    else:
        solved = root(equations, np.append(snapped[inner], multipliers[active]), options={"xtol": 1e-14})
        moved = snapped.copy()
        moved[inner] = solved.x[: len(inner)]
        options = [snapped, moved] if np.all(np.abs(moved - z) < 0.05) else [snapped]
    for option in options:
        if np.all((option >= 0.0) & (option <= 1.0)) and _multipliers(problem, option)[1] < residual:
            z, residual = option, _multipliers(problem, option)[1]
    return z


def _describe(problem: _Problem, z: Array, multipliers: Array, residual: float) -> Continuous:
    x = problem.scales(z[None])
    values = {limit.name: float(limit.smooth(x)[0]) for limit in problem.limits}
    prices = {
        limit.name: float(m) * problem.unit / limit.limit for limit, m in zip(problem.limits, multipliers, strict=True)
    }
    scale = Scale(*(float(min(v, 1.0)) for v in x[0]))
    return Continuous(scale, float(problem.accuracy(x)[0]), values, prices, residual)
