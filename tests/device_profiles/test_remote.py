"""The way to a device, with this machine's own shell for the device's: quoting, folders, and ends of all kinds."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles.devices.remote import Remote
from device_profiles.errors import DeviceError


class Shell(Remote):
    """A device that is a folder of this machine. `cut`: the connection ends before the status is told."""

    label = "the board"

    def __init__(self, parent: Path) -> None:
        self.parent = str(parent)
        self.cut = ""

    def command(self, script: str) -> list[str]:
        return ["sh", "-c", f"{self.cut}{script}"]

    def send(self, local: Path, remote: str, *, timeout_s: float) -> None:
        shutil.copyfile(local, remote)

    def lost(self, stderr: str) -> str:
        return f"{self.label} is gone{f' ({stderr})' if stderr else ''}"


@pytest.fixture
def remote(tmp_path: Path) -> Shell:
    return Shell(tmp_path / 'it\'s "ours"; $(exit 3)')


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_every_argument_arrives_as_it_is(words: list[str]) -> None:
    told = Shell(Path("/nowhere")).run(["printf", "%s\\0", *words]).stdout
    assert told == b"".join(word.encode() + b"\0" for word in words)


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=200))
def test_bytes_go_there_and_back(data: bytes) -> None:
    assert Shell(Path("/nowhere")).run(["cat"], stdin=data).stdout == data


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_exit_status_is_the_programs(remote: Shell, status: int) -> None:
    done = remote.run(["sh", "-c", f"echo out; echo err >&2; exit {status}"])
    assert (done.status, done.text, done.words) == (status, "out", "err")


def test_a_program_that_prints_a_status_itself_does_not_mislead(remote: Shell) -> None:
    done = remote.run(["printf", "\n__RC=0\n"])
    assert (done.status, done.stdout) == (0, b"\n__RC=0\n")
    assert remote.run(["sh", "-c", "printf '\\n__RC=0\\n'; exit 5"]).status == 5


def test_a_connection_that_ends_is_told_from_a_program_that_does(remote: Shell) -> None:
    with pytest.raises(DeviceError, match=r"the board is gone$"):
        remote.script("printf half; kill -9 $$")
    remote.cut = "echo no route >&2; exit 0; "
    with pytest.raises(DeviceError, match=r"the board is gone \(no route\)"):
        remote.run(["true"])


def test_what_takes_too_long(remote: Shell) -> None:
    with pytest.raises(DeviceError, match=r"the board did not answer within 0\.2 s"):
        remote.run(["sleep", "30"], timeout_s=0.2)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("cp: x: No space left on device", "has no space left in .*; free some"),
        ("mkdir: Permission denied", "does not let us write to .*; choose a folder"),
        ("cp: Read-only file system", "does not let us write to"),
        ("strange", "refused a command: strange"),
    ],
)
def test_a_command_that_fails_is_one_sentence_with_a_remedy(remote: Shell, said: str, sentence: str) -> None:
    remote.parent = "/there"
    with pytest.raises(DeviceError, match=sentence) as caught:
        remote.run(["sh", "-c", f"echo first >&2; echo '{said}' >&2; exit 1"], check=True)
    assert "\n" not in str(caught.value)


def test_files_are_pushed_with_their_mode_and_checked(remote: Shell, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1" * 100)
    two.write_bytes(b"")
    folder = remote.make_folder()
    remote.push_all({f"{folder}/a b": one, f"{folder}/c\\d": two}, mode=0o750)
    assert Path(folder, "a b").read_bytes() == b"1" * 100
    assert Path(folder, "c\\d").stat().st_mode & 0o777 == 0o750
    remote.send = lambda local, place, *, timeout_s: Path(place).write_bytes(b"2" * 100)  # type: ignore[assignment]
    with pytest.raises(DeviceError, match=r"one: arrived damaged on the board; check"):
        remote.push(one, f"{folder}/x")


def test_folders_of_dead_ones_go_after_a_day(remote: Shell) -> None:
    old, young = remote.make_folder(), remote.make_folder()
    Path(old, "file").touch()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    os.utime(young, (time.time() - 0.9 * 86400,) * 2)
    newest = remote.make_folder()
    assert not Path(old).exists()
    assert Path(young).is_dir()
    assert len({old, young, newest}) == 3
    for folder in (young, newest):
        remote.remove(folder)
    assert not Path(remote.parent).exists()


def test_folders_of_processes_that_have_ended_go_at_once(remote: Shell) -> None:
    """Not those of a process that lives, and not those of other machines, whose processes are not known."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = Path(remote.make_folder())
    machine, _, number = mine.name.split("-")
    others = [mine.with_name(name) for name in (f"{machine}-{os.getppid()}-{number}", f"00000000-{ended.pid}-{number}")]
    orphan = mine.with_name(f"{machine}-{ended.pid}-{number}")
    for folder in (orphan, *others):
        folder.mkdir()
        (folder / "file").touch()
    remote.make_folder()
    assert not orphan.exists()
    assert all((folder / "file").exists() for folder in others)
    assert mine.is_dir()


def test_the_parent_stays_while_others_are_in_it(remote: Shell) -> None:
    mine, other = remote.make_folder(), remote.make_folder()
    remote.remove(mine)
    assert Path(other).is_dir()


@pytest.fixture
def script(remote: Shell) -> Iterator[Path]:
    """A program in our folder that answers the first request and does then what the request says."""
    path = Path(remote.make_folder()) / "worker"
    path.write_text('#!/bin/sh\nread -r line; eval "$(printf %s "$line" | sed \'s/.*: "//; s/"}//\')"\n')
    path.chmod(0o755)
    yield path


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ("exit 3", "ended with exit code 3"),
        ("echo no numpy here >&2; exit 1", "ended with exit code 1 after saying 'no numpy here'"),
        ("kill -SEGV $$", "was ended by SIGSEGV"),
        ("printf half", "the answer was cut short or is no JSON: b'half"),
        ("printf half; kill -9 $PPID", "the board is gone"),
        ("kill -9 $PPID", "the board is gone"),
        ("sleep 60", r"no answer within 0\.5 s, so the run counts as hanging"),
    ],
)
def test_how_a_worker_ended_is_told(remote: Shell, script: Path, action: str, sentence: str) -> None:
    client = remote.open([str(script)], "net.onnx")
    with pytest.raises(DeviceError, match=f"net.onnx: .*{sentence}"):
        client.ask({"do": action}, timeout_s=0.5 if "sleep" in action else 30)
    client.close()


def test_a_worker_that_does_not_listen_is_ended_there(remote: Shell) -> None:
    """It outlives its connection, as one does that hangs: its process must be ended by its number."""
    deaf = Path(remote.make_folder()) / "deaf"
    deaf.write_text("#!/bin/sh\ntrap '' HUP TERM\necho '{}'\nwhile :; do sleep 0.1; done\n")
    deaf.chmod(0o755)
    client = remote.open([str(deaf)], "net.onnx")
    client.ask({}, timeout_s=30)
    assert running(deaf)
    client.close()
    until = time.monotonic() + 10
    while running(deaf) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(deaf)


def running(program: Path) -> bool:
    return any(str(program) in (one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))
