"""The whole journey on a phone that goes away in the middle: the same command goes on when it is back."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import QUESTION, fail, journal, start
from phones import PORT, SERIAL, Phone


@pytest.mark.timeout(900)
def test_optimize_goes_on_when_the_phone_is_back(phone: Phone, tmp_path: Path) -> None:
    run = tmp_path / "run"
    question = ["optimize", "--run", run, "--device", "adb", *QUESTION]
    before = set(phone.written())
    first = start(*question)
    phone.wait_for_runner(400)
    phone.stop(PORT)
    assert f"the phone {SERIAL}" in fail(first)
    entries = journal(run)
    assert [entry for entry in entries if entry["kind"] == "latency"] == []  # no half measurement
    trained = [entry["time"] for entry in entries if entry["kind"] == "base"]

    assert "plug it in" in fail(start(*question))

    phone.start(PORT)
    again = start(*question)
    shown, told = again.communicate(timeout=600)
    assert again.returncode == 0, told
    entries = journal(run)
    assert [entry["time"] for entry in entries if entry["kind"] == "base"] == trained  # not trained again
    samples = [entry["measurement"] for entry in entries if entry["kind"] == "latency"]
    assert len(samples) >= 10
    assert {sample["origin"] for sample in samples} == {"emulated"}  # never taken for a measurement
    assert "latency, emulated" in " ".join(shown.split())
    assert set(phone.written()) <= before  # also what the measurement that broke off could not take away
