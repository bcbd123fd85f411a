"""The power law of training: found where it is, and harmless where nothing is known of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import fit_accuracy
from mobileprune.search.recovery import USUAL, ResultAccuracy, fit_recovery, retold

SCALES = [BASE, *(Scale(d, w, r) for d in (0.4, 0.7) for w in (0.5, 0.8) for r in (0.5, 0.75))]
EPOCHS = [math.inf, 1, 2, 1, 3, 2, 1, 4, 2]


CEILING = 0.92  # of the base


def surface(scale: Scale) -> float:
    """The accuracy after one epoch; the base's is complete."""
    return CEILING - (0.0 if scale == BASE else 0.3 * -math.log(scale.nominal_cost) / 4)


def observed(exponent: float) -> list[float]:
    return [float(retold(surface(s), math.inf if s == BASE else 1.0, n if s != BASE else 1.0, exponent, CEILING))
            for s, n in zip(SCALES, EPOCHS, strict=True)]  # fmt: skip


def test_what_lacks_to_the_base_shrinks_as_a_power_and_the_base_stays() -> None:
    assert retold(0.8, 1.0, 4.0, 0.5, 1.0) == pytest.approx(0.9)
    assert retold(0.9, 4.0, 1.0, 0.5, 1.0) == pytest.approx(0.8)
    assert retold(0.8, 1.0, 4.0, 0.5, 0.9) == pytest.approx(0.85)
    assert retold([0.8, 0.8], [math.inf, 2.0], 2.0, 0.5, 1.0).tolist() == [0.8, 0.8]


def test_what_is_better_than_the_base_is_told_as_it_is() -> None:
    assert retold(0.95, 1.0, 4.0, 0.5, 0.9) == 0.95
    found = fit_recovery(SCALES, observed(0.2), [0.001] * len(SCALES), EPOCHS)
    assert found.after(0.95, 0.01, 8.0)[0] == 0.95


def test_without_a_base_all_errors_shrink() -> None:
    found = fit_recovery(SCALES[1:], observed(0.2)[1:], [0.001] * 8, EPOCHS[1:])
    assert found.ceiling == 1.0


@pytest.mark.parametrize("exponent", [0.12, 0.2, 0.28])
def test_the_exponent_is_found_and_unequal_training_does_not_bend_the_surface(exponent: float) -> None:
    values = observed(exponent)
    found = fit_recovery(SCALES, values, [0.001] * len(SCALES), EPOCHS)
    assert found.exponent == pytest.approx(exponent, abs=0.041)
    assert found.epochs == pytest.approx(math.exp(np.mean(np.log(EPOCHS[1:]))))
    between = Scale(0.55, 0.65, 0.6)
    truth = float(retold(surface(between), 1.0, 6.0, exponent, CEILING))
    mean, std = found.after(*(float(v[0]) for v in found.surrogate.predict([between])), 6.0)
    plain = fit_accuracy(SCALES, values, [0.001] * len(SCALES)).predict([between])[0][0]
    assert abs(mean - truth) < abs(float(plain) - truth) and abs(mean - truth) < 3 * std


def test_training_alike_says_nothing_of_the_exponent() -> None:
    values = [surface(s) for s in SCALES]
    found = fit_recovery(SCALES, values, [0.001] * len(SCALES), [math.inf] + [1.0] * 8)
    plain = fit_accuracy(SCALES, values, [0.001] * len(SCALES))
    assert (found.exponent, found.epochs) == (USUAL, 1.0)
    assert found.surrogate.predict(SCALES)[0] == pytest.approx(plain.predict(SCALES)[0])
    assert found.after(0.8, 0.01, 1.0) == pytest.approx((0.8, 0.01))


def test_of_two_as_good_at_equal_training_the_result_that_starts_later_is_the_better() -> None:
    found = fit_recovery(SCALES, observed(0.2), [0.001] * len(SCALES), EPOCHS)
    early, late = Scale(0.62, 0.6, 0.6), Scale(0.6, 0.6, 0.6)
    at_equal = found.surrogate.estimate([early, late])[0]
    assert at_equal[0] > at_equal[1]
    trained = {early: 2.0, late: 6.0}
    results = ResultAccuracy(found, lambda scales: np.array([trained.get(s, 3.0) for s in scales]), 3.0)
    mean, std = results.estimate([early, late])
    assert mean[0] < mean[1]
    for i, scale in enumerate((early, late)):
        told = found.after(*found.surrogate.estimate([scale]), trained[scale])
        assert (mean[i], std[i]) == pytest.approx((told[0][0], told[1][0]))


def test_results_follow_the_surface_as_far_as_training_leaves_it() -> None:
    """What is told of results has the derivative by which the surface's covariance and its gradient are carried on."""
    found = fit_recovery(SCALES, observed(0.2), [0.001] * len(SCALES), EPOCHS)
    results = ResultAccuracy(found, lambda scales: np.full(len(scales), 6.0), 6.0)
    x = np.array([[0.62, 0.6, 0.6], [0.8, 0.7, 0.9]])
    left = float(found.left(6.0))
    scales = [Scale(*row) for row in x]
    mean, std = found.surrogate.estimate(scales)
    assert results.gain(scales) == pytest.approx(found.after(mean, std, 7.0)[0] - found.after(mean, std, 6.0)[0])
    assert np.all(results.gain(scales) > 0.0)
    assert results.smooth(x) == pytest.approx(found.after(found.surrogate.smooth(x), 0.01, 6.0)[0])
    assert results.covariance(x) == pytest.approx(left**2 * found.surrogate.covariance(x))
    assert results.noise == pytest.approx(left * found.surrogate.noise)
    step = 1e-20  # by a complex step, as the continuous problem differentiates
    slope = [f(x + 1j * step * np.array([0, 1, 0])).imag / step for f in (results.smooth, found.surrogate.smooth)]
    assert slope[0] == pytest.approx(left * slope[1]) and np.all(slope[1] > 0)
