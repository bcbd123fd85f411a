"""Devices that are reached through a program of their own kind, `adb` or `ssh`: what both kinds share.

A `Remote` is the way there: run a program, push a file, hold a program that is spoken to. A `RemoteDevice` is a
device behind one: it pushes the files, starts a runner for each and times them. A kind of device gives both what
differs: how a command reaches its shell and how a file does, and which `Runner` runs which file.

Every argument is quoted before it reaches the device's shell, files get names of ours there, and every command ends by
telling its exit status: where that is missing the device went away, whatever the local program returned. Written is
only below one folder of ours: each object has a folder of its own in it. One that could not be removed, because the
link was lost or the program was killed, goes when the same machine measures there again, and after a day in any case.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import secrets
import shlex
import subprocess
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_profiles.devices import folder_names
from device_profiles.devices.base import Delegation, Device, Loaded, Round, Session
from device_profiles.devices.completed import Completed
from device_profiles.digest import sha256
from device_profiles.errors import DeviceError, UnreachableError
from device_profiles.profile import DeviceProfile
from device_profiles.runners.client import WorkerClient

_STATUS = "__RC="
_PID = "__PID="
_COMMAND_S = 60.0
_END_S = 1.0
_SLOWEST_LINK = 200_000.0  # bytes/s
_FULL = re.compile(r"no space left|disk quota exceeded|enospc", re.IGNORECASE)
_FORBIDDEN = re.compile(r"permission denied|read-only file system|operation not permitted", re.IGNORECASE)


class Remote(ABC):
    """The way to a device. `label` names the device in sentences ("the phone 8A1X"); `parent` is our folder there."""

    label: str
    parent: str

    @abstractmethod
    def command(self, script: str) -> list[str]:
        """The local command that has the device's shell run a script, with stdin, stdout and stderr passed through."""

    @abstractmethod
    def send(self, local: Path, remote: str, *, timeout_s: float) -> None:
        """Copy a file; raises DeviceError. `push` does more."""

    @abstractmethod
    def lost(self, stderr: str) -> str:
        """A sentence on a connection that ended or never came to be, from what the local program said, if anything."""

    def is_away(self, stderr: str) -> bool:
        """Whether such a connection never came to be as the device is not there, which raises UnreachableError."""
        return False

    def run(
        self, argv: Sequence[str], *, timeout_s: float = _COMMAND_S, stdin: bytes | None = None, check: bool = False
    ) -> Completed:
        """Run a program to its end. check: an exit status other than 0 raises, too.

        Raises DeviceError when the connection ends before the program does, and when that takes longer than timeout_s.
        """
        return self.script(shlex.join(argv), timeout_s=timeout_s, stdin=stdin, check=check)

    def script(
        self, script: str, *, timeout_s: float = _COMMAND_S, stdin: bytes | None = None, check: bool = False
    ) -> Completed:
        """As `run`, for lines of shell: nothing that a user or a device gave may be in them unquoted."""
        try:
            done = subprocess.run(
                self.command(f'( {script}\n); printf "\\n{_STATUS}%s\\n" "$?"'),
                input=stdin or b"",
                capture_output=True,
                timeout=timeout_s,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{self.label} did not answer within {timeout_s:g} s; is it still connected?") from None
        except OSError as error:
            raise UnreachableError(f"{self.label} cannot be reached: {error}") from error
        marked = re.fullmatch(rb"(.*)\r?\n" + _STATUS.encode() + rb"(\d+)\r?\n", done.stdout, re.DOTALL)
        if marked is None:
            said = done.stderr.decode(errors="replace").strip()
            raise (UnreachableError if self.is_away(said) else DeviceError)(self.lost(said))
        completed = Completed(int(marked[2]), marked[1], done.stderr)
        if check and completed.status:
            raise DeviceError(self.refusal(completed.words))
        return completed

    def refusal(self, words: str) -> str:
        """A sentence on a command that failed there, from the last line it said."""
        if _FULL.search(words):
            return f"{self.label} has no space left in {self.parent} ({words}); free some and try again"
        if _FORBIDDEN.search(words):
            return f"{self.label} does not let us write to {self.parent} ({words}); choose a folder that may be written"
        return f"{self.label} refused a command: {words}"

    def push(self, local: Path, remote: str, *, mode: int = 0o644) -> None:
        """Copy a file there, whole: its SHA-256 is compared after. Raises DeviceError."""
        self.push_all({remote: local}, mode=mode)

    def push_all(self, files: Mapping[str, Path], *, mode: int = 0o644) -> None:
        """As `push`, for several files (remote path -> local path) with one check at the end."""
        for remote, local in files.items():
            self.send(local, remote, timeout_s=_COMMAND_S + local.stat().st_size / _SLOWEST_LINK)
        names = [*files]
        words = shlex.join(names)
        script = f"chmod {mode:o} {words} && sha256sum {words}"
        told = self.script(script, timeout_s=10 * _COMMAND_S, check=True).text.splitlines()
        wanted = [sha256(local) for local in files.values()]
        got = [line.lstrip("\\").split(maxsplit=1)[0] for line in told if line.strip()]
        if got != wanted:
            bad = next((str(files[name]) for name, a, b in zip(names, got, wanted, strict=False) if a != b), names[-1])
            raise DeviceError(f"{bad}: arrived damaged on {self.label}; check the cable or the link and try again")

    def open(self, argv: Sequence[str], label: str) -> RemoteClient:
        """Start a program that answers JSON lines, as worker.py does; `label` names in errors what it is for."""
        return RemoteClient(self, argv, label)

    def make_folder(self) -> str:
        """A new folder of our own; those of programs that ended without removing theirs are removed on the way."""
        parent = shlex.quote(self.parent)
        sweep = f"find {parent} -mindepth 1 -maxdepth 1 -type d -mtime +0 -exec rm -rf {{}} +"
        there = self.script(f"mkdir -p {parent} && {{ {sweep} || true; }} && ls {parent}", check=True).text.split()
        if orphans := [f"{self.parent}/{name}" for name in there if folder_names.is_orphan(name)]:
            self.run(["rm", "-rf", *orphans])
        folder = f"{self.parent}/{folder_names.new()}"
        self.run(["mkdir", "-p", folder], check=True)  # -p: another program may have removed the parent meanwhile
        return folder

    def remove(self, folder: str) -> None:
        """Remove a folder that `make_folder` made, and the folder of ours around it once it is empty."""
        parent = shlex.quote(self.parent)
        self.script(f"rm -rf {shlex.quote(folder)}; rmdir {parent} 2>/dev/null || true", check=True)


class RemoteClient(WorkerClient):
    """A worker on a device. It is ended there, too, and a connection that ends is told from a worker that does."""

    def __init__(self, remote: Remote, argv: Sequence[str], label: str) -> None:
        self._remote = remote
        self._pid: int | None = None
        self._status: int | None = None
        # exec keeps the process id; the shell around it stays to tell the status.
        inner = f'echo "{_PID}$$"; exec {shlex.join(argv)}'
        super().__init__(remote.command(f'sh -c {shlex.quote(inner)}; printf "\\n{_STATUS}%s\\n" "$?"'), label)

    def close(self) -> None:
        self._let_end()
        super().close()
        pid, self._pid = self._pid, None
        if pid is not None and self._status is None:
            # It ends with its stdin; one that hangs does not. Its folder in its command line tells it from a stranger
            # that has its number by now. Where the device is gone there is nothing to end.
            ours = f"grep -qF {shlex.quote(self._remote.parent)} /proc/{pid}/cmdline 2>/dev/null"
            with contextlib.suppress(DeviceError):
                self._remote.script(f"{ours} && kill -9 {pid}", timeout_s=10)

    def _let_end(self) -> None:
        """A worker that waits for a request ends with its stdin, and says so."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None or stdin.closed or stdout.closed or self._status is not None:
            return
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            stdin.close()
            while self._read_line(time.monotonic() + _END_S):
                pass

    def _read_line(self, deadline: float) -> bytes:
        while line := super()._read_line(deadline):
            text = line.strip()
            if text.startswith(_PID.encode()):
                self._pid = int(text[len(_PID) :])
            elif text.startswith(_STATUS.encode()):
                self._status = int(text[len(_STATUS) :])
                return b""
            elif text:
                return line
        return b""

    def _last_words(self) -> str:
        if self._status is not None:
            return super()._last_words()
        said = self._said()
        self.close()
        return self._remote.lost(said)

    def _exit_code(self) -> int:
        """Of the worker, not of the program that leads there; a shell tells a signal as 128 more than its number."""
        status = self._status or 0
        return 128 - status if status > 128 else status


class RunningFile(ABC):
    """One file, loaded on a device."""

    loaded: Loaded

    @abstractmethod
    def time_round(self, *, min_runs: int, min_seconds: float) -> Round:
        """As `Session.time_round`."""

    @abstractmethod
    def close(self) -> None:
        """End what runs it; harmless when that has ended."""


@dataclass(frozen=True)
class Request:
    """A file to be loaded: where it is on the device, what it is called in errors, and how it shall run."""

    remote_path: str
    label: str
    threads: int
    timeout_s: float
    delegate: str = "cpu"
    core_mask: int | None = None


class Runner(ABC):
    """A program that runs files on a device."""

    @abstractmethod
    def install(self, remote: Remote, folder: str) -> None:
        """Put what it needs into a folder of ours that is there; called once per folder. Raises DeviceError."""

    @abstractmethod
    def start(self, remote: Remote, folder: str, request: Request) -> RunningFile:
        """Load a file; `folder` is the one it was installed in. When it raises DeviceError nothing is left running."""


class LineFile(RunningFile):
    """A file in a worker that answers JSON lines: worker.py or the bundle's runner."""

    def __init__(self, remote: Remote, argv: Sequence[str], request: Request) -> None:
        self._remote = remote
        self._folder = posixpath.dirname(request.remote_path)
        self._timeout_s = request.timeout_s
        self._client = remote.open(argv, request.label)
        load: dict[str, Any] = {"do": "load", "path": request.remote_path, "threads": request.threads}
        if request.core_mask is not None:
            load["core_mask"] = request.core_mask
        try:
            answer = self._client.ask(load, timeout_s=request.timeout_s)
        except BaseException:
            self._client.close()
            raise
        delegation = answer.get("delegation")
        self.loaded = Loaded(answer["init_ms"], answer["runtime"], Delegation(**delegation) if delegation else None)

    def time_round(self, *, min_runs: int, min_seconds: float) -> Round:
        request = {"do": "round", "min_runs": min_runs, "min_seconds": min_seconds}
        answer = self._client.ask(request, timeout_s=self._timeout_s + min_seconds)
        return Round.of([us / 1e3 for us in answer["times_us"]], answer["peak_memory_mb"])

    def outputs(self, inputs: Path) -> dict[str, bytes]:
        """Run the file once on the raw numbers in `inputs`, all its inputs one after the other; the raw outputs."""
        given, made = f"{self._folder}/in.raw", f"{self._folder}/out.raw"
        self._remote.push(inputs, given)
        answer = self._client.ask({"do": "run", "input": given, "output": made}, timeout_s=self._timeout_s)
        rest = self._remote.run(["cat", made], timeout_s=10 * _COMMAND_S, check=True).stdout
        found = {}
        for one in answer["outputs"]:
            found[one["name"]], rest = rest[: one["bytes"]], rest[one["bytes"] :]
            if len(found[one["name"]]) != one["bytes"]:
                raise DeviceError(f"{self._remote.label}: the outputs arrived cut short")
        return found

    def close(self) -> None:
        self._client.close()


class RemoteDevice(Device):
    """A device behind a `Remote`. What its runners need stays there until `clean_up`, or the end of this program."""

    def __init__(self, profile: DeviceProfile, remote: Remote) -> None:
        self.profile = profile
        self.remote = remote
        self._folders: list[str] = []  # the last is in use
        self._installed: set[Runner] = set()
        self._running: list[RunningFile] = []
        weakref.finalize(self, _remove, remote, self._folders)

    @abstractmethod
    def runner(self, suffix: str, delegate: str) -> Runner:
        """What runs files of that suffix, always the same object; raises DeviceError, with the remedy, for none."""

    @contextlib.contextmanager
    def session(
        self,
        files: Mapping[str, Path],
        *,
        threads: int,
        timeout_s: float,
        delegate: str = "cpu",
        core_mask: int | None = None,
    ) -> Iterator[Session]:
        runners = {name: self._runner(path, delegate) for name, path in files.items()}
        place = self._place()
        running: dict[str, RunningFile] = {}
        try:
            self._install(set(runners.values()))
            # Names of ours: what a user calls a file never gets there.
            there = {name: f"{place}/{i}{path.suffix.lower()}" for i, (name, path) in enumerate(files.items())}
            self.remote.push_all({there[name]: path for name, path in files.items()})
            for name, path in files.items():
                request = Request(there[name], str(path), threads, timeout_s, delegate, core_mask)
                running[name] = runners[name].start(self.remote, self._folders[-1], request)
                self._running.append(running[name])
            yield _RemoteSession(running)
        finally:
            self._end(list(running.values()))
            with contextlib.suppress(DeviceError):  # a device that is gone: `make_folder` sweeps when it is back
                self.remote.run(["rm", "-rf", place])

    def outputs(self, path: Path, inputs: Path, *, threads: int = 1, timeout_s: float = 120.0) -> dict[str, bytes]:
        """What a file gives on the device for the raw numbers in `inputs`; DeviceError where its runner only times."""
        with self.session({"": path}, threads=threads, timeout_s=timeout_s):
            running = self._running[-1]
            if not isinstance(running, LineFile):
                raise DeviceError(f"{path}: what runs it on {self.remote.label} does not give its outputs")
            return running.outputs(inputs)

    def clean_up(self) -> None:
        self._end(list(self._running))
        self._installed.clear()
        _remove(self.remote, self._folders)

    def _runner(self, path: Path, delegate: str) -> Runner:
        try:
            return self.runner(path.suffix.lower(), delegate)
        except DeviceError as error:
            raise DeviceError(f"{path}: {error}") from error

    def _place(self) -> str:
        """A new folder for the files of one session, inside the one that holds what the runners need."""
        name = secrets.token_hex(4)
        if self._folders and self.remote.run(["mkdir", f"{self._folders[-1]}/{name}"]).status == 0:
            return f"{self._folders[-1]}/{name}"
        self._installed.clear()
        self._folders.append(self.remote.make_folder())
        self.remote.run(["mkdir", f"{self._folders[-1]}/{name}"], check=True)
        return f"{self._folders[-1]}/{name}"

    def _install(self, runners: set[Runner]) -> None:
        for runner in runners - self._installed:
            runner.install(self.remote, self._folders[-1])
            self._installed.add(runner)

    def _end(self, running: list[RunningFile]) -> None:
        for one in running:
            one.close()
            if one in self._running:
                self._running.remove(one)


class _RemoteSession(Session):
    def __init__(self, running: Mapping[str, RunningFile]) -> None:
        self._running = running

    def loaded(self, name: str) -> Loaded:
        return self._running[name].loaded

    def time_round(self, name: str, *, min_runs: int, min_seconds: float) -> Round:
        return self._running[name].time_round(min_runs=min_runs, min_seconds=min_seconds)


def _remove(remote: Remote, folders: list[str]) -> None:
    """Remove our folders, where the device is still there; `Remote.make_folder` sweeps up what was left."""
    while folders:
        with contextlib.suppress(DeviceError):
            remote.remove(folders.pop())
