"""A run for another device or precision that begins with what one has trained already."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import Call

from mobileprune.borrow import borrow, open_or_borrow
from mobileprune.errors import UsageError
from mobileprune.request import Request
from mobileprune.run import Journal, Run


def kinds(run: Path, *, since: int = 0) -> Counter[str]:
    return Counter(entry["kind"] for entry in Run.open(run).journal.entries[since:])


@pytest.fixture(scope="module")
def borrowed(finished: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's question asked again, in float16."""
    path = tmp_path_factory.mktemp("borrowed") / "run"
    command = ["optimize", "--probes-from", finished, "--precision", "float16", "--budget", "1MMACs", "--run", path]
    plan = call(*command, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert re.search(r"base .*: done", plan.stdout) and not path.exists()
    done = call(*command)
    assert done.returncode == 0, done.stderr
    again = call(*command)
    assert again.returncode == 0, again.stderr
    return path


def test_the_rest_of_the_question_is_that_of_the_other_run(finished: Path, borrowed: Path) -> None:
    before, now = Run.open(finished).asked, Run.open(borrowed).asked
    assert {name for name in before if before[name] != now[name]} == {"precision"}


def test_nothing_that_was_trained_is_trained_again(finished: Path, borrowed: Path) -> None:
    before, now = Run.open(finished).journal, Run.open(borrowed).journal
    taken = {entry["key"]: entry["validation"] for entry in before.all("probe")}
    assert taken.items() <= {entry["key"]: entry["validation"] for entry in now.all("probe")}.items()
    assert now.get("base", "score")["validation"] == before.get("base", "score")["validation"]  # type: ignore[index]
    began = next(i for i, entry in enumerate(now.entries) if entry["kind"] == "question")
    trained = [e["key"] for e in now.entries[began:] if e["kind"] == "epoch"]
    assert not any(key.startswith("base") for key in trained)
    assert kinds(borrowed, since=began)["latency"] > 0


def test_the_files_are_its_own(finished: Path, borrowed: Path) -> None:
    precisions = {e["artifact"]["precision"] for e in Run.open(borrowed).journal.all("artifact")}
    assert precisions == {"float16"}
    assert any(str(finished) in entry["key"] for entry in Run.open(borrowed).journal.all("note"))


@pytest.mark.parametrize("place", range(4))
def test_a_copy_that_was_killed_has_nothing_of_the_other_run(
    place: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while folders are copied, or before the journal is there: the same command finishes, and without
    --probes-from no probe of another base is left."""

    class Killed(BaseException):
        pass

    path, request = tmp_path / "run", Request(precision="float16")
    copytree, left = shutil.copytree, iter(range(place))

    def until(*arguments: object, **options: object) -> object:
        if next(left, None) is None:
            raise Killed
        return copytree(*arguments, **options)  # type: ignore[arg-type]

    def never(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if place < 3:
            patch.setattr(shutil, "copytree", until)
        else:
            patch.setattr(Journal, "extend", never)
        with pytest.raises(Killed):
            open_or_borrow(path, request, finished)
    assert open_or_borrow(path, Request(), None).journal.entries == []
    run = open_or_borrow(path, request, finished)
    taken = Run.open(finished).journal
    assert run.journal.all("probe") and not run.journal.all("latency")
    for kind in ("base", "probe", "untrained"):
        assert [e["key"] for e in run.journal.all(kind)] == [e["key"] for e in taken.all(kind)]
    assert Run.open(path).journal.entries == run.journal.entries
    assert (path / "base" / "weights.safetensors").is_file() and not (path / "base" / "artifacts").exists()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(), "is of the same device and precision: ask it for another budget with --run"),
        (Request(precision="float16", seed=7), "seed 0, not 7"),
        (Request(precision="float16", epochs=9), "training result_epochs 1, not 9"),
        (Request(precision="float16", data="digits", image_size=20), "data image_size 16, not 20"),
    ],
)
def test_a_run_that_asks_for_other_networks_cannot_have_them(
    request_: Request, reason: str, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        open_or_borrow(tmp_path / "run", request_, finished)
    assert not (tmp_path / "run" / "run.toml").exists()


def test_a_device_with_other_channel_steps_has_other_widths(finished: Path, tmp_path: Path) -> None:
    asked = Run.open(finished).asked
    other = Run.create(tmp_path / "run", {**asked, "device_profile": {**asked["device_profile"], "channel_step": 32}})
    with pytest.raises(UsageError, match="prunes channels in steps of 8 for host, and host wants 32"):
        borrow(other, Run.open(finished))
    assert not other.journal.entries


def test_a_run_with_a_base_of_its_own_keeps_it(finished: Path, tmp_path: Path, call: Call) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    with pytest.raises(UsageError, match="has a base of its own already"):
        open_or_borrow(copy, Request(), finished)
    assert kinds(copy) == kinds(finished)
    empty = tmp_path / "empty"
    Run.create(empty, Run.open(finished).asked)
    with pytest.raises(UsageError, match="has no probes yet: finish it first"):
        open_or_borrow(tmp_path / "run", Request(precision="float16"), empty)
    missing = call("optimize", "--probes-from", tmp_path / "nothing", "--budget", "50%", "--run", tmp_path / "run")
    assert missing.returncode == 2 and "is not a run folder" in missing.stderr and "Traceback" not in missing.stderr
