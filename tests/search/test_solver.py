"""The solver: closed forms, KKT conditions, brute force, several limits, confidence and refusals."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from closed_forms import power_optimum, saturating_optimum
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobileprune.errors import UsageError
from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.accuracy import fit_accuracy
from mobileprune.search.continuous import Limit, maximise
from mobileprune.search.latency import fit_latency
from mobileprune.search.samples import points
from mobileprune.search.solver import Constraint, counted_constraint, latency_constraint, solve

LATTICE = Lattice((0.4, 0.6, 0.8, 1.0), (0.25, 0.5, 0.75, 1.0), (0.5, 0.625, 0.75, 0.875, 1.0))


@dataclass(frozen=True)
class Known:
    """An accuracy that is known exactly, standing in for a surrogate."""

    f: Callable[[NDArray], NDArray]
    std: float = 0.0

    def estimate(self, scales: Sequence[Scale]) -> tuple[NDArray, NDArray]:
        return np.asarray(self.f(points(scales))), np.full(len(scales), self.std)

    def smooth(self, x: NDArray) -> NDArray:
        return self.f(x)


def saturating(x: NDArray) -> NDArray:
    return 0.98 - 0.02 * x[:, 0] ** -0.7 - 0.03 * x[:, 1] ** -0.6 - 0.03 * x[:, 2] ** -1.2


def thrifty(x: NDArray) -> NDArray:
    """A surface on which width and resolution are both worth cutting."""
    return 0.98 - 0.03 * x[:, 0] ** -0.7 - 0.05 * x[:, 1] ** -0.6 - 0.02 * x[:, 2] ** -1.0


def nominal(x: NDArray) -> NDArray:
    return x[:, 0] * x[:, 1] ** 2 * x[:, 2] ** 2


def on_scale(f: Callable[[NDArray], NDArray]) -> Callable[[Scale], float]:
    return lambda s: float(f(points([s]))[0])


gains = st.tuples(*[st.floats(0.05, 1.0)] * 3)
lows = st.tuples(*[st.floats(0.1, 0.7)] * 3)


@settings(max_examples=40, deadline=None)
@given(gain=gains, low=lows, share=st.floats(0.05, 0.95))
def test_products_of_powers_have_the_analytic_optimum(
    gain: tuple[float, ...], low: tuple[float, ...], share: float
) -> None:
    z = np.log(low)
    log_budget = share * float(z @ [1, 2, 2])  # reachable by construction
    best = power_optimum(gain, (1.0, 2.0, 2.0), log_budget, z)

    def product(x: NDArray) -> NDArray:
        return np.exp(np.log(x) @ np.array(gain))

    found = maximise(product, [Limit("cost", float(np.exp(log_budget)), nominal)], low)
    assert found is not None
    assert found.accuracy == pytest.approx(float(product(best[None])[0]), rel=1e-6)
    assert found.kkt_residual < 1e-6
    assert found.multipliers["cost"] > 0.0


@settings(max_examples=40, deadline=None)
@given(b=st.tuples(*[st.floats(0.01, 0.1)] * 3), p=st.tuples(*[st.floats(0.3, 1.5)] * 3), share=st.floats(0.1, 0.9))
def test_saturating_power_laws_have_the_analytic_optimum(
    b: tuple[float, ...], p: tuple[float, ...], share: float
) -> None:
    best = saturating_optimum(b, p, (1.0, 2.0, 2.0), float(np.log(share)))
    if best.max() > 1.0:
        return  # the closed form knows no bounds
    found = maximise(
        lambda x: 1.0 - (np.array(b) * x ** -np.array(p)).sum(axis=1), [Limit("cost", share, nominal)], best * 0.5
    )
    assert found is not None
    assert found.scale.as_tuple() == pytest.approx(tuple(best), rel=1e-4)
    assert found.kkt_residual < 1e-6


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.08, 0.9), size=st.floats(0.1, 1.2), seed=st.integers(0, 50))
def test_the_choice_is_that_of_brute_force_and_beats_every_feasible_probe(share: float, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probes = [BASE, LATTICE.smallest, *(list(LATTICE)[i] for i in rng.choice(len(LATTICE) - 2, 6, replace=False) + 1)]
    observed = saturating(points(probes)) + 0.003 * rng.standard_normal(len(probes))
    accuracy = fit_accuracy(probes, observed, [0.0] * len(probes))
    weights = counted_constraint("size", size, "MB", lambda s: s.depth * s.width**2)
    cost = counted_constraint("cost", share, "", on_scale(nominal))
    rounding = 1 + 1e-9
    feasible = [s for s in LATTICE if s.nominal_cost <= share * rounding and s.depth * s.width**2 <= size * rounding]
    if not feasible:
        with pytest.raises(UsageError, match=r"no scale keeps"):
            solve(accuracy, [cost, weights], LATTICE)
        return
    found = solve(accuracy, [cost, weights], LATTICE)
    assert found.scale in feasible
    assert found.accuracy.mean == pytest.approx(float(accuracy.estimate(feasible)[0].max()), abs=1e-12)
    assert found.feasible == len(feasible)
    assert found.accuracy.mean >= max((v for s, v in zip(probes, observed, strict=True) if s in feasible), default=0.0)
    assert found.continuous is None or found.continuous.kkt_residual < 1e-6


def test_the_continuous_optimum_beats_a_fine_grid() -> None:
    low = (0.3, 0.3, 0.3)
    found = maximise(saturating, [Limit("cost", 0.3, nominal)], low)
    assert found is not None
    grid = np.array(list(itertools.product(np.linspace(0.3, 1.0, 60), repeat=3)))
    best = saturating(grid)[nominal(grid) <= 0.3].max()
    assert best <= found.accuracy + 1e-9
    assert found.accuracy - best < 0.001
    more = maximise(saturating, [Limit("cost", 0.301, nominal)], low)
    assert more is not None
    assert (more.accuracy - found.accuracy) / 0.001 == pytest.approx(found.multipliers["cost"], rel=0.02)


def test_two_limits_that_bind_and_one_that_does_not_are_told_in_words() -> None:
    limits = [
        Constraint(
            "pixel", 20.0, "ms", lambda s: (60.0 * nominal(points(s)), np.zeros(len(s))), lambda x: 60 * nominal(x)
        ),
        counted_constraint("size", 0.45, "MB", lambda s: s.depth * s.width**2),
        counted_constraint("macs", 500.0, "MMACs", lambda s: 300 * s.nominal_cost),
    ]
    found = solve(Known(thrifty), limits, LATTICE)
    assert found.continuous is not None
    assert found.continuous.kkt_residual < 1e-6
    assert found.continuous.values["pixel"] <= 20.0 * (1 + 1e-6)
    assert found.prices[0].startswith("one more ms on pixel is worth 0.")
    assert "size is worth" in found.prices[1]
    assert found.prices[2] == "the macs limit (500 MMACs) does not bind"
    feasible = [s for s in LATTICE if 60 * s.nominal_cost <= 20 and s.depth * s.width**2 <= 0.45]
    assert found.accuracy.mean == pytest.approx(max(thrifty(points(feasible))))


def test_confidence_buys_a_margin() -> None:
    def uncertain(scales: Sequence[Scale]) -> tuple[NDArray, NDArray]:
        value = 60.0 * nominal(points(scales))
        return value, 0.1 * value

    chosen = [
        solve(Known(saturating), [Constraint("pixel", 20.0, "ms", uncertain)], LATTICE, confidence)
        for confidence in (0.5, 0.9, 0.99)
    ]
    means = [c.constraints["pixel"].value.mean for c in chosen]
    assert means[0] >= means[1] >= means[2]
    assert means[0] <= 20.0 and means[1] * (1 + 0.1 * 1.2816) <= 20.0 and means[2] * (1 + 0.1 * 2.3263) <= 20.0
    for c, confidence in zip(chosen, (0.5, 0.9, 0.99), strict=True):
        assert c.constraints["pixel"].probability >= confidence
    with pytest.raises(UsageError, match="not between 0 and 1"):
        solve(Known(saturating), [Constraint("pixel", 20.0, "ms", uncertain)], LATTICE, 1.0)


def test_the_joint_probability_counts_for_several_devices() -> None:
    def device(factor: float) -> Constraint:
        def predict(scales: Sequence[Scale]) -> tuple[NDArray, NDArray]:
            value = factor * nominal(points(scales))
            return value, 0.1 * value

        return Constraint(f"d{factor}", 20.0, "ms", predict)

    found = solve(Known(saturating), [device(60.0), device(58.0)], LATTICE, 0.8)
    assert np.prod([k.probability for k in found.constraints.values()]) >= 0.8


def test_the_frontier_ascends_and_each_point_keeps_its_limit() -> None:
    limits = [
        counted_constraint("cost", 0.3, "", on_scale(nominal)),
        counted_constraint("w", 0.8, "", lambda s: s.width),
    ]
    found = solve(Known(saturating), limits, LATTICE)
    assert len(found.frontier) == 100
    allowed = [s for s in LATTICE if s.width <= 0.8]
    for point in found.frontier:
        assert point.value <= point.limit * (1 + 1e-6)
        best = max(saturating(points([s for s in allowed if s.nominal_cost <= point.limit * (1 + 1e-9)])))
        assert point.accuracy.mean == pytest.approx(best, abs=1e-12)
    means = [p.accuracy.mean for p in found.frontier]
    assert means == sorted(means)


def test_an_infeasible_budget_names_the_smallest_reachable_value() -> None:
    limit = counted_constraint("pixel", 0.5, "ms", lambda s: 100 * s.nominal_cost)
    smallest = 100 * LATTICE.smallest.nominal_cost
    with pytest.raises(UsageError, match=rf"smallest reachable is {smallest:.4g} ms at d=0.4 w=0.25 r=0.5"):
        solve(Known(saturating), [limit], LATTICE)
    apart = [
        counted_constraint("a", 0.5, "", lambda s: s.width),
        counted_constraint("b", 0.5, "", lambda s: 1.2 - s.width),
    ]
    with pytest.raises(UsageError, match="each limit can be kept alone but no scale keeps all"):
        solve(Known(saturating), apart, LATTICE)


def test_a_budget_looser_than_the_base_is_answered_by_the_base() -> None:
    found = solve(Known(saturating), [counted_constraint("cost", 1.5, "", on_scale(nominal))], LATTICE)
    assert found.base_suffices
    assert found.scale == BASE
    assert found.continuous is not None and found.continuous.scale == BASE
    assert found.prices == ("the cost limit (1.5) does not bind",)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="no candidate scale"):
        solve(Known(saturating), [], [])
    with pytest.raises(UsageError, match="limit of cost is -1"):
        counted_constraint("cost", -1.0, "", on_scale(nominal))
    twice = [counted_constraint("cost", 1.0, "", on_scale(nominal))] * 2
    with pytest.raises(UsageError, match="two limits have the name 'cost'"):
        solve(Known(saturating), twice, LATTICE)


@settings(max_examples=10, deadline=None)
@given(factor=st.sampled_from([1e-3, 0.1, 7.0, 1e3]), share=st.floats(0.15, 0.8))
def test_the_unit_of_latency_does_not_change_the_choice(factor: float, share: float) -> None:
    probes = [BASE, LATTICE.smallest, Scale(0.4, 1, 1), Scale(1, 0.25, 1), Scale(1, 1, 0.5), Scale(0.6, 0.5, 0.75)]
    accuracy = fit_accuracy(probes, saturating(points(probes)))
    times = 50.0 * nominal(points(probes)) ** 0.8
    plain, other = (fit_latency(probes, times * f) for f in (1.0, factor))
    a, b = (
        solve(accuracy, [latency_constraint("x", share * 50.0 * f, lat)], LATTICE, 0.8)
        for f, lat in ((1.0, plain), (factor, other))
    )
    assert a.scale == b.scale
    assert a.continuous is not None and b.continuous is not None
    assert b.continuous.multipliers["x"] * factor == pytest.approx(a.continuous.multipliers["x"], rel=1e-3)


def test_a_lattice_of_one_scale_is_solved() -> None:
    found = solve(Known(saturating), [counted_constraint("cost", 2.0, "", on_scale(nominal))], [BASE])
    assert found.scale == BASE and found.base_suffices
    assert found.continuous is not None and found.continuous.kkt_residual == 0.0


def test_a_scale_that_may_not_be_chosen_stands_on_the_frontier() -> None:
    accuracy = fit_accuracy(list(LATTICE)[::7], saturating(points(list(LATTICE)[::7])), [0.0] * len(list(LATTICE)[::7]))
    cost = counted_constraint("cost", 0.3, "", on_scale(nominal))
    best = solve(accuracy, [cost], LATTICE)
    allowed = {s for s in LATTICE if s != best.scale and s.nominal_cost <= 0.3}
    found = solve(accuracy, [cost], LATTICE, among=allowed)
    assert found.scale != best.scale and found.scale in allowed
    assert found.frontier == best.frontier
    assert max(s.nominal_cost for s in (point.scale for point in found.frontier)) > 0.3
    with pytest.raises(UsageError, match=r"no scale keeps cost within 0\.3"):
        solve(accuracy, [cost], LATTICE, among={BASE})


def test_a_margin_is_told_in_the_remedy() -> None:
    accuracy = fit_accuracy(list(LATTICE)[::7], saturating(points(list(LATTICE)[::7])), [0.0] * len(list(LATTICE)[::7]))
    least = min(s.nominal_cost for s in LATTICE)
    tight = counted_constraint("cost", 0.9 * least, "ms", on_scale(nominal))
    with pytest.raises(UsageError) as refused:
        solve(accuracy, [replace(tight, margin=0.1)], LATTICE)
    asked = f"{least / 0.9:.4g} ms"
    assert f"within {least:.4g} ms less the 10 % that are left free" in str(refused.value)
    assert str(refused.value).endswith(f"raise the budget to at least {asked}")
    assert solve(accuracy, [replace(tight, limit=0.9 * least / 0.9, margin=0.1)], LATTICE).scale == LATTICE.smallest


def test_a_price_is_of_the_limit_that_was_given() -> None:
    def costs(scales: Sequence[Scale]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        value = nominal(points(scales))
        return value, 0.1 * value  # at 0.8 confidence the limit that the solver keeps is 8 % lower

    probes = list(LATTICE)[::7]
    accuracy = fit_accuracy(probes, saturating(points(probes)), [0.0] * len(probes))

    def best(limit: float) -> float:
        found = solve(accuracy, [Constraint("cost", limit, "", costs, nominal)], LATTICE, confidence=0.8).continuous
        assert found is not None
        return found.accuracy

    found = solve(accuracy, [Constraint("cost", 0.3, "", costs, nominal)], LATTICE, confidence=0.8).continuous
    assert found is not None
    assert (best(0.303) - best(0.297)) / 0.006 == pytest.approx(found.multipliers["cost"], rel=0.02)
