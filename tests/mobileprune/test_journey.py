"""The whole journey as a person runs it: what it leaves, what it repeats, and what a kill costs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import QUESTION, Call, command

import mobileprune
from exporters.manifest import read_manifest
from mobileprune.pruning.recipe import Recipe
from mobileprune.run import Journal, Run
from mobileprune.stages.accuracies import probed_scales
from mobileprune.stages.losses import loss_curves
from mobileprune.stages.records import scale_of

# Kinds of entries that a run makes once.
FINISHED = ("base", "ranking", "untrained", "latency", "probe", "answer", "pruned", "finetuned", "artifact", "measured")


def test_the_answer_is_whole(call: Call, finished: Path) -> None:
    done = call("optimize", "--run", finished, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    (budget,) = summary["budgets"]
    assert budget["kept"] is True
    assert summary["result"]["macs"] == budget["value"] <= 1e6 < summary["base"]["macs"]
    assert 0 < min(summary["scale"].values()) < 1
    for side in ("base", "result"):
        assert set(summary[side]["files"]) == {"onnx", "tflite"}
        for file in summary[side]["files"].values():
            assert Path(file["path"]).stat().st_size == file["size_bytes"]
            assert file["parity_max_abs"] < 1e-3
            assert abs(file["accuracy"] - summary[side]["accuracy"]["validation"]["accuracy"]) <= 1 / 359 + 1e-9
            found = file["latency"]
            assert found["low_ms"] <= found["latency_ms"] <= found["high_ms"]
    assert Path(summary["report"]).stat().st_size > 100_000


def test_nothing_is_done_twice(call: Call, finished: Path) -> None:
    before = (finished / "journal.jsonl").read_bytes()
    assert call("optimize", "--run", finished).returncode == 0
    after = Journal(finished / "journal.jsonl")
    assert len({(e["kind"], e["key"]) for e in after.entries if e["kind"] == "probe"}) == 5
    assert [e for e in after.entries if e["kind"] in FINISHED] == [
        e for e in map(json.loads, before.splitlines()) if e["kind"] in FINISHED
    ]


def test_probes_form_chains(finished: Path) -> None:
    probes = Journal(finished / "journal.jsonl").all("probe")
    scales = [e["scale"] for e in probes]
    assert any(e["parent"] in scales for e in probes)
    for entry in probes:
        assert all(p >= s for p, s in zip(entry["parent"], entry["scale"], strict=True))


def test_the_rate_is_tried_on_the_probe_that_lost_the_most_when_it_was_cut(finished: Path) -> None:
    run = Run.open(finished)
    curves, tried = loss_curves(run), run.journal.get("training", "finetune_learning_rate")
    assert curves is not None
    assert tried is not None
    probes = probed_scales(run)
    lost = dict(zip(probes, curves.together(probes), strict=True))
    assert lost[scale_of(tried)] > lost[probes[0]]


def test_recipes_say_how_channels_were_chosen(finished: Path) -> None:
    recipes = [Recipe.from_json(path.read_text()) for path in finished.rglob("recipe.json")]
    narrower = [recipe for recipe in recipes if recipe.scale.width < 1.0]
    assert narrower
    for recipe in narrower:
        assert (recipe.method["importance"], recipe.method["weights"]) == ("reconstruction", "reconstructed")


_LOADS = """
import sys, numpy as np, torch, mobileprune
torch.manual_seed(0)
model = mobileprune.load(sys.argv[1])
np.save(sys.argv[3], model(torch.from_numpy(np.load(sys.argv[2]))).detach().numpy())
"""


def test_the_result_loads_bit_equal_in_a_fresh_process_without_pickle(finished: Path, tmp_path: Path) -> None:
    manifest = read_manifest(next((finished / "results").glob("*/artifacts")), verify=True)
    images = np.random.default_rng(0).normal(size=(3, *manifest.input.shape()[1:])).astype(np.float32)
    np.save(tmp_path / "in.npy", images)
    subprocess.run([sys.executable, "-c", _LOADS, finished, tmp_path / "in.npy", tmp_path / "out.npy"], check=True)
    here = mobileprune.load(finished)(torch.from_numpy(images)).detach().numpy()
    assert np.array_equal(np.load(tmp_path / "out.npy"), here)
    session = onnxruntime.InferenceSession(manifest.entry("onnx").artifact.path)
    name = session.get_inputs()[0].name
    there = np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    assert np.abs(there - here).max() < 1e-4
    pickles = [p for p in finished.rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".bin")]
    assert pickles == []


def test_a_run_folder_can_be_moved(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    images = torch.zeros(1, 3, 16, 16)
    assert torch.equal(mobileprune.load(tmp_path / "moved")(images), mobileprune.load(finished)(images))


def test_solve_answers_from_the_journal_without_torch(call: Call, finished: Path) -> None:
    before = (finished / "journal.jsonl").read_bytes()
    code = (
        "import sys; from mobileprune.cli import main; main(['solve', sys.argv[1], '--budget', '0.8MMACs', '--json'], "
        "standalone_mode=False); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, finished], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    solution = json.loads(done.stdout)
    assert solution["constraints"]["macs"]["mean"] <= 0.8
    assert solution["kkt_residual"] < 1e-6
    assert len(solution["frontier"]) > 1
    expected = solution["accuracy"]
    assert 0.0 < expected["low"] < expected["mean"] < expected["high"] <= 1.0 and solution["result_epochs"] == 1
    assert (finished / "journal.jsonl").read_bytes() == before
    text = call("solve", finished, "--budget", "0.8MMACs").stdout
    assert "% expected after the result's 1 epoch, 80 % interval" in text
    assert "% predicted after a probe's 1 epoch" in text


def test_status_and_each_stage_command(call: Call, finished: Path) -> None:
    found = json.loads(call("status", finished, "--json").stdout)
    assert {stage["name"] for stage in found["stages"]} >= {"base", "profile", "probe", "solve", "prune", "bench"}
    assert "to do" not in {stage["state"] for stage in found["stages"]}
    for stage in ("profile", "probe", "prune", "finetune", "export", "bench", "report"):
        done = call(stage, finished)
        assert done.returncode == 0, (stage, done.stderr)


def test_a_new_budget_on_the_same_run(call: Call, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    for stage in ("prune", "finetune"):
        done = call(stage, copy, "--budget", "0.6MMACs")
        assert done.returncode == 0, done.stderr
    journal = Journal(copy / "journal.jsonl")
    assert [e["key"] for e in journal.all("answer")] == ["1MMACs", "0.6MMACs"]
    assert len(journal.all("probe")) == 5
    model = mobileprune.load(copy)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_two_processes_on_one_run(call: Call, finished: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mobileprune.run import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, finished], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = call("optimize", "--run", finished)
        read = call("status", finished)
        holder.kill()
    assert done.returncode == 1
    assert f"in use by process {holder.pid}" in done.stderr
    assert read.returncode == 0  # looking is always allowed


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        command("optimize", "--run", run, *QUESTION),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "base" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert f"mobileprune optimize --run {run}" in rest
    assert "Traceback" not in rest
    assert (run / "run.toml").exists()


@pytest.mark.timeout(900)
def test_ten_kills_cost_nothing_that_was_finished(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chance = random.Random(0)
    full = command("optimize", "--run", run, *QUESTION)
    known: list[dict[str, object]] = []
    for _ in range(10):
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen(full, stdout=log, stderr=log, start_new_session=True)
        time.sleep(chance.uniform(0.5, 9))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (run / "run.toml").exists():
            now = Journal(run / "journal.jsonl").entries
            assert now[: len(known)] == known  # nothing finished was lost
            known = now
    done = subprocess.run(full, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    journal, whole = Journal(run / "journal.jsonl"), Journal(finished / "journal.jsonl")
    for kind in FINISHED:
        keys = [e["key"] for e in journal.entries if e["kind"] == kind]
        expected = sorted(e["key"] for e in whole.entries if e["kind"] == kind)
        assert sorted(keys) == expected, kind  # as often as in a run that was never killed
    assert [e["scale"] for e in journal.all("answer")] == [e["scale"] for e in whole.all("answer")]
    assert not [p for p in run.rglob(".*") if p.name != ".lock"]
