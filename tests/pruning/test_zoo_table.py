from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file
from torch import nn

from mobileprune.errors import UsageError


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "tools")
    return importlib.import_module("zoo")


def test_a_network_is_checked_at_every_scale_and_a_lacking_dimension_is_named(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = list(zoo.rows_of("odd:two_inputs", tmp_path / "two"))
    assert [row["status"] for row in rows] == ["pass", "pass", "pass", "pass"]
    assert all(set(row) == set(zoo.COLUMNS) for row in rows)
    stored = tmp_path / "two" / "3"
    assert zoo.differs("odd:two_inputs", stored) == ""
    weights = load_file(stored / "weights.safetensors")
    weights["fine.bias"][0] += 1
    save_file(weights, stored / "weights.safetensors")
    assert "fresh process differs" in zoo.differs("odd:two_inputs", stored)
    Conv = importlib.import_module("odd_networks").Conv
    monkeypatch.setitem(zoo.ODD, "plain", lambda: nn.Sequential(Conv(3, 16), Conv(16, 24, 2)))
    monkeypatch.setitem(zoo.SIDES, "odd:plain", 16)
    rows = list(zoo.rows_of("odd:plain", tmp_path / "plain"))
    assert rows[1]["status"] == "lacks" and "no residual block" in rows[1]["note"]
    assert rows[3]["note"].startswith("without depth")


def test_what_goes_wrong_is_written_down(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zoo, "ATOL", -1.0)
    first = next(zoo.rows_of("odd:loop_dict", tmp_path))
    assert first["status"] == "fail" and "ONNX Runtime differs" in first["note"]

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("this network cannot be pruned in depth")

    monkeypatch.setattr(zoo, "prune", refuse)
    assert next(zoo.rows_of("odd:loop_dict", tmp_path))["status"] == "refused"


def test_the_table_is_kept_and_counted(zoo: ModuleType, tmp_path: Path) -> None:
    rows = [zoo._row("odd:loop_dict", scale, status="pass") for scale in zoo.SCALES]
    rows += [zoo._row("shared:x:y", scale, status="fail", note="a, b") for scale in zoo.SCALES]
    table = tmp_path / "zoo.csv"
    zoo.write(table, rows)
    again = zoo.read(table)
    assert sorted(map(tuple, (row.values() for row in again))) == sorted(map(tuple, (row.values() for row in rows)))
    assert zoo.summary(again).startswith("2 networks: 1 pass in all dimensions, 1 in all that they have; 4 rows pass")
    assert zoo.read(tmp_path / "none.csv") == []
