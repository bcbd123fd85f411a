"""``mobileprune devices`` and ``mobileprune bench FILE...``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Call
from test_cli_errors import one_sentence


def test_devices_are_listed_with_what_their_latencies_are(call: Call) -> None:
    found = {one["name"]: one for one in json.loads(call("devices", "--json").stdout)}
    assert found["host"]["latency"] == "measured"
    assert found["pixel"]["latency"] == "predicted"
    assert 0 < found["pixel"]["typical_error"] <= found["pixel"]["guaranteed_error"]
    shown = call("devices").stdout
    assert all(name in shown for name in found)


def test_files_are_timed_together(call: Call, finished: Path) -> None:
    files = sorted((finished / "base" / "artifacts").glob("model.*[xe]"))
    quick = ("--rounds", "2", "--round-seconds", "0", "--lenient")
    done = call("bench", *files, *quick, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["measurements"]) == {str(f) for f in files}
    for found in report["measurements"].values():
        assert found["origin"] == "measured"
        assert found["low_ms"] <= found["latency_ms"] <= found["high_ms"]
    assert "95 % interval" in call("bench", *files, *quick).stdout


def test_a_run_shows_the_latencies_that_it_has(call: Call, finished: Path) -> None:
    before = (finished / "journal.jsonl").read_bytes()
    shown = call("bench", finished)
    assert shown.returncode == 0, shown.stderr
    assert "measured already" in shown.stderr
    for words in ("base.onnx", "result.onnx", "base.tflite", "result.tflite", "95 % interval", "1 thread, measured"):
        assert words in shown.stdout
    done = call("bench", finished, "--json")
    told = json.loads(done.stdout)
    assert told["next"].startswith("nothing")
    (entry,) = (e for e in map(json.loads, before.splitlines()) if e["kind"] == "measured")
    assert told["measurements"] == entry["report"]["measurements"]
    assert (finished / "journal.jsonl").read_bytes() == before


def test_a_run_that_is_measured_now_shows_its_latencies(call: Call, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(line for line in lines if json.loads(line)["kind"] != "measured"))
    done = call("bench", run)
    assert done.returncode == 0, done.stderr
    assert "measured already" not in done.stderr
    assert "result.onnx" in done.stdout


def test_what_cannot_be_timed_is_one_sentence(call: Call, tmp_path: Path) -> None:
    assert "no such file" in one_sentence(call("bench", tmp_path / "no.onnx"), 1)
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    assert "bad.onnx" in one_sentence(call("bench", tmp_path / "bad.onnx"), 1)
    assert "named twice" in one_sentence(call("bench", tmp_path / "bad.onnx", tmp_path / "bad.onnx"), 2)
    assert "did you mean" in one_sentence(call("bench", tmp_path / "bad.onnx", "--device", "pixle"), 2)


@pytest.mark.parametrize("device", ["pixel", "pixel-3"])
def test_a_network_outside_of_a_profile_is_refused_before_anything_is_probed(
    call: Call, tmp_path: Path, device: str
) -> None:
    run = tmp_path / "run"
    question = ["--model", f"{TINY}:tiny", "--image-size", "16", "--base-epochs", "0", "--budget", "50%"]
    message = one_sentence(call("optimize", "--run", run, "--device", device, *question), 2)
    assert "cannot tell the latency of tiny at 16 px" in message
