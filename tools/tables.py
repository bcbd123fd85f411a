"""Tables of results that grow over several runs: a row is added when it is done, and is not done again."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device_profiles.devices import open_device


class Table:
    """A CSV file whose rows are told apart by some of their columns; every command that added to it stands on top,
    with the commit, the processor and the versions of what it ran on.

    columns: all of them, in order. key: those that name a row. command: what is run now.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str], command: str) -> None:
        self.path, self.columns, self.key = path, list(columns), list(key)
        self.command = f"# {command}; commit {commit()}; {machine()}; {versions()}"
        lines = path.read_text().splitlines() if path.exists() else []
        self.commands = [line for line in lines if line.startswith("#")]
        self.rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return any(self._name(known) == self._name(row) for known in self.rows)

    def _name(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in self.key)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write ``row``, in place of one of the same name, and the command that it comes of."""
        if self.command not in self.commands:
            self.commands.append(self.command)
        self.rows = [known for known in self.rows if self._name(known) != self._name(row)]
        self.rows.append({column: str(row[column]) for column in self.columns})
        write_rows(self.path, self.columns, self.rows, self.commands)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], comments: Iterable[str]) -> None:
    """Write a whole table, or leave the one that is there. comments: lines for the top, with their #."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", newline="") as file:
        file.writelines(f"{line}\n" for line in comments)
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def commit() -> str:
    """The short name of the commit that is checked out; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def versions() -> str:
    """Of what trains, writes files and runs them; a commit's ``constraints.txt`` has all the others."""
    named = ("torch", "onnxruntime", "ai-edge-litert", "litert-torch", "torch-pruning")
    return ", ".join(f"{name} {version(name)}" for name in named)


def machine() -> str:
    """The processor here and its widest vectors: these decide which networks are fast."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    widest = next((f" with {name}" for name in ("avx512f", "avx2", "avx") if name in flags), "")
    return f"{open_device('host').describe().soc}{widest}"
