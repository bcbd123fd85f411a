"""The search on published tables of real networks on real phones (read where they stand beside the project)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mobileprune.scale import BASE
from mobileprune.search.accuracy import fit_accuracy
from mobileprune.search.latency import fit_latency
from mobileprune.search.probes import initial_probes

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "../shared/data/published/phone_latency.csv"
pytestmark = pytest.mark.skipif(not TABLE.exists(), reason=f"the published grids are not at {TABLE}")


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    spec = importlib.util.spec_from_file_location("replay_search", ROOT / "tools/replay_search.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["replay_search"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_grids_are_read_with_their_known_slips_mended(replay: ModuleType) -> None:
    grids = replay.load(TABLE)
    phones = [g for g in grids if g.group == "phones"]
    assert len(phones) == 8 and len(grids) >= 50
    assert all(len(g.scales) in (16, 20, 25) for g in grids)
    assert all(0.3 < a < 0.8 for g in grids for a in g.accuracy.values())


@pytest.mark.parametrize("probes", [5, 6, 8])
def test_eighty_percent_intervals_hold_seventy_to_ninety_percent(replay: ModuleType, probes: int) -> None:
    """Over all networks, designed and random probes; unprobed scales only, as published."""
    tables = {(g.name.split()[0], g.name.split()[1], len(g.scales)): g for g in replay.load(TABLE)}
    held: list[bool] = []
    for grid in tables.values():
        rng = np.random.default_rng(7)
        rest = [s for s in grid.scales if s != BASE]
        designs = [[BASE, *initial_probes(grid.lattice, probes - 1)]]
        designs += [[BASE, *(rest[i] for i in rng.permutation(len(rest))[: probes - 1])] for _ in range(3)]
        for design in designs:
            if len({s.width for s in design}) == 1 or len({s.resolution for s in design}) == 1:
                continue
            fitted = fit_accuracy(design, [grid.accuracy[s] for s in design], [0.0] * probes)
            others = [s for s in rest if s not in design]
            low, high = fitted.interval(others, 0.8)
            held += [lo <= grid.accuracy[s] <= hi for s, lo, hi in zip(others, low, high, strict=True)]
    assert 0.70 <= np.mean(held) <= 0.90


def test_six_probes_find_the_best_scale(replay: ModuleType) -> None:
    grid = next(g for g in replay.load(TABLE) if g.name.startswith("mobilenet_v1 float32 Pixel 2 tflite"))
    tally = replay.Tally([], [])
    for budget in grid.budgets()[::4]:
        exact = replay.counted_constraint("latency", budget, "ms", grid.latency.__getitem__)
        tally.add(grid, budget, replay.search(grid, grid.scales, exact, 0.5, "auto", most=6)[6])
    assert np.mean(tally.regrets) <= 0.05
    assert max(tally.regrets) <= 1.0


def test_latency_on_cpus_is_predicted_from_eight_samples(replay: ModuleType) -> None:
    errors = []
    for grid in replay.load(TABLE):
        if grid.group != "phones" or "cpu" not in grid.name or "tensorflow-mobile" in grid.name:
            continue
        sampled = [BASE, *initial_probes(grid.lattice, 7)]
        fitted = fit_latency(sampled, [grid.latency[s] for s in sampled])
        others = [s for s in grid.scales if s not in sampled]
        truth = np.array([grid.latency[s] for s in others])
        errors.append(float(np.abs(np.log(fitted.predict(others)[0] / truth)).mean()))
    assert len(errors) == 4
    assert np.mean(errors) < 0.06
