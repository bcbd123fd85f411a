"""The whole journey on a phone that goes away in the middle: the same command goes on when it is back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from phones import PORT, SERIAL, Phone

OURS = "data/local/tmp/mobileprune/"
TINY = Path(__file__).parent.parent / "mobileprune" / "tiny_net.py"
QUESTION = [
    "optimize", "--model", f"{TINY}:tiny", "--model-arg", "blocks=2", "--image-size", "16", "--device", "adb",
    "--budget", "1MMACs", "--base-epochs", "1", "--probe-epochs", "1", "--epochs", "1", "--probes", "4",
    "--profile-scales", "10", "--rounds", "2", "--round-seconds", "0", "--training-precision", "float32",
]  # fmt: skip


def start(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from mobileprune.cli import main; main()", *QUESTION, "--run", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.timeout(900)
def test_optimize_goes_on_when_the_phone_is_back(phone: Phone, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = set(phone.written())
    first = start(run)
    phone.wait_for_runner(240)
    phone.stop(PORT)
    _, told = first.communicate(timeout=240)
    assert first.returncode == 1
    assert f"the phone {SERIAL}" in told.strip().splitlines()[-1]
    assert "Traceback" not in told
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [entry for entry in journal if entry["kind"] == "latency"] == []  # no half measurement
    trained = [entry["time"] for entry in journal if entry["kind"] == "base"]

    away = start(run)
    _, told = away.communicate(timeout=240)
    assert away.returncode == 1
    assert "plug it in" in told.strip().splitlines()[-1]

    phone.start(PORT)
    again = start(run)
    shown, told = again.communicate(timeout=600)
    assert again.returncode == 0, told
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [entry["time"] for entry in journal if entry["kind"] == "base"] == trained  # not trained again
    samples = [entry["measurement"] for entry in journal if entry["kind"] == "latency"]
    assert len(samples) >= 10
    assert {sample["origin"] for sample in samples} == {"emulated"}  # never taken for a measurement
    assert "latency, emulated" in " ".join(shown.split())
    # The measurement that broke off could not take its files away: they lie in one folder, and are swept a day later.
    left = {name.split("/")[4] for name in set(phone.written()) - before if name.startswith(OURS)}
    assert len(left) <= 1
    for folder in left:
        phone.call("shell", f"rm -rf /{OURS}{folder}")
    assert set(phone.written()) <= before
