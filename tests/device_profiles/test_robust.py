from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.robust import median, median_interval, quantile, sign_confidence

values = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=40)


def test_quantiles_lie_between_the_order_statistics() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([0.0, 10.0], 0.9) == 9.0
    assert quantile([7.0], 0.3) == 7.0


def test_sign_confidence_of_small_samples() -> None:
    assert sign_confidence(5, 1) == pytest.approx(1 - 2 / 2**5)
    assert sign_confidence(7, 2) == pytest.approx(1 - 2 * (1 + 7) / 2**7)


def test_interval_of_seven_by_hand() -> None:
    # Pairs 1 and 2 carry 98.4375 % and 87.5 %; I = .034375 / .109375, t = 6 I / (1 + 5 I) = .7333...
    low, high = median_interval([1, 2, 3, 4, 5, 6, 7])
    assert low == pytest.approx(1 + 0.733333, abs=1e-6)
    assert high == pytest.approx(7 - 0.733333, abs=1e-6)


def test_fewer_than_six_give_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (1.0, 5.0)
    assert median_interval([2.0]) == (2.0, 2.0)


@given(values)
def test_interval_holds_the_median_and_stays_in_the_range(sample: list[float]) -> None:
    low, high = median_interval(sample)
    assert min(sample) <= low <= median(sample) * (1 + 1e-12)
    assert median(sample) * (1 - 1e-12) <= high <= max(sample)


@given(values, st.floats(0.01, 100))
def test_interval_scales_with_the_values(sample: list[float], factor: float) -> None:
    scaled = median_interval([factor * value for value in sample])
    assert scaled == pytest.approx(tuple(factor * end for end in median_interval(sample)))


@pytest.mark.parametrize("n", [6, 7, 8, 15])
def test_the_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    draw = random.Random(n)
    hits = 0
    for _ in range(4000):
        low, high = median_interval([draw.expovariate(1.0) for _ in range(n)])
        hits += low <= 0.693147 <= high  # ln 2, the median of that skewed distribution
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)
