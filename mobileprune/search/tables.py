"""The search on anyone's tables: accuracies and latencies of a network's scales in, the best scale per budget out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.budget import Budget
from mobileprune.errors import UsageError
from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import AccuracySurrogate, fit_accuracy
from mobileprune.search.csv_tables import Row, Table, Units, read_table, units_of
from mobileprune.search.latency import LatencySurrogate, fit_latency
from mobileprune.search.probes import THRESHOLD, rate_probes
from mobileprune.search.solver import (
    DEFAULT_CONFIDENCE,
    Constraint,
    Estimate,
    Solution,
    latency_constraint,
    solve_surveyed,
    survey,
)

CHOOSE_FROM = ("latency", "space")
_SPACE = 4000  # about how many scales the space between the samples is cut into


@dataclass(frozen=True)
class _Problem:
    """Both tables fitted: one accuracy surrogate, a latency surrogate per device, and how the tables write a scale."""

    accuracy: AccuracySurrogate
    latency: dict[str, LatencySurrogate]
    measured: tuple[Scale, ...]
    probed: tuple[Scale, ...]
    units: Units
    perfect: float


def solve_tables(
    accuracy_csv: str | Path,
    latency_csv: str | Path,
    budgets: Sequence[str],
    *,
    choose_from: str = "latency",
    confidence: float = DEFAULT_CONFIDENCE,
    surrogate: str = "auto",
    frontier: int = 100,
) -> dict[str, Any]:
    """The best scale under latency budgets, from a table of accuracies and one of latencies; a dict ready for JSON.

    accuracy_csv: depth, width, resolution, accuracy[, std]. latency_csv: depth, width, resolution, latency_ms[, std]
    [, device]. ``budgets``: "24ms" or "50%" (of the full scale's latency) for the only device or for every device,
    "NAME=24ms" for one of several. ``choose_from``: "latency" among the rows of latency_csv, "space" between them too.
    Scales are given back as the tables write them, accuracies in the unit of accuracy_csv. Raises UsageError for bad
    tables (file, row, reason), budgets that are none and budgets no scale keeps.
    """
    if choose_from not in CHOOSE_FROM:
        raise UsageError(f"cannot choose from {choose_from!r}: choose from {' or '.join(CHOOSE_FROM)}")
    problem = _read(Path(accuracy_csv), Path(latency_csv), surrogate)
    constraints = _constraints(problem, budgets)
    candidates = problem.measured if choose_from == "latency" else _space(problem)
    field = survey(problem.accuracy, constraints, candidates)
    solution = solve_surveyed(problem.accuracy, constraints, field, confidence, frontier)
    rated = rate_probes(problem.accuracy, field, problem.probed, confidence)
    return _answer(problem, constraints, solution, rated if rated is not None and rated[1] >= THRESHOLD else None)


def _read(accuracy_csv: Path, latency_csv: Path, surrogate: str) -> _Problem:
    accuracies, latencies = read_table(accuracy_csv, "accuracy"), read_table(latency_csv, "latency_ms")
    of_accuracy, of_latency = units_of([accuracies, latencies])
    perfect = of_accuracy.perfect
    values = [row.value / perfect for row in accuracies.rows]
    probed = [of_accuracy.scale(row) for row in accuracies.rows]
    stds = _stds(accuracies, perfect)
    try:
        fitted = fit_accuracy(probed, values, stds, surrogate)
    except UsageError as error:
        raise UsageError(f"{accuracy_csv}: {error}") from error
    by_device: dict[str, list[Row]] = {}
    for row in latencies.rows:
        by_device.setdefault(row.device, []).append(row)
    fits = {}
    for device, rows in by_device.items():
        try:
            fits[device] = _fit_device(latencies, rows, of_latency)
        except UsageError as error:
            where = f" for device {device}" if device else ""
            raise UsageError(f"{latency_csv}{where}: {error}") from error
    measured = tuple(sorted({of_latency.scale(row) for row in latencies.rows}))
    return _Problem(fitted, fits, measured, tuple(probed), of_latency, perfect)


def _stds(table: Table, perfect: float) -> list[float] | None:
    """The stated deviations, all or none of them."""
    stated = [row for row in table.rows if row.std is not None]
    if not stated:
        return None
    missing = next((row for row in table.rows if row.std is None), None)
    if missing is not None:
        raise table.error(missing, "std is empty but other rows state it; fill it in or drop the column")
    return [float(row.std or 0.0) / perfect for row in table.rows]


def _fit_device(table: Table, rows: Sequence[Row], units: Units) -> LatencySurrogate:
    """A row that stands alone and states no deviation is taken as it is: the reader has nothing better."""
    scales = [units.scale(row) for row in rows]
    stds = _stds(Table(table.path, table.column, tuple(rows)), 1.0)
    if stds is None and len(set(scales)) == len(scales):
        stds = [0.0] * len(scales)
    return fit_latency(scales, [row.value for row in rows], stds)


def _constraints(problem: _Problem, budgets: Sequence[str]) -> list[Constraint]:
    """One limit per device that a budget names; a budget without a name holds on every device."""
    if not budgets:
        raise UsageError("no budget is given: give one such as 24ms or 50%")
    limits: dict[str, float] = {}
    for text in budgets:
        name, _, amount = text.rpartition("=")
        budget = Budget.parse(amount)
        if budget.quantity != "latency":
            raise UsageError(f"{text!r} limits {budget.quantity}, of which the tables know nothing: give a latency")
        if name and name not in problem.latency:
            near = difflib.get_close_matches(name, problem.latency, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the table has {', '.join(sorted(problem.latency))}"
            raise UsageError(f"no device {name!r} in the latency table: {hint}")
        for device in [name] if name else sorted(problem.latency):
            if device in limits:
                raise UsageError(f"two budgets for {device or 'the device'}: keep the one that must hold")
            limits[device] = _limit(budget, problem.latency[device])
    return [latency_constraint(d or "latency", limit, problem.latency[d]) for d, limit in limits.items()]


def _limit(budget: Budget, surrogate: LatencySurrogate) -> float:
    return budget.limit(float(surrogate.estimate([BASE])[0][0]) if budget.relative else 1.0)


def _space(problem: _Problem) -> list[Scale]:
    """A grid over the box of the probes (whole pixels where the table has pixels) and every scale of either table."""
    low = np.array([s.as_tuple() for s in problem.probed]).min(axis=0)
    steps = min(round(_SPACE ** (1.0 / max(int((low < 1.0 - 1e-9).sum()), 1))), 64)
    fixed = problem.accuracy.axes.fixed
    sides = []
    for axis in range(3):
        held = fixed[axis]
        if held is not None:
            sides.append([held])
            continue
        full = problem.units.full[axis]
        values = np.linspace(low[axis], 1.0, steps) if low[axis] < 1.0 - 1e-9 else np.ones(1)
        if full > 16.0:
            values = np.unique(np.round(values * full)) / full
        sides.append([float(v) for v in values if v > 0.0])
    grid = {Scale(d, w, r) for d in sides[0] for w in sides[1] for r in sides[2]}
    known = {
        s
        for s in (*problem.measured, *problem.probed)
        if all(f is None or abs(v - f) < 1e-6 for v, f in zip(s.as_tuple(), fixed, strict=True))
    }
    return sorted(grid | known)


def _answer(
    problem: _Problem, constraints: Sequence[Constraint], solution: Solution, rated: tuple[Scale, float] | None
) -> dict[str, Any]:
    perfect, written = problem.perfect, problem.units.written

    def points(estimate: Estimate) -> dict[str, float]:
        return {key: value * perfect for key, value in estimate.to_dict().items()}

    devices = {}
    for constraint in constraints:
        surrogate = problem.latency["" if constraint.name not in problem.latency else constraint.name]
        kept = solution.constraints[constraint.name]
        devices[constraint.name] = {
            **kept.value.to_dict(),
            "measured": surrogate.measured(solution.scale),
            "limit": kept.limit,
            "probability": kept.probability,
            "surrogate": surrogate.to_dict(),
        }
    first = devices[constraints[0].name]
    continuous = solution.continuous
    chosen = problem.accuracy.to_dict()
    chosen["cv_error"] *= perfect
    chosen["candidates"] = [{**c, "cv_error": c["cv_error"] * perfect} for c in chosen["candidates"]]
    return {
        "scale": written(solution.scale),
        "share": dict(zip(("depth", "width", "resolution"), solution.scale.as_tuple(), strict=True)),
        "accuracy": points(solution.accuracy),
        "accuracy_unit": "percent" if perfect == 100.0 else "fraction",
        "latency_ms": {key: first[key] for key in ("mean", "low", "high", "measured")},
        "devices": devices,
        "continuous": None
        if continuous is None
        else {
            "scale": written(continuous.scale),
            "accuracy": continuous.accuracy * perfect,
            "values": continuous.values,
        },
        "multipliers": {} if continuous is None else {k: v * perfect for k, v in continuous.multipliers.items()},
        "kkt_residual": None if continuous is None else continuous.kkt_residual,
        "prices": list(solution.prices),
        "surrogate": chosen,
        "base_suffices": solution.base_suffices,
        "confidence": solution.confidence,
        "frontier": [
            {
                "limit": p.limit,
                "scale": written(p.scale),
                "accuracy": points(p.accuracy),
                "latency_ms": p.value,
            }
            for p in solution.frontier
        ],
        "next_probe": None if rated is None else {**written(rated[0]), "expected_gain": rated[1] * perfect},
    }
