"""Optima in closed form, against which the continuous solver is held."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobileprune.search.samples import Array


def power_optimum(gains: Sequence[float], costs: Sequence[float], log_budget: float, log_low: Sequence[float]) -> Array:
    """The scale that maximises prod x_i^gains_i under sum costs_i log x_i <= log_budget, log_low_i <= log x_i <= 0.

    In logarithms both sides are linear: axes are cut in the order of the least gain lost per cost saved.
    """
    z = np.zeros(len(gains))
    need = -log_budget
    for i in sorted(range(len(gains)), key=lambda i: gains[i] / costs[i]):
        z[i] = -min(max(need / costs[i], 0.0), -log_low[i])
        need += costs[i] * z[i]
    return np.exp(z)


def saturating_optimum(
    losses: Sequence[float], powers: Sequence[float], costs: Sequence[float], log_budget: float
) -> Array:
    """The scale that minimises sum b_i x_i^-p_i under sum c_i log x_i = log_budget, in closed form (no bounds).

    Stationarity b_i p_i x_i^-p_i = m c_i gives log x_i = log(b_i p_i / (m c_i)) / p_i, linear in log m.
    """
    b, p, c = (np.asarray(v, dtype=float) for v in (losses, powers, costs))
    own = np.log(b * p / c) / p
    log_multiplier = (np.sum(c * own) - log_budget) / np.sum(c / p)
    return np.exp(own - log_multiplier / p)
