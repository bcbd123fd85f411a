"""The probe plan: where it starts, which probe comes next, and from whose weights."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.accuracy import AccuracySurrogate, fit_accuracy
from mobileprune.search.probes import initial_probes, next_probe, parent_of, rate_probes
from mobileprune.search.solver import Constraint, counted_constraint, solve, survey

LATTICE = Lattice(
    tuple(k / 9 for k in range(3, 10)), tuple(k / 16 for k in range(4, 17)), tuple(k / 32 for k in range(16, 33, 2))
)


def cost(scales: Sequence[Scale]) -> NDArray:
    return np.array([(0.1 + 0.9 * s.depth) * s.width**1.5 * s.resolution**2 for s in scales])


def accuracy_of(s: Scale) -> float:
    return 0.98 - 0.02 * s.depth**-0.7 - 0.03 * s.width**-0.6 - 0.03 * s.resolution**-1.2


def precedes(a: Scale, b: Scale) -> bool:
    """Whether ``a`` is at least ``b`` in every dimension."""
    return all(x >= y - 1e-9 for x, y in zip(a.as_tuple(), b.as_tuple(), strict=True))


@given(budget=st.floats(0.15, 0.9), n=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_probes_lie_around_the_budget_and_ancestors_come_first(budget: float, n: int) -> None:
    probes = initial_probes(LATTICE, n, cost, budget)
    assert len(probes) == len(set(probes)) == n
    assert BASE not in probes and set(probes) <= set(LATTICE)
    for i, probe in enumerate(probes):
        assert not any(precedes(later, probe) for later in probes[i + 1 :])
    values = cost(probes)
    near = (values > 0.5 * budget**1.6) & (values < 1.5 * budget)
    assert near.sum() >= (min(n, 3) if budget > 0.45 else 1)  # below that, cutting the depth alone does not reach it


def test_the_first_probes_see_every_axis_alone_and_together_in_a_chain() -> None:
    probes = initial_probes(LATTICE, 6, cost, 0.5)
    cut = [tuple(v < 1.0 for v in p.as_tuple()) for p in probes]
    for axis in range(3):
        alone = tuple(i == axis for i in range(3))
        assert alone in cut
    together = [p for p, c in zip(probes, cut, strict=True) if all(c)]
    assert len(together) == 3
    for parent, child in itertools.pairwise(together):
        assert parent_of(child, probes[: probes.index(child)]) == parent
    more = initial_probes(LATTICE, 9, cost, 0.5)
    assert any(sum(v < 1.0 for v in p.as_tuple()) == 2 for p in more)


def test_without_a_budget_the_corners_are_probed() -> None:
    probes = initial_probes(LATTICE, 4)
    assert set(probes) == {Scale(3 / 9), Scale(1, 0.25), Scale(1, 1, 0.5), LATTICE.smallest}


def test_axes_without_room_are_left_out() -> None:
    flat = Lattice((1.0,), LATTICE.widths, LATTICE.resolutions)
    for n in (3, 6, 9):
        probes = initial_probes(flat, n, cost, 0.5)
        assert len(set(probes)) == n
        assert {p.depth for p in probes} == {1.0}
    line = Lattice((1.0,), (1.0,), (0.5, 0.75, 1.0))
    assert initial_probes(line, 6, cost, 0.5) == [Scale(1, 1, 0.75), Scale(1, 1, 0.5)]
    assert initial_probes(Lattice((1.0,), (1.0,), (1.0,)), 4) == []


def lossy(scales: Sequence[Scale]) -> NDArray:
    """Nats before training: depth is dear below a half, width at once, resolution cheap."""
    return np.array([2.0 * (s.depth < 0.5) + 2.0 * (1 - s.width) + 0.5 * (1 - s.resolution) for s in scales])


def test_with_losses_the_cheapest_ways_to_the_budget_are_probed() -> None:
    probes = initial_probes(LATTICE, 6, cost, 0.5, lossy)
    alone = [p for p in probes if sum(v < 1.0 for v in p.as_tuple()) == 1]
    assert {next(i for i, v in enumerate(p.as_tuple()) if v < 1.0) for p in alone} == {0, 1, 2}
    found = {limit: [p for p in probes if cost([p])[0] <= 0.5**limit] for limit in (0.5, 1.0, 1.6)}
    for within, fits in found.items():
        best = min(lossy([s])[0] for s in LATTICE if s != BASE and cost([s])[0] <= 0.5**within)
        assert min(lossy(fits)) == pytest.approx(best)


@given(budget=st.floats(0.001, 0.999), n=st.integers(1, 12))
def test_with_losses_there_are_as_many_probes_as_asked_for(budget: float, n: int) -> None:
    probes = initial_probes(LATTICE, n, cost, budget, lossy)
    assert len(set(probes)) == n and BASE not in probes and set(probes) <= set(LATTICE)


def test_the_plan_is_deterministic() -> None:
    assert initial_probes(LATTICE, 9, cost, 0.4) == initial_probes(LATTICE, 9, cost, 0.4)


def test_a_probe_starts_from_its_nearest_ancestor() -> None:
    done = [Scale(1, 0.75, 1), Scale(1, 0.75, 0.75), Scale(0.5, 1, 1)]
    assert parent_of(Scale(0.8, 0.5, 0.75), done) == Scale(1, 0.75, 0.75)
    assert parent_of(Scale(0.5, 0.9, 1), done) == Scale(0.5, 1, 1)
    assert parent_of(Scale(0.9, 1, 1), done) == BASE
    assert parent_of(Scale(0.5, 1, 1), done) == BASE  # not its own parent
    assert parent_of(Scale(0.3, 0.3, 0.3), []) == BASE
    assert parent_of(BASE, done) == BASE


@given(st.lists(st.sampled_from(list(LATTICE)), max_size=8), st.sampled_from(list(LATTICE)))
@settings(max_examples=50, deadline=None)
def test_a_parent_is_an_ancestor_with_none_between(done: list[Scale], probe: Scale) -> None:
    parent = parent_of(probe, done)
    assert precedes(parent, probe)
    between = [s for s in done if s not in (probe, parent) and precedes(parent, s) and precedes(s, probe)]
    assert not between


def test_probing_on_improves_the_choice_until_no_probe_is_worth_it() -> None:
    budget = counted_constraint("ms", 0.5, "ms", lambda s: float(cost([s])[0]))
    best = max((s for s in LATTICE if cost([s])[0] <= 0.5), key=accuracy_of)
    probes = [BASE, *initial_probes(LATTICE, 4, cost, 0.5)]
    asked = 0
    while asked < 12:
        accuracy = fit_accuracy(probes, [accuracy_of(s) for s in probes], [0.0] * len(probes))
        probe = next_probe(accuracy, [budget], LATTICE, probes)
        if probe is None:
            break
        assert probe not in probes and cost([probe])[0] <= 0.5
        probes.append(probe)
        asked += 1
    chosen = solve(accuracy, [budget], [*LATTICE, *probes]).scale
    assert accuracy_of(best) - accuracy_of(chosen) < 0.001
    assert next_probe(accuracy, [budget], LATTICE, probes, threshold=1.0) is None


def test_a_probe_promises_more_where_the_decision_is_open() -> None:
    probes = [BASE, *initial_probes(LATTICE, 5, cost, 0.5)]
    values = [accuracy_of(s) for s in probes]
    budget = counted_constraint("ms", 0.5, "ms", lambda s: float(cost([s])[0]))
    quiet, loud = (fit_accuracy(probes, values, [std] * len(probes)) for std in (0.001, 0.05))
    rated = [rate_probes(a, survey(a, [budget], LATTICE), probes) for a in (quiet, loud)]
    assert rated[0] is not None and rated[1] is not None
    assert rated[0][1] > rated[1][1] >= 0.0  # a noisy probe tells less


def unprobed_choice(noise: float) -> tuple[list[Scale], Constraint, AccuracySurrogate, Scale]:
    """Probes of that standard deviation, a budget, what they tell of the accuracy, and the choice, not one of them."""
    probes = [BASE, *initial_probes(LATTICE, 5, cost, 0.5)]
    budget = counted_constraint("ms", 0.5, "ms", lambda s: float(cost([s])[0]))
    accuracy = fit_accuracy(probes, [accuracy_of(s) for s in probes], [noise] * len(probes))
    choice = solve(accuracy, [budget], LATTICE).scale
    assert choice not in probes
    return probes, budget, accuracy, choice


def test_a_choice_that_gains_by_its_own_probe_is_probed_although_that_tells_little() -> None:
    probes, budget, accuracy, choice = unprobed_choice(0.05)

    def asked(gain: float, threshold: float) -> Scale | None:
        def of(scales: Sequence[Scale]) -> np.ndarray:
            return np.where([s == choice for s in scales], gain, 0.0)

        return next_probe(accuracy, [budget], LATTICE, probes, threshold=threshold, gain=of)

    least = rate_probes(accuracy, survey(accuracy, [budget], LATTICE), probes)
    assert least is not None and least[1] < 0.02
    assert asked(0.0, threshold=0.02) is None
    assert asked(0.03, threshold=0.02) == choice
    assert asked(0.01, threshold=0.02) is None


def test_the_last_probe_is_of_the_choice_though_another_would_tell_more() -> None:
    probes, budget, accuracy, choice = unprobed_choice(0.001)

    def asked(last: bool, done: Sequence[Scale]) -> Scale | None:
        def other(scales: Sequence[Scale]) -> np.ndarray:
            return np.where([s == choice for s in scales], 0.001, 0.05)

        return next_probe(accuracy, [budget], LATTICE, done, gain=other, last=last)

    assert asked(False, probes) not in (None, choice)
    assert asked(True, probes) == choice
    assert asked(True, [*probes, choice]) not in (None, choice)  # it is probed already


def test_nothing_is_left_to_probe_when_all_feasible_scales_are_done() -> None:
    small = Lattice((1.0,), (0.5, 1.0), (0.5, 1.0))
    probes = list(small)
    accuracy = fit_accuracy(probes, [accuracy_of(s) for s in probes])
    budget = counted_constraint("ms", 0.5, "ms", lambda s: float(cost([s])[0]))
    assert rate_probes(accuracy, survey(accuracy, [budget], small), probes) is None
    nothing = counted_constraint("ms", 0.001, "ms", lambda s: float(cost([s])[0]))
    assert rate_probes(accuracy, survey(accuracy, [nothing], small)) is None


@pytest.mark.parametrize("budget", [0.02, 0.999])
def test_extreme_budgets_still_give_probes_on_the_lattice(budget: float) -> None:
    probes = initial_probes(LATTICE, 6, cost, budget)
    assert len(probes) == 6 and set(probes) <= set(LATTICE)
