"""The whole journey on a board whose link drops in the middle: the same command goes on when the board is back."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from commands import QUESTION, QUICK, call, call_json, fail, journal, start, words
from sshd import Board, running

from device_profiles.layers import write_layer


def wait_until_nothing_runs(board: Board) -> None:
    until = time.monotonic() + 10
    while board.workers() and time.monotonic() < until:
        time.sleep(0.05)
    assert board.workers() == []


@pytest.mark.timeout(600)
def test_optimize_goes_on_when_the_board_is_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "sshd").mkdir()
    with running(tmp_path / "sshd") as board:
        bare = board.with_packages("numpy", "onnxruntime")  # a board with one of the runtimes
        question = ["optimize", "--run", run, "--device", bare.address, *QUESTION]
        first = start(*question)
        board.wait_for_worker(120)
        board.server.stop()
        assert "the ssh link to board was lost" in fail(first)
        wait_until_nothing_runs(board)
        entries = journal(run)
        assert [entry for entry in entries if entry["kind"] == "latency"] == []  # no half measurement
        trained = [entry["time"] for entry in entries if entry["kind"] == "base"]
        assert board.leftovers() != []  # nobody could take them away

        assert "the board board cannot be reached" in fail(start(*question))
        assert journal(run) == entries

        board.server.start()
        call(*question, timeout=400)
        entries = journal(run)
        assert [entry["time"] for entry in entries if entry["kind"] == "base"] == trained  # not trained again
        samples = [entry["measurement"] for entry in entries if entry["kind"] == "latency"]
        assert len(samples) >= 10
        assert {sample["origin"] for sample in samples} == {"measured"}
        wait_until_nothing_runs(board)
        assert board.leftovers() == []  # neither of this measurement nor of the one that broke off


@pytest.mark.timeout(600)
def test_a_board_is_given_the_probes_of_this_machine(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    call("optimize", "--run", here, *QUESTION, timeout=400)
    (tmp_path / "sshd").mkdir()
    with running(tmp_path / "sshd") as board:
        question = ["--probes-from", here, "--device", board.address, "--budget", "1MMACs"]
        call("optimize", *question, "--run", there, timeout=400)
        assert board.leftovers() == []
    before, now = journal(here), journal(there)
    assert {e["key"] for e in before if e["kind"] == "probe"} <= {e["key"] for e in now if e["kind"] == "probe"}
    asked = [entry["kind"] for entry in now].index("question")
    assert not any(e["kind"] == "epoch" and e["key"].startswith("base") for e in now[asked:])
    assert {e["measurement"]["origin"] for e in now if e["kind"] == "latency"} == {"measured"}
    assert f'device = "{board.address}"' in (there / "run.toml").read_text()


def test_bench_and_devices_on_a_board(tmp_path: Path) -> None:
    net = write_layer("dense", 8, tmp_path / "net.onnx", side=16)
    (tmp_path / "sshd").mkdir()
    with running(tmp_path / "sshd") as board:
        report = call_json("bench", net, "--device", board.address, "--core-mask", "1", *QUICK)
        assert (report["device"]["kind"], report["core_mask"]) == ("ssh", 1)
        (one,) = report["measurements"].values()
        assert (one["origin"], one["delegation"]["name"]) == ("measured", "CPUExecutionProvider")
        assert 0 < one["low_ms"] <= one["latency_ms"] <= one["high_ms"]
        shown = words("bench", net, "--device", board.address, "--sustained", "4s")
        assert re.search(r" ms \([-+]\d+%\) over \d+ s", shown)
        assert "1 thread, measured" in shown
        for address in (board.address, board.address.removeprefix("ssh://")):  # as --help has it, USER@HOST
            known = {one["name"]: one for one in call_json("devices", "--ssh", address)}
            listed = known["ssh://board"]
            assert (listed["place"], listed["latency"]) == ("connected", "measured")
            assert ".onnx" in listed["runtimes"]
        assert board.leftovers() == []
        for how, reason in (
            (["--core-mask", "1" + "0" * 50], "names core 200, which is not there"),
            (["--delegate", "gpu"], "runs files on its cpu only, not on gpu"),
        ):
            assert reason in fail(start("bench", net, "--device", board.address, *how))
        assert board.leftovers() == []
