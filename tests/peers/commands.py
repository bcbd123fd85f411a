"""mobileprune as a person runs it: in a process of its own, in the environment of the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = Path(__file__).parent.parent / "mobileprune" / "tiny_net.py"
# The smallest journey.
QUESTION = [
    "--model", f"{TINY}:tiny", "--model-arg", "blocks=2", "--image-size", "16", "--budget", "1MMACs",
    "--base-epochs", "1", "--probe-epochs", "1", "--epochs", "1", "--probes", "4", "--profile-scales", "10",
    "--rounds", "2", "--round-seconds", "0", "--training-precision", "float32",
]  # fmt: skip
QUICK = ["--rounds", "2", "--round-seconds", "0", "--lenient"]  # a measurement that is not about its figures


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from mobileprune.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}  # tables whose lines are not broken
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def call(*arguments: object, timeout: float = 240) -> str:
    """What it prints; it must end well."""
    process = start(*arguments)
    shown, told = process.communicate(timeout=timeout)
    assert process.returncode == 0, told
    return shown


def words(*arguments: object, timeout: float = 240) -> str:
    """What it prints, however its lines are broken."""
    return " ".join(call(*arguments, timeout=timeout).split())


def call_json(*arguments: object, timeout: float = 240) -> Any:
    return json.loads(call(*arguments, "--json", timeout=timeout))


def fail(process: subprocess.Popen[str], code: int = 1, timeout: float = 240) -> str:
    """The one sentence that it must end with."""
    _, told = process.communicate(timeout=timeout)
    assert process.returncode == code, told
    assert "Traceback" not in told
    (sentence,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert told.strip().splitlines()[-1] == sentence
    return sentence.removeprefix("error: ")


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
