"""Bad input: one sentence that names it, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUESTION, TINY, Call

from mobileprune.run import Journal


def one_sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a command that failed as it should."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; from mobileprune.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'onnx', 'rich', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in (
        "optimize",
        "profile",
        "probe",
        "solve",
        "prune",
        "finetune",
        "export",
        "bench",
        "report",
        "status",
    ):
        assert f"\n  {command}" in done.stdout


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--budget", "12 parsecs"], "'12 parsecs' is not a budget: 'parsecs' is no unit"),
        (["--budget", "fast"], "'fast' is not a budget"),
        (["--budget", "120%"], "'120%' is more than the base takes"),
        (["--budget", "5ms", "--budget", "50%"], "two budgets on latency"),
        ([], "no --budget: say what must hold"),
        (["--budget", "50%", "--model", "resnet2O"], "no model 'resnet2O' in any library; did you mean"),
        (["--budget", "50%", "--model", "resnet18"], "write torchvision:resnet18 or timm:resnet18"),
        (["--budget", "50%", "--device", "hots"], "hots"),
        (["--budget", "50%", "--data", "no/such/folder"], "--data no/such/folder: no such file or folder"),
        (["--budget", "50%", "--checkpoint", "no.pt"], "no checkpoint no.pt"),
        (["--budget", "50%", "--model", f"{TINY}:tiny_without_classes", "--image-size", "16"], "for 10 classes"),
    ],
)
def test_a_question_that_is_wrong_leaves_no_run(call: Call, tmp_path: Path, flags: list[str], reason: str) -> None:
    message = one_sentence(call("optimize", "--run", tmp_path / "run", *flags), 2)
    assert reason in message
    assert not (tmp_path / "run").exists()


def test_empty_data_one_class_and_a_foreign_checkpoint(call: Call, tmp_path: Path) -> None:
    run = ["optimize", "--run", tmp_path / "run", "--budget", "50%"]
    (tmp_path / "empty").mkdir()
    assert "empty or without class folders" in one_sentence(call(*run, "--data", tmp_path / "empty"), 2)
    from test_data import write_image

    for i in range(4):
        write_image(tmp_path / "one" / "cats" / f"{i}.png", (1, 2, 3))
    assert "only one class (cats)" in one_sentence(call(*run, "--data", tmp_path / "one"), 2)
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "w.pt")
    message = one_sentence(call(*run, "--checkpoint", tmp_path / "w.pt"), 2)
    assert "does not fit the model; missing: stem.0.weight" in message
    assert "not in the model: conv.weight" in message
    assert not (tmp_path / "run").exists()


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_budget_that_no_scale_can_keep_names_the_smallest_reachable(call: Call, copied: Path) -> None:
    message = one_sentence(call("optimize", "--run", copied, "--budget", "0.0001MMACs"), 2)
    assert "no scale keeps macs within 0.0001 MMACs: the smallest reachable is" in message
    message = one_sentence(call("solve", copied, "--budget", "0.000001ms"), 2)
    assert "the smallest reachable" in message


def test_a_budget_looser_than_the_base_says_that_nothing_need_be_pruned(call: Call, copied: Path) -> None:
    for command in (["optimize", "--run", copied], ["solve", copied]):
        message = one_sentence(call(*command, "--budget", "10GMACs"), 2)
        assert "the base already keeps 10GMACs" in message
        assert "nothing need be pruned" in message


def test_a_run_folder_with_another_question(call: Call, copied: Path) -> None:
    before = (copied / "run.toml").read_text()
    message = one_sentence(call("optimize", "--run", copied, "--seed", "5"), 2)
    assert "was begun with --seed 0, not 5; leave --seed out" in message
    message = one_sentence(call("optimize", "--run", copied, "--model", "resnet20"), 2)
    assert "--model tiny, not resnet20" in message
    assert (copied / "run.toml").read_text() == before
    assert call("optimize", "--run", copied, *QUESTION).returncode == 0  # the same question is no other


def test_folders_that_are_no_run(call: Call, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    message = one_sentence(call("optimize", "--run", tmp_path / "photos", "--budget", "50%"), 2)
    assert "exists and is not a run folder" in message
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == ["cat.jpg"]
    for command in ("solve", "status", "profile", "bench"):
        assert "is not a run folder" in one_sentence(call(command, tmp_path / "photos"), 2)
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == ["cat.jpg"]


def test_a_run_folder_that_cannot_be_written(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = one_sentence(call("optimize", "--run", tmp_path / "file" / "run", "--budget", "50%"), 1)
    assert "cannot write" in message
    assert "choose a folder you can write to with --run" in message


def test_a_stage_out_of_order_names_the_command_to_run_first(call: Call, copied: Path) -> None:
    journal = Journal(copied / "journal.jsonl")
    undone = ("finetuned", "artifact", "measured", "report")
    journal.path.write_text("".join(json.dumps(e) + "\n" for e in journal.entries if e["kind"] not in undone))
    assert f"run `mobileprune finetune {copied}` first" in one_sentence(call("export", copied), 1)
    assert f"run `mobileprune export {copied}` first" in one_sentence(call("bench", copied), 1)
    assert "has no measured result yet" in one_sentence(call("report", copied), 1)


def test_a_damaged_journal_names_the_line(call: Call, copied: Path) -> None:
    path = copied / "journal.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:20]
    path.write_text("\n".join(lines) + "\n")
    assert "is damaged in line 3" in one_sentence(call("optimize", "--run", copied), 1)


def test_changed_data_is_noticed(call: Call, tmp_path: Path) -> None:
    from test_data import write_image

    for name, colour in (("cats", (200, 0, 0)), ("dogs", (0, 0, 200))):
        for i in range(12):
            write_image(tmp_path / "set" / name / f"{i}.png", colour)
    question = [*QUESTION, "--data", tmp_path / "set"]
    stopped = call("optimize", "--run", tmp_path / "run", *question, "--budget", "0.000001MParams")
    assert "the smallest reachable" in stopped.stderr
    write_image(tmp_path / "set" / "cats" / "new.png", (100, 0, 0))
    message = one_sentence(call("optimize", "--run", tmp_path / "run", "--budget", "1MMACs"), 1)
    assert "changed since" in message


def test_a_full_disk_stops_the_run_and_more_room_lets_it_go_on(call: Call, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(700_000))
    message = one_sentence(call("optimize", "--run", small_disk / "run", *QUESTION), 1)
    assert "No space left on device; free some space and run the same command again" in message
    done = Journal(small_disk / "run" / "journal.jsonl").entries
    subprocess.run(["mount", "-o", "remount,size=60M", small_disk], check=True)
    finished = call("optimize", "--run", small_disk / "run")
    assert finished.returncode == 0, finished.stderr
    assert Journal(small_disk / "run" / "journal.jsonl").entries[: len(done)] == done
