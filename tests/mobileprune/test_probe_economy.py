"""What the table of probe economy says, from rows whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BASE, A, B, C = "d1.0000-w1.0000-r1.0000", "a", "b", "c"


@pytest.fixture
def economy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    return __import__("probe_economy")


def rows(kind: str, epochs: int, accuracies: dict[str, float], parents: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"kind": kind, "epochs": str(epochs), "scale": s, "validation": str(v), "parent": parents.get(s, BASE)}
        for s, v in accuracies.items()
    ]


def test_ranks_and_savings_of_known_rows(economy: Any) -> None:
    chain = rows("chain", 4, {A: 80, B: 70, C: 75}, {B: A, C: A})
    shots = rows("one-shot", 4, {B: 60, C: 65}, {}) + rows("one-shot", 16, {A: 85, B: 76, C: 83}, {})
    found = economy.findings(chain + shots, 4, 16)
    assert "of 4 and of 16 epochs: 1.000 over 3 scales" in found[0]
    assert (
        found[1]
        == "2 probes cut from another one: 72.50 % in 4 epochs; one-shot from the base: 62.50 % in 4, 79.50 % in 16"
    )
    # 10 of the 17 points between 4 and 16 epochs, on a logarithmic scale: 4 * 4 ** (10 / 17)
    assert found[2] == "at equal accuracy 4 epochs of a chain are worth 9.0 from the base: 2.3x"
    reverse = rows("one-shot", 16, {A: 70, B: 80, C: 75}, {})
    assert "epochs: -1.000" in economy.findings(chain + shots[:2] + reverse, 4, 16)[0]


def test_savings_beyond_what_was_tried(economy: Any) -> None:
    assert economy._saving(4, 90.0, [4, 12], [80.0, 88.0]).startswith("at equal accuracy chains save more than 3.0x")
    assert economy._saving(4, 80.0, [4, 12], [80.0, 88.0]) == "chains save nothing at equal accuracy"
