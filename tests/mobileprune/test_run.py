"""The run directory: journal, lock, atomic files, disk errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.run import Journal, Run, locked, write_text, writing


def test_journal_keeps_the_newest_entry_of_a_key_in_order_of_first_appearance(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("probe", "a", value=1)
    journal.append("probe", "b", value=2)
    journal.append("probe", "a", value=3)
    journal.append("other", "a", value=4)
    again = Journal(tmp_path / "journal.jsonl")
    assert again.entries == journal.entries
    assert [(e["key"], e["value"]) for e in again.all("probe")] == [("a", 3), ("b", 2)]
    assert again.get("probe", "a") == again.entries[2]
    assert again.newest("probe") == again.entries[2]
    assert again.get("probe", "c") is None
    assert again.newest("nothing") is None


@given(cut=st.integers(0, 10_000), values=st.lists(st.text(), min_size=1, max_size=5))
def test_any_cut_of_the_file_loses_at_most_the_last_entry(
    tmp_path_factory: pytest.TempPathFactory, cut: int, values: list[str]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path)
    for number, value in enumerate(values):
        journal.append("thing", str(number), value=value)
    content = path.read_bytes()
    cut = min(cut, len(content))
    path.write_bytes(content[:cut])
    reopened = Journal(path)
    assert len(reopened.entries) == content[:cut].count(b"\n")
    reopened.append("thing", "after", value="x")
    assert [e["key"] for e in Journal(path).entries] == [e["key"] for e in reopened.entries]


@pytest.mark.parametrize("damage", ['{"kind": "probe"', "[]", '{"key": "a"}', "\x00\x00", "7"])
def test_a_damaged_earlier_line_is_named(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("probe", "a")
    with journal.path.open("a") as file:
        file.write(damage + "\n")
    with pytest.raises(MobilepruneError, match=r"journal\.jsonl is damaged in line 2"):
        Journal(tmp_path / "journal.jsonl")


def test_writing_leaves_the_old_file_and_nothing_else_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_path_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MobilepruneError, match=r"cannot write .*; choose a folder you can write to"):
        write_text(tmp_path / "file" / "x", "")
    with pytest.raises(MobilepruneError, match="cannot write"), locked(tmp_path / "file" / "run"):
        pass


_FILLS_THE_DISK = """
import sys
from pathlib import Path
from mobileprune.errors import MobilepruneError
from mobileprune.run import Journal, write_text
folder = Path(sys.argv[1])
journal = Journal(folder / "journal.jsonl")
journal.append("small", "a")
before = journal.path.read_bytes()
text = "x" * 3_000_000
for work in (lambda: journal.append("big", "b", value=text), lambda: write_text(folder / "f", text)):
    try:
        work()
    except MobilepruneError as error:
        print(error)
assert journal.path.read_bytes() == before, "half a line was left"
assert sorted(p.name for p in folder.iterdir()) == ["journal.jsonl"]
journal.append("small", "c")
assert len(Journal(folder / "journal.jsonl").entries) == 2
"""


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FILLS_THE_DISK, small_disk], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("No space left on device; free some space and run the same command again" in line for line in lines)


def test_a_file_size_limit_loses_nothing(tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n" + _FILLS_THE_DISK
    done = subprocess.run([sys.executable, "-c", limited, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("File too large; raise the file size limit") == 2


_HOLDS = """
import sys, time
from pathlib import Path
from mobileprune.run import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDS, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MobilepruneError, match=f"in use by process {holder.pid}"), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):  # the lock went with the process
        pass


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_run_round_trip_and_refusals(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"seed": 3, "model": {"name": "x"}})
    run.journal.append("probe", "a")
    again = Run.open(tmp_path / "run")
    assert again.asked == {"seed": 3, "model": {"name": "x"}}
    assert again.once("probe", "a", lambda: pytest.fail("done twice"))["key"] == "a"
    assert again.once("probe", "b", lambda: {"value": 1})["value"] == 1
    with pytest.raises(UsageError, match="is not a run folder"):
        Run.open(tmp_path)
    with pytest.raises(UsageError, match="exists and is not a run folder"):
        Run.create(tmp_path, {})
    (tmp_path / "run" / "run.toml").write_text("seed = 3")  # as before folders were numbered
    with pytest.raises(UsageError, match="begun by another version of mobileprune: its files have layout 1"):
        Run.open(tmp_path / "run")
    (tmp_path / "run" / "run.toml").write_text("seed = ")
    with pytest.raises(MobilepruneError, match=r"run\.toml is damaged"):
        Run.open(tmp_path / "run")


def test_journal_lines_are_json_objects_with_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("probe", "a", nested={"x": [1.5]})
    (line,) = journal.path.read_text().splitlines()
    assert json.loads(line)["nested"] == {"x": [1.5]}
    assert json.loads(line)["time"] > 1e9


def test_what_a_killed_process_left_is_swept_in_a_run_and_nowhere_else(tmp_path: Path) -> None:
    def litter(folder: Path) -> list[Path]:
        files = [folder / ".recipe.json.12.tmp", folder / "deep" / ".model.onnx.ab.part"]
        folders = [folder / "deep" / ".cd.part", folder / "deep" / ".android-x", folder / "deep" / ".float32-y"]
        for path in (*files, *(one / "model.tflite" for one in folders)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("half")
        return [*files, *folders]

    home, run = litter(tmp_path / "home"), tmp_path / "run"
    with locked(tmp_path / "home"):
        assert all(path.exists() for path in home)
    Run.create(run, {"seed": 0})
    left = litter(run)
    with locked(run):
        assert not any(path.exists() for path in left)


def test_a_journal_that_another_process_wrote_is_not_cut(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "run", {"seed": 0}).journal
    first.append("probe", "a")
    other = Run.open(tmp_path / "run").journal
    other.append("probe", "b")
    with pytest.raises(MobilepruneError, match="was written by another process meanwhile"):
        first.append("probe", "c")
    first.refresh()
    first.append("probe", "c")
    assert [e["key"] for e in Run.open(tmp_path / "run").journal.entries] == ["a", "b", "c"]
