"""Before a probe is chosen by what it promises, the scales that might be the best are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_solve_stage import grid_run, probed, timed

from device_profiles.errors import DeviceError
from mobileprune.budget import Budget, budgets_key, parse_budgets
from mobileprune.progress import Quiet
from mobileprune.scale import BASE, Scale
from mobileprune.search.curves import LossCurves, along
from mobileprune.stages import candidates, losses, probe
from mobileprune.stages.context import Context
from mobileprune.stages.solve import designed_probes, set_budgets, worth_hoping, worth_measuring

BUDGETS = parse_budgets(["55%"])


def told(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(ctx.display, "say", lambda text, style="": said.append(text))
    return said


def designed(path: Path, slope: float = 0.4) -> Context:
    """A run whose design is probed, and whose plan may take more; accuracy rises with depth by ``slope``."""
    ctx = Context(grid_run(path / "run", probes=9), Quiet())
    set_budgets(ctx.run, ["55%"])
    while waiting := designed_probes(ctx.run, BUDGETS):
        for scale in waiting:
            probed(ctx.run, scale.depth, 0.9 - slope * (1.0 - scale.depth))
    return ctx


@pytest.fixture
def begun(tmp_path: Path) -> Context:
    return designed(tmp_path)


def test_a_hopeful_scale_is_measured_although_a_measured_one_is_expected_to_be_better(tmp_path: Path) -> None:
    """Where depth hardly matters a shallower network may be as good; where it does there is no hope for one."""
    steep, flat = designed(tmp_path / "steep").run, designed(tmp_path / "flat", 0.01).run
    for run in (steep, flat):
        timed(run, 0.5, 51.0)
        assert worth_measuring(run, BUDGETS, 9) == []
    assert worth_hoping(steep, BUDGETS, 9) == []
    hopeful = worth_hoping(run, BUDGETS, 9)
    assert Scale(0.4) in hopeful and not {0.2, 0.5, 0.6, 1.0} & {scale.depth for scale in hopeful}
    assert all(scale.depth < 0.6 for scale in hopeful)  # the others cannot keep the budget
    assert worth_hoping(run, BUDGETS, 1) == hopeful[:1]


def test_what_might_be_the_best_is_measured_before_it_is_probed(
    begun: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = worth_hoping(begun.run, BUDGETS, 3)
    assert Scale(0.5) in wanted

    asked: list[list[Scale]] = []

    def measured(ctx: Context, scales: Sequence[Scale], budgets: Sequence[Budget]) -> None:
        asked.append(list(scales))
        for scale in scales:
            timed(ctx.run, scale.depth, 70.0)  # every one of them is over the budget

    monkeypatch.setattr(candidates, "measure_candidates", measured)
    planned = probe._plan(begun, BUDGETS)
    assert asked[0] == wanted
    assert all(begun.run.journal.get("latency", f"d{s.depth:.4f}-w1.0000-r1.0000") for s in wanted)
    assert not set(planned) & set(wanted)


def test_the_choice_is_measured_before_a_probe_is_planned(begun: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is measured one after the other d=0.5 misses: the plan knows that the choice is another."""
    monkeypatch.setattr(candidates, "_HOPES", 0)
    monkeypatch.setattr(candidates, "_TOGETHER", 1)
    found = {0.5: 58.0, 0.4: 57.0, 0.3: 33.0}
    asked: list[float] = []

    def measured(ctx: Context, scales: Sequence[Scale], budgets: Sequence[Budget]) -> None:
        asked.extend(scale.depth for scale in scales)
        for scale in scales:
            timed(ctx.run, scale.depth, found[scale.depth])

    monkeypatch.setattr(candidates, "measure_candidates", measured)
    planned = probe._plan(begun, BUDGETS)
    assert asked == [0.5, 0.4, 0.3]
    assert worth_measuring(begun.run, BUDGETS, 1) == []
    assert not {0.5, 0.4} & {scale.depth for scale in planned}


def test_probes_go_on_without_the_device_and_say_so(begun: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise DeviceError("no phone is connected")

    monkeypatch.setattr(candidates, "measure_candidates", gone)
    said = told(begun, monkeypatch)
    probe._plan(begun, BUDGETS)
    assert said == ["probes are chosen by the fitted latency: no phone is connected"]


@pytest.mark.parametrize(
    ("budget", "probes", "answered"),
    [("300MMACs", 2, False), ("55%", 9, False), ("55%", 2, True)],
    ids=["what is counted is known", "the design is not done", "the answer needs no more probes"],
)
def test_what_need_not_be_measured_is_not(
    budget: str, probes: int, answered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = Context(grid_run(tmp_path / "run", probes=probes), Quiet())
    monkeypatch.setattr(candidates, "measure_candidates", lambda *_: pytest.fail("nothing need be measured"))
    set_budgets(ctx.run, [budget])
    if answered:
        ctx.run.journal.append("answer", budgets_key(BUDGETS), scale=(0.2, 1.0, 1.0))
    probe._plan(ctx, parse_budgets([budget]))


def test_the_hardest_hit_is_the_one_whose_cut_cost_the_most(begun: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = [along(0, 0.5), along(1, 0.5), along(2, 0.5)]
    curves = LossCurves.of({BASE: 0.2, scales[0]: 0.3, scales[1]: 2.0, scales[2]: 1.0})
    monkeypatch.setattr(losses, "loss_curves", lambda _: curves)
    assert losses.hardest_hit(begun.run, scales) == scales[1]
    monkeypatch.setattr(losses, "loss_curves", lambda _: None)
    assert losses.hardest_hit(begun.run, scales) == scales[0]
