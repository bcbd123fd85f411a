"""What the solve stage makes of a journal: shares of the base, margins where nothing was measured, misses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mobileprune.budget import budgets_key, parse_budgets
from mobileprune.errors import MobilepruneError
from mobileprune.run import Run, write_json
from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.recovery import USUAL
from mobileprune.stages.accuracies import accuracy_samples, probe_epochs, result_epochs, start_of
from mobileprune.stages.problem import Problem, careful_rounds
from mobileprune.stages.records import Costs, base_latency_ms, latency_samples, probe_limit, scale_key
from mobileprune.stages.solve import describe_solution, plan_probes, set_budgets, solve_run, worth_measuring

HALF = Scale(0.5)


def measurement(ms: float, error: float, origin: str) -> dict[str, Any]:
    return {"latency_ms": ms, "low_ms": ms * (1 - error), "high_ms": ms * (1 + error), "origin": origin}


def append_latency(
    run: Run, scale: Scale, ms: float, error: float, base_ms: float, size_bytes: int = 1000, rounds: int = 0
) -> None:
    """As if ``scale`` and the base had been timed in the same rounds."""
    origin = "measured" if run.asked["device"] == "host" else "predicted"
    share = ms / base_ms
    run.journal.append(
        "latency", scale_key(scale), scale=scale.as_tuple(), size_bytes=size_bytes, base_ms=base_ms,
        share=(share, share * (1 - error), share * (1 + error)),
        measurement={"round_minima_ms": [ms] * rounds, **measurement(ms, error, origin)},
    )  # fmt: skip


def run_on(path: Path, device: str, ms: float, base_ms: float = 100.0, error: float = 0.04) -> Run:
    """A run whose base and half-depth scale were timed in the same rounds."""
    run = Run.create(path, {"device": device})
    for scale, found in ((BASE, base_ms), (HALF, ms)):
        append_latency(run, scale, found, error, base_ms)
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
        assert problem.limit(problem.budgets[0]) == pytest.approx(50.0 * 0.9)
        assert problem.missed(HALF) is missed


def test_latencies_are_shares_of_the_base_in_the_same_rounds(tmp_path: Path) -> None:
    run = run_on(tmp_path / "run", "host", 40.0)
    # Later the machine is half as fast; only the scale is measured again, beside the base.
    append_latency(run, HALF, 84.0, 0.04, 200.0)
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


def grid_run(path: Path, probes: int = 8) -> Run:
    """Nine scales of depth; latency and accuracy grow with it; the base, d=0.2 and d=0.6 were timed, three probed."""
    training = {"probe_epochs": 4, "result_epochs": 16}
    run = Run.create(
        path, {"device": "host", "confidence": 0.8, "probes": probes, "training": training, "measuring": {"rounds": 7}}
    )
    lattice = Lattice(tuple(round(0.1 * i, 1) for i in range(2, 11)), (1.0,), (1.0,))
    table = {
        scale_key(s): {
            "macs": 1,
            "params": round(10 * s.depth),
            "memory": 1,
            "covered": True,
            "features": {"macs": s.depth},
        }
        for s in lattice
    }
    (path / "profile").mkdir()
    write_json(path / "profile" / "lattice.json", Costs(lattice, table).to_dict())
    for depth, ms in ((1.0, 100.0), (0.2, 20.0), (0.6, 60.0)):
        timed(run, depth, ms)
    run.journal.append("base", "score", validation={"accuracy": 0.9, "std": 0.005})
    for depth, accuracy in ((0.2, 0.5), (0.6, 0.8)):
        scale = Scale(depth)
        run.journal.append(
            "probe", scale_key(scale), scale=scale.as_tuple(), validation={"accuracy": accuracy, "std": 0.005}
        )
    return run


@pytest.mark.parametrize(
    ("added", "least"),
    [
        ([0.0] * 10, 0.2),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 9, 9, 9, 9, 9], 0.5),  # five blocks together add less than twice log(2)
        ([5.0] * 10, 0.9),  # one block is already too much: one may go
    ],
)
def test_depths_that_hardly_recover_are_not_probed(added: list[float], least: float, tmp_path: Path) -> None:
    def planned(path: Path, ranked: bool) -> list[Scale]:
        run = grid_run(path)
        run.journal.append("data", "fingerprint", classes=["cat", "dog"])
        if ranked:
            run.journal.append("ranking", "blocks", loss_increase={str(i): loss for i, loss in enumerate(added)})
        return plan_probes(run, parse_budgets(["40%"]))

    free, found = planned(tmp_path / "free", False), planned(tmp_path / "ranked", True)
    assert min(scale.depth for scale in free) < 0.5
    assert found == free if least == 0.2 else min(scale.depth for scale in found) >= least


def timed(run: Run, depth: float, ms: float) -> None:
    append_latency(run, Scale(depth), ms, 0.01, 100.0, size_bytes=1)


def test_a_measured_scale_takes_what_was_measured(tmp_path: Path) -> None:
    run = grid_run(tmp_path / "run")
    timed(run, 0.5, 80.0)  # far above the line that the others lie on
    mean, std = Problem(run, parse_budgets(["50%"])).constraints[0].predict([Scale(0.5), BASE])
    assert mean == pytest.approx([80.0, 100.0])
    # By the rounds 0.4 and 0.5 ms; a measurement repeats to 1.2 % at the best.
    assert std == pytest.approx([math.hypot(0.4, 0.012 * 80), math.hypot(0.5, 0.012 * 100)])


def test_what_may_keep_the_budget_is_measured_until_a_measured_one_is_the_best(tmp_path: Path) -> None:
    run, budgets = grid_run(tmp_path / "run"), parse_budgets(["55%"])
    waiting = worth_measuring(run, budgets, 3)
    assert Scale(0.5) in waiting
    assert Scale(0.6) not in waiting  # measured, and over the budget
    assert all(s.depth < 0.6 for s in waiting)
    timed(run, 0.5, 51.0)
    assert worth_measuring(run, budgets, 3) == []
    assert solve_run(run, budgets, among={Scale(0.2), Scale(0.5)}).scale == Scale(0.5)


def test_what_lies_at_the_budget_is_measured_again_in_more_rounds(tmp_path: Path) -> None:
    run, budgets = grid_run(tmp_path / "run"), parse_budgets(["55%"])

    def measured_in(rounds: int, ms: float, error: float) -> None:
        append_latency(run, Scale(0.5), ms, error, 100.0, rounds=rounds)

    measured_in(7, 54.0, 0.04)  # 51.8 to 56.2: nobody knows
    assert Problem(run, budgets).undecided(Scale(0.5))
    assert worth_measuring(run, budgets, 1) == [Scale(0.5)]
    measured_in(7, 54.0, 0.01)  # 53.5 to 54.5
    assert not Problem(run, budgets).undecided(Scale(0.5))
    measured_in(careful_rounds(run), 53.8, 0.04)  # that is all that measuring tells
    assert not Problem(run, budgets).undecided(Scale(0.5))
    assert worth_measuring(run, budgets, 1) == []
    measured_in(7, 58.0, 0.04)  # 55.7 at the least
    assert Problem(run, budgets).missed(Scale(0.5)) and not Problem(run, budgets).undecided(Scale(0.5))


def test_a_measured_miss_is_not_chosen(tmp_path: Path) -> None:
    run, budgets = grid_run(tmp_path / "run"), parse_budgets(["55%"])
    timed(run, 0.5, 58.0)
    assert Scale(0.5) not in worth_measuring(run, budgets, 9)
    assert solve_run(run, budgets, among={Scale(0.2), Scale(0.5)}).scale == Scale(0.2)


def probed(run: Run, depth: float, accuracy: float, parent: float = 1.0) -> None:
    scale, start = Scale(depth), Scale(parent).as_tuple()
    validation = {"accuracy": accuracy, "std": 0.005}
    run.journal.append("probe", scale_key(scale), scale=scale.as_tuple(), parent=start, validation=validation)


def test_a_later_question_may_add_two_probes(tmp_path: Path) -> None:
    run = grid_run(tmp_path / "run", probes=2)
    assert probe_limit(run, "latency<=55%") == 4  # the run's two are there, and this question is new
    set_budgets(run, ["30%"])
    assert probe_limit(run) == 4
    set_budgets(run, ["30%"])  # again: the same one
    probed(run, 0.3, 0.62)
    assert probe_limit(run) == 4
    probed(run, 0.4, 0.7)
    assert plan_probes(run, parse_budgets(["30%"])) == []
    set_budgets(run, ["50%"])
    assert probe_limit(run) == 6
    following = plan_probes(run, parse_budgets(["50%"]))
    assert len(following) <= 1 and not {s.depth for s in following} & {0.2, 0.3, 0.4, 0.6}
    run.journal.append("answer", budgets_key(parse_budgets(["50%"])), scale=(0.4, 1.0, 1.0))
    assert plan_probes(run, parse_budgets(["50%"])) == [] and probe_limit(run) == 4  # an answer needs no more


def test_the_first_question_has_the_probes_asked_for(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"device": "host", "probes": 8})
    assert probe_limit(run, "latency<=50%") == 8
    set_budgets(run, ["50%"])
    probed(run, 0.5, 0.7)
    assert probe_limit(run) == 8


def test_accuracies_are_told_with_the_trainings_behind_them(tmp_path: Path) -> None:
    run = grid_run(tmp_path / "run")
    probed(run, 0.4, 0.7, parent=0.6)
    for depth, parent in ((0.4, 0.4), (0.3, 0.4)):
        scale, start = Scale(depth), Scale(parent)
        run.journal.append("pruned", scale_key(scale), scale=scale.as_tuple(), parent=start.as_tuple())
        validation = {"accuracy": 0.75, "std": 0.005}
        run.journal.append("finetuned", scale_key(scale), scale=scale.as_tuple(), validation=validation)
    found = [(s.scale.depth, s.epochs) for s in accuracy_samples(run)]
    # A result takes four times the epochs of a probe; the last probe comes from another one.
    assert found == [(1.0, math.inf), (0.2, 1.0), (0.4, 2.0), (0.6, 1.0), (0.4, 6.0), (0.3, 6.0)]
    assert [s.scale.depth for s in accuracy_samples(run, without=Scale(0.4))] == [1.0, 0.2, 0.4, 0.6, 0.3]
    assert (start_of(run, Scale(0.5)), start_of(run, Scale(0.4))) == (Scale(0.6), Scale(0.4))
    assert result_epochs(run, [Scale(0.5), Scale(0.9), Scale(0.4), Scale(0.3)]).tolist() == [5.0, 4.0, 6.0, 6.0]
    assert (probe_epochs(run, Scale(0.4)), probe_epochs(run, BASE)) == (3.0, 1.0)


def test_probes_on_a_part_of_the_images_are_shorter(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"training": {"probe_epochs": 4, "result_epochs": 16, "probe_images": 250}})
    run.journal.append("data", "fingerprint", train=1000)
    assert result_epochs(run, [Scale(0.5)]).tolist() == [16.0]


def test_a_result_is_expected_to_be_better_than_a_probe(tmp_path: Path) -> None:
    run, budgets = grid_run(tmp_path / "run"), parse_budgets(["55%"])
    problem, scale = Problem(run, budgets), Scale(0.5)
    mean, std = problem.expected(scale)
    predicted = problem.accuracy.estimate([scale])[0][0]
    # All probes were trained alike: the exponent is the usual one, and a result here is trained five times as long.
    assert 0.9 - mean == pytest.approx((0.9 - predicted) * 5.0**-USUAL) and std > 0
    lines = describe_solution(run, solve_run(run, budgets), budgets)
    assert any("expected after the result's 16 epochs" in line for line in lines)


def test_the_best_is_the_one_whose_result_should_be(tmp_path: Path) -> None:
    run, budgets = grid_run(tmp_path / "run", probes=9), parse_budgets(["70%"])
    for depth, accuracy, parent in ((0.8, 0.84, 1.0), (0.7, 0.80, 0.8), (0.5, 0.798, 0.7)):
        probed(run, depth, accuracy, parent)
    problem = Problem(run, budgets)
    scales = [Scale(0.7), Scale(0.6), Scale(0.5)]
    assert result_epochs(run, scales).tolist() == [6.0, 5.0, 7.0]
    means, stds = problem.results.estimate(scales)
    assert list(zip(means, stds, strict=True)) == [pytest.approx(problem.expected(scale)) for scale in scales]
    solution = solve_run(run, budgets)
    best = max((s for s in problem.costs.candidates if s.depth <= 0.7), key=lambda s: problem.expected(s)[0])
    assert (solution.scale, solution.accuracy.mean) == (best, pytest.approx(problem.expected(best)[0]))


def test_too_few_probes_name_the_command(tmp_path: Path) -> None:
    run = grid_run(tmp_path / "run")
    run.journal.entries = [e for e in run.journal.entries if (e["kind"], e["key"]) != ("probe", scale_key(Scale(0.6)))]
    with pytest.raises(MobilepruneError, match=r"has 1 probe, and a fit needs 2; run `mobileprune probe .*run`"):
        solve_run(run, parse_budgets(["50%"]))


def test_a_file_that_was_exported_takes_what_it_takes(tmp_path: Path) -> None:
    run = grid_run(tmp_path / "run")
    append_latency(run, Scale(0.5), 50.0, 0.01, 100.0, size_bytes=2_000_000)
    problem = Problem(run, parse_budgets(["1.9MB"]))
    mean, std = problem.constraints[0].predict([Scale(0.5), Scale(0.3)])
    assert (mean[0], std[0]) == (2.0, 0.0)
    assert std[1] > 0  # by a fit that the files do not lie on
    assert Scale(0.5) not in problem.candidates and Scale(0.3) in problem.candidates


def test_a_scale_that_misses_the_budget_is_neither_chosen_nor_probed_but_on_the_frontier(tmp_path: Path) -> None:
    run, budgets = grid_run(tmp_path / "run"), parse_budgets(["55%"])
    timed(run, 0.5, 57.0)
    solution = solve_run(run, budgets)
    assert solution.scale == Scale(0.4) and plan_probes(run, budgets) != [Scale(0.5)]
    assert Scale(0.6) in {point.scale for point in solution.frontier}
