"""``mobileprune solve`` on anyone's tables, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Call
from test_cli_errors import one_sentence

POINTS = [(w, r) for w in (0.25, 0.5, 0.75, 1.0) for r in (96, 128, 160, 192, 224)]


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """Accuracy 80 - 8 / w^0.6 - ... falls smoothly; latency is 40 w^1.5 (r/224)^2 ms."""
    accuracy, latency = tmp_path / "acc.csv", tmp_path / "lat.csv"
    rows = [f"{w},{r},{80 - 6 * w**-0.6 - 4 * (r / 224) ** -1.3:.3f}" for w, r in POINTS[::2]]
    accuracy.write_text("\n".join(["width,resolution,accuracy", *rows]) + "\n")
    rows = [f"{w},{r},{40 * w**1.5 * (r / 224) ** 2:.3f}" for w, r in POINTS]
    latency.write_text("\n".join(["width,resolution,latency_ms", *rows]) + "\n")
    return accuracy, latency


def best(budget: float) -> tuple[float, int]:
    kept = [(w, r) for w, r in POINTS if 40 * w**1.5 * (r / 224) ** 2 <= budget]
    return max(kept, key=lambda p: 80 - 6 * p[0] ** -0.6 - 4 * (p[1] / 224) ** -1.3)


@pytest.mark.parametrize("budget", [12.0, 20.0, 30.0])
def test_the_best_row_is_chosen(call: Call, tables: tuple[Path, Path], budget: float) -> None:
    done = call("solve", "--accuracy", tables[0], "--latency", tables[1], "--budget", f"{budget}ms", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["scale"]["width"], answer["scale"]["resolution"]) == best(budget)
    assert answer["latency_ms"]["measured"] <= budget
    assert answer["kkt_residual"] < 1e-6
    assert answer["frontier"]


def test_in_words_and_with_the_paper_s_form(call: Call, tables: tuple[Path, Path]) -> None:
    solve = ["solve", "--accuracy", tables[0], "--latency", tables[1], "--budget", "20ms"]
    assert "ms measured; limit 20 ms" in call(*solve).stdout
    paper = json.loads(call(*solve, "--surrogate", "polynomial", "--json").stdout)
    assert paper["surrogate"]["form"].startswith("polynomial")
    assert paper["surrogate"]["rank"] >= 1


def test_what_is_wrong_is_said(call: Call, tables: tuple[Path, Path], tmp_path: Path) -> None:
    assert "name a run folder, or give both" in one_sentence(call("solve", "--accuracy", tables[0]), 2)
    both = ["--accuracy", tables[0], "--latency", tables[1]]
    assert "solve one or the other" in one_sentence(call("solve", tmp_path, *both), 2)
    assert "smallest reachable" in one_sentence(call("solve", *both, "--budget", "0.1ms"), 2)
    tables[0].write_text("width,accuracy\n1,70\n0.5,lots\n")
    message = one_sentence(call("solve", *both, "--budget", "20ms"), 2)
    assert "acc.csv" in message
    assert "lots" in message
