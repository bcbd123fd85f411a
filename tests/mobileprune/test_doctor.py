"""doctor and compare: what is here, what is missing and how to get it; runs side by side."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import Call

from mobileprune import doctor
from mobileprune.compare import columns, compare_table, labels
from mobileprune.errors import UsageError


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def test_a_working_machine(call: Call, tmp_path: Path) -> None:
    done = call("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert {"Python", "torch", "torchvision", "onnx files", "tflite files", "adb", "ssh", "GPU", "disk"} <= set(found)
    assert found["torch"]["state"] == "ok"
    for check in found.values():
        assert check["state"] == "ok" or check["remedy"], check["name"]


def test_what_is_missing_names_what_it_enables_and_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(
        "exporters.available", lambda name: f"{name} needs pip install 'mobileprune[{name}]'; then go on"
    )
    found = by_name(doctor.examine(tmp_path))
    assert found["adb"].state == "missing" and "apt-get install adb" in found["adb"].remedy
    assert "phones" in found["adb"].enables
    assert found["torch"].fatal and found["torch"].remedy == "pip install torch"
    assert found["torchvision"].state == "broken" and found["torchvision"].fatal
    assert found["tflite files"].remedy == "pip install 'mobileprune[tflite]'" and not found["tflite files"].fatal
    assert found["onnx files"].fatal


def test_a_program_that_fails_or_hangs_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "_SEARCH_S", 0.3)
    for name, body in (("adb", "exit 3"), ("ssh", "sleep 5")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    found = by_name(list(doctor._programs()))
    assert found["adb"].state == "broken" and "code 3" in found["adb"].found
    assert found["ssh"].state == "broken" and "does not answer" in found["ssh"].found


def test_a_package_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "halfway.py").write_text("raise RuntimeError('no symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor._import("halfway", "halfway", "nothing", "pip install halfway", required=True)
    assert found.fatal and "no symbol" in found.found and "--force-reinstall" in found.remedy


def test_runs_side_by_side(call: Call, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "other")
    done = call("compare", finished, tmp_path / "other", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "(d, w, r)" in done.stdout and "other" in done.stdout
    page = (tmp_path / "page.html").read_text()
    assert "Their frontiers" in page and len(page) < 6_000_000
    found = json.loads(call("compare", finished, tmp_path / "other", "--json").stdout)
    assert [one["name"] for one in found] == ["run", "other"]
    both = columns([finished, tmp_path / "other"])
    assert both[0].rows() == {**both[1].rows()} | {k: both[0].rows()[k] for k in both[0].rows()}
    assert compare_table(both).row_count == len(labels(both))


def test_comparing_what_cannot_be_compared(finished: Path, tmp_path: Path) -> None:
    for paths, reason in (([finished], "two runs or more"), ([finished, finished], "was named twice")):
        with pytest.raises(UsageError, match=reason):
            columns(paths)
    with pytest.raises(UsageError, match="is not a run folder"):
        columns([finished, tmp_path])
