"""The accuracy surrogate: forms recover what they can express, stay monotone, and refuse what they cannot use."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileprune.errors import UsageError
from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import fit_accuracy
from mobileprune.search.curves import LossCurves, along
from mobileprune.search.forms import NAMES, LowRank
from mobileprune.search.samples import points
from mobileprune.search.trends import NUGGET


def surface(scale: Scale) -> float:
    """A saturating surface of the kind that pruned networks show, about 0.9 at the base."""
    d, w, r = scale.as_tuple()
    return 0.98 - 0.02 * d**-0.7 - 0.03 * w**-0.6 - 0.03 * r**-1.2


def corners(low: float = 0.4) -> list[Scale]:
    return [Scale(*p) for p in itertools.product((low, 1.0), repeat=3)] + [Scale(0.65, 0.65, 0.65)]


# Losses before training, with a cliff in width.
CURVES = LossCurves.of(
    {BASE: 0.1, along(0, 0.2): 2.0, along(0, 0.6): 0.4, along(1, 0.2): 2.3, along(1, 0.7): 2.0, along(1, 0.75): 0.2}
    | {along(2, 0.5): 1.5}
)
shares = st.floats(0.2, 1.0)
scales = st.builds(Scale, shares, shares, shares)
samples = st.lists(st.tuples(scales, st.floats(0.05, 0.99)), min_size=4, max_size=9, unique_by=lambda p: p[0]).filter(
    lambda rows: all(np.ptp([s.as_tuple()[i] for s, _ in rows]) > 0.02 for i in range(3))
)


# In raw (d, w, r) the paper's form needs more than two values per axis to see how a surface bends.
@pytest.mark.parametrize(
    ("form", "mean"), [("monotone", 0.005), ("power-law-gp", 0.005), ("auto", 0.005), ("polynomial", 0.015)]
)
def test_a_smooth_surface_is_met_within_half_a_point(form: str, mean: float) -> None:
    fitted = fit_accuracy(corners(), [surface(s) for s in corners()], [0.0] * 9, form)
    inside = [Scale(*p) for p in itertools.product((0.5, 0.75, 0.9), repeat=3)]
    error = np.abs(fitted.predict(inside)[0] - [surface(s) for s in inside])
    assert error.mean() < mean
    assert error.max() < 3 * mean


def test_the_papers_form_recovers_a_product_of_polynomials() -> None:
    def product(s: Scale) -> float:
        return (0.4 + 0.6 * s.depth) * (0.7 + 0.3 * s.width) * (0.5 + 0.5 * s.resolution)

    fitted = fit_accuracy(corners(), [product(s) for s in corners()], [0.0] * 9, "polynomial")
    inside = [Scale(0.5, 0.9, 0.6), Scale(0.8, 0.45, 0.7)]
    assert (fitted.rank, fitted.degree) == (1, 1)
    assert fitted.predict(inside)[0] == pytest.approx([product(s) for s in inside], abs=3e-3)
    assert isinstance(fitted.form, LowRank)
    assert fitted.form.factors.shape == (1, 3, 2)


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=25, deadline=None)
@given(rows=samples, pairs=st.lists(st.tuples(scales, scales), min_size=20, max_size=20))
def test_every_form_is_monotone_over_the_box(
    form: str, rows: list[tuple[Scale, float]], pairs: list[tuple[Scale, Scale]]
) -> None:
    fitted = fit_accuracy([s for s, _ in rows], [a for _, a in rows], form=form, curves=CURVES)
    low = points([s for s, _ in rows]).min(axis=0)
    a, b = (np.maximum(points([pair[i] for pair in pairs]), low) for i in (0, 1))
    assert np.all(fitted.smooth(np.minimum(a, b)) <= fitted.smooth(np.maximum(a, b)) + 1e-9)


@settings(max_examples=20, deadline=None)
@given(rows=samples, data=st.data())
def test_the_order_of_rows_changes_nothing(rows: list[tuple[Scale, float]], data: st.DataObject) -> None:
    mixed = data.draw(st.permutations(rows))
    a, b = (fit_accuracy([s for s, _ in r], [v for _, v in r]) for r in (rows, mixed))
    assert a.name == b.name
    inside = [s for s, _ in rows]
    np.testing.assert_array_equal(a.predict(inside), b.predict(inside))


def test_repeats_are_merged_and_weighted_by_their_noise() -> None:
    base = [*corners(), BASE]
    values = [surface(s) for s in corners()] + [0.5]
    stds = [0.001] * 9 + [0.1]
    fitted = fit_accuracy(base, values, stds)
    assert len(fitted.samples) == 9
    assert fitted.estimate([BASE])[0][0] == pytest.approx(surface(BASE), abs=0.004)


def test_scattered_repeats_widen_the_noise() -> None:
    again = corners() * 3
    rng = np.random.default_rng(1)
    quiet = fit_accuracy(again, [surface(s) for s in again])
    loud = fit_accuracy(again, [surface(s) + 0.02 * rng.standard_normal() for s in again])
    assert quiet.noise < 0.002
    assert 0.012 < loud.noise < 0.03


def test_an_exact_probe_is_believed_and_a_noisy_one_only_partly() -> None:
    base = corners()
    values = [surface(s) for s in base]
    values[-1] += 0.01
    exact = fit_accuracy(base, values, [0.0] * 9)
    noisy = fit_accuracy(base, values, [0.0] * 8 + [0.02])
    assert exact.estimate(base)[0] == pytest.approx(values, abs=1e-9)
    assert exact.estimate(base)[1] == pytest.approx([0.0] * 9, abs=1e-9)
    assert noisy.estimate(base[-1:])[0][0] < values[-1] - 0.001
    assert noisy.estimate(base[-1:])[1][0] > 0.001


def test_error_bars_grow_away_from_the_probes_and_with_noise() -> None:
    near = [Scale(0.8, 0.8, 0.8), Scale(0.8, 1.0, 0.8), Scale(1.0, 0.8, 0.9), BASE, Scale(0.9, 0.85, 1.0)]
    fitted = fit_accuracy(near, [surface(s) for s in near])
    std = fitted.predict([Scale(0.9, 0.9, 0.9), Scale(0.3, 0.3, 0.3)])[1]
    assert std[1] > 3 * std[0]
    low, high = fitted.interval(near, 0.8)
    tight, wide = fitted.interval(near, 0.5, probe=False), fitted.interval(near, 0.95)
    assert np.all(low < high)
    assert np.all(tight[1] - tight[0] < high - low)
    assert np.all(wide[0] <= low) and np.all(wide[1] >= high) and np.all(wide[1] <= 1.0)


def test_an_axis_with_one_value_is_handled_and_leaving_it_is_refused() -> None:
    flat = [Scale(1.0, w, r) for w, r in itertools.product((0.4, 1.0), repeat=2)]
    fitted = fit_accuracy(flat, [surface(s) for s in flat])
    inside = Scale(1.0, 0.6, 0.7)
    assert fitted.predict([inside])[0][0] == pytest.approx(surface(inside), abs=0.01)
    with pytest.raises(UsageError, match="every sample of accuracy has depth 1"):
        fitted.predict([Scale(0.5, 0.6, 0.7)])


def test_collinear_probes_are_fitted() -> None:
    line = [Scale(v, v, v) for v in (0.4, 0.6, 0.8, 1.0)]
    fitted = fit_accuracy(line, [surface(s) for s in line])
    assert fitted.predict(line)[0] == pytest.approx([surface(s) for s in line], abs=0.01)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([0.9, float("nan"), 0.7, 0.6], "number 2 is nan"),
        ([0.9, 0.8, 0.7], "4 scales but 3 values"),
        ([90.0, 80.0, 70.0, 60.0], "not a fraction"),
    ],
)
def test_bad_values_are_refused_in_words(values: list[float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        fit_accuracy([BASE, Scale(0.5), Scale(1, 0.5), Scale(1, 1, 0.5)], values)


def test_too_few_points_and_unknown_forms_are_refused() -> None:
    with pytest.raises(UsageError, match="known at 1 distinct scale: a fit needs at least 3"):
        fit_accuracy([BASE, BASE, BASE], [0.9, 0.91, 0.9])
    with pytest.raises(UsageError, match="no surrogate is called 'cubic'"):
        fit_accuracy(corners(), [surface(s) for s in corners()], form="cubic")
    with pytest.raises(UsageError, match="standard deviations"):
        fit_accuracy(corners(), [surface(s) for s in corners()], [-0.1] * 9)


def test_the_report_names_what_was_compared() -> None:
    told = fit_accuracy(corners(), [surface(s) for s in corners()], curves=CURVES).to_dict()
    assert {c["form"] for c in told["candidates"]} == set(NAMES)
    assert [c["form"] for c in told["candidates"] if c["chosen"]] == [told["form"]]
    assert all(c["cv_error"] >= 0.0 for c in told["candidates"])


@settings(max_examples=20, deadline=None)
@given(noise=st.floats(0.0, 0.02), height=st.floats(-0.02, 0.02))
def test_a_probes_distance_to_the_surface_counts_once(noise: float, height: float) -> None:
    observed = np.array([surface(s) for s in corners()])
    observed[-1] += height
    fitted = fit_accuracy(corners(), observed, [noise] * 9)
    scales = [corners()[-1], Scale(0.6, 0.8, 0.7)]
    x = points(scales)
    own = (fitted.inflation * NUGGET) ** 2
    share = own / (own + noise**2)
    mean, std = fitted.estimate(scales)
    surface_there, spread = fitted.predict(scales)
    assert mean[0] == pytest.approx(surface_there[0] + share * (observed[-1] - surface_there[0]))
    assert (mean[1], std[1]) == pytest.approx((surface_there[1], spread[1]))
    of_surface = spread[0] ** 2 - own
    assert std[0] ** 2 == pytest.approx((1 - share) ** 2 * of_surface + own * noise**2 / (own + noise**2), abs=1e-12)
    assert np.diag(fitted.covariance(x)) == pytest.approx(std**2, abs=1e-12)
