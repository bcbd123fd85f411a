"""What the solve stage makes of a journal: shares of the base, margins where nothing was measured, misses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobileprune.budget import parse_budgets
from mobileprune.run import Run
from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.stages.records import Costs, base_latency_ms, latency_samples, scale_key
from mobileprune.stages.solve import Problem

HALF = Scale(0.5)


def measurement(ms: float, error: float, origin: str) -> dict[str, Any]:
    return {"latency_ms": ms, "low_ms": ms * (1 - error), "high_ms": ms * (1 + error), "origin": origin}


def run_on(path: Path, device: str, ms: float, base_ms: float = 100.0, error: float = 0.04) -> Run:
    """A run whose base and half-depth scale were timed in the same rounds."""
    run = Run.create(path, {"device": device})
    origin = "measured" if device == "host" else "predicted"
    for scale, found in ((BASE, base_ms), (HALF, ms)):
        run.journal.append(
            "latency", scale_key(scale), scale=scale.as_tuple(), size_bytes=1000, base_ms=base_ms,
            measurement=measurement(found, error, origin),
        )  # fmt: skip
    return run


@pytest.mark.parametrize(("ms", "missed"), [(45.0, False), (51.9, False), (52.2, True)])
def test_a_measured_budget_is_missed_beyond_the_spread(tmp_path: Path, ms: float, missed: bool) -> None:
    for text in ("50%", "50ms"):
        problem = Problem(run_on(tmp_path / text, "host", ms), parse_budgets([text]))
        assert problem.limit(problem.budgets[0]) == pytest.approx(50.0)
        assert problem.missed(HALF) is missed


@pytest.mark.parametrize(("ms", "missed"), [(45.0, False), (45.5, True), (49.0, True)])
def test_a_predicted_budget_keeps_a_margin_of_a_tenth(tmp_path: Path, ms: float, missed: bool) -> None:
    for text in ("50%", "50ms"):
        problem = Problem(run_on(tmp_path / text, "pixel", ms), parse_budgets([text]))
        assert problem.limit(problem.budgets[0]) == pytest.approx(50.0 / 1.1)
        assert problem.missed(HALF) is missed


def test_latencies_are_shares_of_the_base_in_the_same_rounds(tmp_path: Path) -> None:
    run = run_on(tmp_path / "run", "host", 40.0)
    # Later the machine is half as fast; only the scale is measured again, beside the base.
    run.journal.append(
        "latency", scale_key(HALF), scale=HALF.as_tuple(), size_bytes=1000, base_ms=200.0,
        measurement=measurement(84.0, 0.04, "measured"),
    )  # fmt: skip
    shares = {s.scale: s.share for s in latency_samples(run)}
    assert shares == {BASE: 1.0, HALF: pytest.approx(0.42)}
    assert base_latency_ms(run) == 200.0
    assert not Problem(run, parse_budgets(["50%"])).missed(HALF)
    assert Problem(run, parse_budgets(["70ms"])).missed(HALF)


def test_size_is_of_the_file(tmp_path: Path) -> None:
    problem = Problem(run_on(tmp_path / "run", "host", 40.0), parse_budgets(["0.0009MB"]))
    assert problem.missed(HALF)
    assert problem.value(problem.budgets[0], HALF) == 1000


def test_costs_round_trip_and_leave_out_what_is_not_covered(tmp_path: Path) -> None:
    class Cost:
        def __init__(self, scale: Scale) -> None:
            self.macs, self.params, self.peak_activation_bytes = int(1e6 * scale.nominal_cost), 10, 20
            self.features = {"macs": scale.nominal_cost}

    lattice = Lattice((0.5, 1.0), (1.0,), (0.5, 1.0))
    costs = Costs.of(lattice, Cost, lambda scale, cost: cost.macs > 200_000)
    assert costs.candidates == [Scale(0.5), Scale(1, 1, 0.5), BASE]
    assert costs[HALF]["macs"] == 500_000
    assert costs.features(BASE) == {"macs": 1.0}
