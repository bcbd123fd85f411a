"""Losses before training: where they are measured, and what the surface learns from their curves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileprune.errors import UsageError
from mobileprune.scale import BASE, Scale
from mobileprune.search.accuracy import fit_accuracy
from mobileprune.search.curves import LossCurves, along, next_share
from mobileprune.search.samples import points

SHARES = tuple(round(0.04 * i, 2) for i in range(8, 26))  # 0.32, 0.36 ... 1


def cliff(share: float) -> float:
    """Nats of a dimension that is free down to 0.8 and dear below."""
    return 0.2 + (0.05 if share >= 0.8 else 1.0 + 2.0 * (0.8 - share)) * (share < 1.0)


def steady(share: float) -> float:
    return 0.2 + 0.8 * (1.0 / share - 1.0)


def measured(loss_of: list) -> dict[Scale, float]:
    """The losses that would be measured of dimensions with these losses, six of each."""
    found = {BASE: 0.2}
    for axis, loss in enumerate(loss_of):
        known = {1.0: 0.2}
        while (share := next_share(SHARES, known, 6)) is not None:
            known[share] = loss(share)
        found |= {along(axis, share): value for share, value in known.items()}
    return found


def test_the_smallest_comes_first_and_then_the_widest_gap() -> None:
    known = {1.0: 0.2}
    order = []
    while (share := next_share(SHARES, known, 6)) is not None:
        order.append(share)
        known[share] = cliff(share)
    assert order[0] == SHARES[0] and len(order) == 6
    assert {0.76, 0.8} <= set(known)  # both sides of the cliff, one step apart


def test_what_lies_between_alike_losses_is_not_measured() -> None:
    assert next_share(SHARES, {1.0: 0.2}, 6) == SHARES[0]
    assert next_share(SHARES, {1.0: 0.2, SHARES[0]: 0.25}, 6) is None
    assert next_share((1.0,), {1.0: 0.2}, 6) is None
    assert next_share((0.5, 1.0), {1.0: 0.2, 0.5: 2.0}, 6) is None


def test_the_curve_meets_what_was_measured_and_is_level_beyond() -> None:
    losses = measured([steady, cliff, steady])
    curves = LossCurves.of(losses)
    for axis in range(3):
        scales = [s for s in losses if s == along(axis, s.as_tuple()[axis])]
        added = curves.value(points(scales))[:, axis]
        assert added == pytest.approx([losses[s] - losses[BASE] for s in scales], abs=1e-12)
    assert curves.value(np.array([[0.1, 0.1, 0.1]])) == pytest.approx(curves.value(np.array([[0.32, 0.32, 0.32]])))


def test_a_dimension_that_cannot_vary_adds_nothing() -> None:
    curves = LossCurves.of({BASE: 0.2, Scale(0.5): 1.0})
    assert curves.value(np.array([[0.5, 0.5, 0.5]])).tolist() == [[pytest.approx(0.8), 0.0, 0.0]]


@given(st.dictionaries(st.sampled_from(SHARES[:-1]), st.floats(0.0, 3.0), min_size=1, max_size=7))
def test_a_noisy_curve_falls_as_the_share_grows_and_has_exact_gradients(noisy: dict[float, float]) -> None:
    curves = LossCurves.of({BASE: 0.2} | {along(1, share): loss for share, loss in noisy.items()})
    x = np.ones((40, 3))
    x[:, 1] = np.linspace(0.33, 0.999, 40)
    assert np.all(np.diff(curves.value(x)[:, 1]) <= 1e-12)
    beside = x.astype(complex)
    beside[:, 1] += 1e-20j
    slope = curves.value(beside)[:, 1].imag / 1e-20
    near = [curves.value(x + np.array([0, h, 0]))[:, 1] for h in (1e-6, -1e-6)]
    assert slope == pytest.approx((near[0] - near[1]) / 2e-6, abs=1e-3)


def truth(scale: Scale) -> float:
    """A network whose training leaves a half of every nat, and whose depth has a cliff."""
    d, w, r = scale.as_tuple()
    added = sum(0.5 * np.log1p(loss - 0.2) for loss in (cliff(d), steady(w), steady(r)))
    return float(0.93 - 0.25 * np.log1p(added))


def test_a_cliff_that_no_probe_saw_is_foretold_by_the_curves() -> None:
    probes = [BASE, Scale(0.32), Scale(1, 0.4), Scale(1, 1, 0.5), Scale(0.7, 0.7, 0.75), Scale(0.5, 0.5, 0.6)]
    observed = [truth(s) for s in probes]
    other = [Scale(d, w, r) for d, w, r in itertools.product((0.84, 0.92), (0.6, 1.0), (0.7, 1.0))]
    wanted = np.array([truth(s) for s in other])
    curves = LossCurves.of(measured([cliff, steady, steady]))
    told = fit_accuracy(probes, observed, [0.002] * 6, curves=curves)
    blind = fit_accuracy(probes, observed, [0.002] * 6)
    assert told.name == "loss-curves"
    error, without = (np.abs(fit.predict(other)[0] - wanted).mean() for fit in (told, blind))
    assert error < 0.006
    assert without > 3 * error


def test_the_form_needs_its_curves() -> None:
    probes = [BASE, Scale(0.5), Scale(1, 0.5), Scale(1, 1, 0.5)]
    with pytest.raises(UsageError, match="loss-curves needs the losses before training"):
        fit_accuracy(probes, [truth(s) for s in probes], form="loss-curves")
    assert "loss-curves" not in {c.name for c in fit_accuracy(probes, [truth(s) for s in probes]).candidates}
