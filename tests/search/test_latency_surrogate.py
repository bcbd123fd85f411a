"""The latency surrogate: the right form is found, units do not matter, uncertainty is honest."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileprune.errors import UsageError
from mobileprune.scale import BASE, Scale
from mobileprune.search.latency import fit_latency

GRID = [Scale(*p) for p in itertools.product((0.4, 0.7, 1.0), (0.5, 1.0), (0.5, 0.75, 1.0))]
INSIDE = [Scale(0.5, 0.75, 0.6), Scale(0.9, 0.6, 0.9), Scale(0.6, 0.9, 0.75)]


def work(s: Scale) -> dict[str, float]:
    """Counted work with channels in steps of 8, which no smooth function follows."""
    channels = round(s.width * 8) / 8
    return {
        "conv": s.depth * channels**2 * s.resolution**2 * 40,
        "act": (0.2 + s.depth) * channels * s.resolution**2 * 5,
        "ops": 10 + 50 * s.depth,
    }


def smooth_ms(s: Scale) -> float:
    return 0.4 + 3 * s.resolution**2 * (0.2 + 0.8 * s.depth) * (0.3 * s.width + 0.7 * s.width**2)


def test_a_power_law_is_recovered_exactly() -> None:
    law = [3.0 * s.depth**0.9 * s.width**1.5 * s.resolution**1.8 for s in GRID]
    fitted = fit_latency(GRID, law, form="power-law")
    assert fitted.predict(INSIDE)[0] == pytest.approx(
        [3.0 * s.depth**0.9 * s.width**1.5 * s.resolution**1.8 for s in INSIDE], rel=2e-3
    )


def test_sums_of_work_are_met_within_two_percent() -> None:
    fitted = fit_latency(GRID, [smooth_ms(s) for s in GRID])
    assert fitted.cv_error < 0.03
    assert fitted.predict(INSIDE)[0] == pytest.approx([smooth_ms(s) for s in INSIDE], rel=0.02)
    x = np.array([s.as_tuple() for s in INSIDE])
    assert fitted.smooth(x) == pytest.approx(fitted.predict(INSIDE)[0])


def test_counted_features_are_used_where_they_predict_better() -> None:
    cost = {"conv": 0.05, "act": 0.2, "ops": 0.01}
    grid = [Scale(d, w, r) for d, w, r in itertools.product((0.5, 1.0), (0.3, 0.55, 0.8, 1.0), (0.5, 1.0))]
    truth = [sum(cost[k] * v for k, v in work(s).items()) for s in grid]
    fitted = fit_latency(grid, truth, features=[work(s) for s in grid])
    assert fitted.counted and fitted.name.startswith("work")
    asked = [Scale(0.75, w, 0.7) for w in (0.4, 0.44, 0.6)]
    expected = [sum(cost[k] * v for k, v in work(s).items()) for s in asked]
    assert fitted.predict(asked, [work(s) for s in asked])[0] == pytest.approx(expected, rel=0.02)
    assert np.all(fitted.predict(asked)[0] > 0.0)  # without features the smooth companion answers
    with pytest.raises(UsageError, match="lack 'act'"):
        fitted.predict(asked[:1], [{"conv": 1.0, "ops": 2.0}])


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(1e-4, 1e4), seed=st.integers(0, 99))
def test_units_and_order_of_rows_change_nothing(factor: float, seed: int) -> None:
    noise = np.exp(0.02 * np.random.default_rng(seed).standard_normal(len(GRID)))
    values = np.array([smooth_ms(s) for s in GRID]) * noise
    plain = fit_latency(GRID, values)
    order = np.random.default_rng(seed).permutation(len(GRID))
    other = fit_latency([GRID[i] for i in order], values[order] * factor)
    assert other.name == plain.name
    assert other.predict(INSIDE)[0] == pytest.approx(plain.predict(INSIDE)[0] * factor, rel=1e-5)
    assert other.predict(INSIDE)[1] == pytest.approx(plain.predict(INSIDE)[1] * factor, rel=1e-4)


def test_measured_scales_are_known_from_their_measurement() -> None:
    values = [smooth_ms(s) for s in GRID]
    values[4] *= 1.2  # a step that the surface does not follow
    fitted = fit_latency(GRID, values, [0.0] * len(GRID))
    assert fitted.estimate(GRID)[0] == pytest.approx(values, rel=1e-12)
    assert fitted.measured(GRID[4]) == values[4]
    assert fitted.measured(INSIDE[0]) is None
    low, high = fitted.interval(INSIDE, 0.8)
    assert np.all(low < fitted.predict(INSIDE)[0]) and np.all(high > fitted.predict(INSIDE)[0])


def test_noisier_samples_give_wider_intervals() -> None:
    rng = np.random.default_rng(3)
    values = np.array([smooth_ms(s) for s in GRID])
    quiet = fit_latency(GRID, values)
    loud = fit_latency(GRID, values * np.exp(0.15 * rng.standard_normal(len(GRID))))
    assert np.all(loud.predict(INSIDE)[1] > 2 * quiet.predict(INSIDE)[1])


def test_bad_samples_are_refused_in_words() -> None:
    with pytest.raises(UsageError, match="a latency is above zero"):
        fit_latency(GRID[:3], [1.0, 0.0, 2.0])
    with pytest.raises(UsageError, match="number 3 is nan"):
        fit_latency(GRID[:3], [1.0, 1.0, float("nan")])
    with pytest.raises(UsageError, match="at least 3"):
        fit_latency([BASE, BASE], [1.0, 1.1])
    with pytest.raises(UsageError, match="no latency form is called 'cubic'"):
        fit_latency(GRID, [smooth_ms(s) for s in GRID], form="cubic")
    with pytest.raises(UsageError, match="needs counted features"):
        fit_latency(GRID, [smooth_ms(s) for s in GRID], form="work")
    with pytest.raises(UsageError, match="every sample of latency has depth 1"):
        fit_latency(GRID[-6:], [smooth_ms(s) for s in GRID[-6:]]).predict([Scale(0.5, 0.7, 0.7)])
