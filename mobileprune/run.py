"""The run directory: what was asked, an append-only journal, a lock, and files that appear whole or not at all.

A run is a folder with ``run.toml`` (what was asked, never changed), ``journal.jsonl`` (one line per finished thing)
and one folder per stage. Whatever the journal holds is done; after a kill the same command goes on from there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from mobileprune.errors import MobilepruneError, UsageError

Entry = dict[str, Any]
_HALF_WRITTEN = (".*.tmp", ".*.part", ".android-*", ".float32-*")  # files and folders
_LAYOUT = 3  # of run.toml and the journal; raised whenever an older folder could not be gone on with


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; on success it is fsynced and renamed to ``path``.

    On any failure nothing is left behind, and a full or read-only disk becomes one sentence.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON to ``path`` atomically."""
    write_text(path, json.dumps(data, indent=1, sort_keys=False) + "\n")


def disk_error(path: Path, error: OSError) -> MobilepruneError:
    """One sentence for a failed write: where, why, and what to do."""
    remedies = {
        errno.ENOSPC: "free some space and run the same command again",
        errno.EDQUOT: "free some of your quota and run the same command again",
        errno.EFBIG: "raise the file size limit and run the same command again",
    }
    remedy = remedies.get(error.errno or 0, "choose a folder you can write to with --run")
    return MobilepruneError(f"cannot write {path}: {error.strerror or error}; {remedy}")


class Journal:
    """An append-only list of JSON objects, one per line, each fsynced before ``append`` returns.

    Every entry has ``kind`` and ``key``; the newest entry of a (kind, key) is the one that counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries, self._whole = _read_journal(path)

    def refresh(self) -> None:
        """Read what other processes recorded since: to be called when the run's lock was taken anew."""
        self.entries, self._whole = _read_journal(self.path)

    def append(self, kind: str, key: str, **data: Any) -> Entry:
        """Record a finished thing. Raises MobilepruneError when the disk is full; the journal is then as before.

        MobilepruneError, too, where another process has recorded something since the journal was read.
        """
        entry: Entry = {"kind": kind, "key": key, "time": round(time.time(), 3), **data}
        line = (json.dumps(entry) + "\n").encode()
        try:
            with self.path.open("a+b") as file:
                file.seek(self._whole)
                if b"\n" in file.read():
                    raise MobilepruneError(
                        f"{self.path} was written by another process meanwhile: open the run again and go on from there"
                    )
                file.truncate(self._whole)  # drops the half line a kill may have left
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, self._whole)
                    raise
        except OSError as error:
            raise disk_error(self.path, error) from error
        self._whole += len(line)
        self.entries.append(entry)
        return entry

    def extend(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Record several finished things now, all of them or none. Raises MobilepruneError when the disk is full."""
        now = round(time.time(), 3)
        whole = [*self.entries, *({**entry, "time": now} for entry in entries)]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in whole))
        self.refresh()

    def get(self, kind: str, key: str) -> Entry | None:
        """The newest entry of this kind and key, or None."""
        return next((e for e in reversed(self.entries) if e["kind"] == kind and e["key"] == key), None)

    def newest(self, kind: str) -> Entry | None:
        """The newest entry of this kind, or None."""
        return next((e for e in reversed(self.entries) if e["kind"] == kind), None)

    def all(self, kind: str) -> list[Entry]:
        """The newest entry per key of this kind, in the order in which the keys first appeared."""
        return list({e["key"]: e for e in self.entries if e["kind"] == kind}.values())


def _read_journal(path: Path) -> tuple[list[Entry], int]:
    """Entries, and the length in bytes of the lines that are whole.

    A last line without its newline is what a kill leaves and is dropped; any other damage is an error.
    """
    if not path.exists():
        return [], 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    entries: list[Entry] = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            entry = json.loads(line)
            entry["kind"], entry["key"]
        except (ValueError, TypeError, KeyError):
            raise MobilepruneError(
                f"{path} is damaged in line {number}: it is not a journal entry; "
                "remove that line (what it held is then done again) or start a new run with --run"
            ) from None
        entries.append(entry)
    return entries, whole


class Run:
    """An open run directory."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path = path
        self.asked = asked
        self.journal = Journal(path / "journal.jsonl")

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run; UsageError when ``path`` holds none, or one of another layout."""
        file = path / "run.toml"
        if not file.is_file():
            raise UsageError(f"{path} is not a run folder: it has no run.toml; see `mobileprune optimize --help`")
        try:
            asked = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise MobilepruneError(f"{file} is damaged: {error}; start a new run with --run") from None
        if (layout := asked.pop("layout", 1)) != _LAYOUT:
            raise UsageError(
                f"{path} was begun by another version of mobileprune: its files have layout {layout}, this one reads "
                f"{_LAYOUT}; go on with that version, or start a new run with --run"
            )
        return cls(path, asked)

    @classmethod
    def create(cls, path: Path, asked: Mapping[str, Any]) -> Run:
        """Make a new run folder that holds ``asked`` in its run.toml."""
        if path.exists() and (not path.is_dir() or any(p.name != ".lock" for p in path.iterdir())):
            raise UsageError(f"{path} exists and is not a run folder; name another with --run")
        write_text(path / "run.toml", tomli_w.dumps({"layout": _LAYOUT, **asked}))
        return cls(path, asked)

    def discard_if_unbegun(self) -> None:
        """Remove a run whose question turned out to be wrong before anything was trained or measured."""
        if all(entry["kind"] == "data" or entry["kind"] == "question" for entry in self.journal.entries):
            (self.path / "run.toml").unlink(missing_ok=True)
            self.journal.path.unlink(missing_ok=True)

    def folder(self, *parts: str) -> Path:
        """A folder of this run; made if it is not there."""
        folder = self.path.joinpath(*parts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error
        return folder

    def once(self, kind: str, key: str, work: Callable[[], Mapping[str, Any]]) -> Entry:
        """The journal's entry of this kind and key; where there is none, ``work()`` is done and recorded first."""
        return self.journal.get(kind, key) or self.journal.append(kind, key, **work())


def _sweep(path: Path) -> None:
    """Remove what a killed process left half-written in the run folder ``path``; no other folder is touched."""
    begun = (path / "run.toml").exists()
    names = _HALF_WRITTEN if begun else (".run.toml.*.tmp",)
    for leftover in [found for name in names for found in (path.rglob(name) if begun else path.glob(name))]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder ``path`` (made if needed) for this process alone; MobilepruneError when another has it.

    The lock is the kernel's, so it goes with the process, however that ends.
    """
    created = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+")
    except OSError as error:
        raise disk_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise MobilepruneError(
                f"{path} is in use by {holder}: wait until it ends, or name another folder with --run"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        _sweep(path)
        try:
            yield
        finally:
            if not (path / "run.toml").exists():  # nothing was begun: leave nothing
                (path / ".lock").unlink(missing_ok=True)
                if created and not any(path.iterdir()):
                    path.rmdir()
