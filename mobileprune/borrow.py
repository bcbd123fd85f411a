"""A run for another device, or in another precision, that begins with the base and the probes of one that is there.

What a network knows does not depend on what runs it: only latencies have to be measured anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobileprune.errors import UsageError
from mobileprune.request import Request, filled, new_folder, open_or_create
from mobileprune.run import Run, disk_error
from mobileprune.words import counted

_KINDS = ("data", "training", "epoch", "ranking", "untrained", "probe", "base")
_SAME = ("model", "data", "training", "seed")


def folder_beside(other: Path) -> Path:
    """A new folder under runs/, named as one of the same model and data."""
    asked = Run.open(other).asked
    return new_folder(asked["model"]["name"], asked["data"]["spec"])


def open_or_borrow(path: Path, request: Request, other: Path | None) -> Run:
    """`open_or_create`, where a new run asks what the run in ``other`` does unless ``request`` says otherwise.

    It is given that run's base and probes, and the losses scored before training. UsageError where ``other`` has none,
    where the two differ in more than the device and the files, or where ``path`` has a base of its own.
    """
    if other is None:
        return open_or_create(path, request)
    theirs = Run.open(other)
    if theirs.journal.get("base", "score") is None or not theirs.journal.all("probe"):
        raise UsageError(f"{other} has no probes yet: finish it first, or leave --probes-from out")
    begun = (path / "run.toml").exists()
    run = open_or_create(path, request if begun else filled(request, theirs.asked))
    try:
        borrow(run, theirs)
    except UsageError:
        if not begun:
            (path / "run.toml").unlink()
        raise
    return run


def borrow(run: Run, other: Run) -> None:
    """Give ``run`` the base and the probes of ``other``, where it has not got them yet; see `open_or_borrow`.

    The journal tells of all of them or of none: a run that was killed meanwhile has nothing of another's.
    """
    taken = run.journal.newest("borrowed")
    source = str(other.path.resolve())
    if run.journal.get("base", "score") is not None:
        if taken is None or taken["key"] != source:
            raise UsageError(
                f"{run.path} has a base of its own already: leave --probes-from out to go on with it, "
                "or name another folder with --run"
            )
        return
    _check_alike(run, other)
    _copy(other.path / "base", run.path / "base")
    for entry in other.journal.all("probe"):
        _copy(other.path / "probes" / entry["key"], run.path / "probes" / entry["key"])
    probes = counted(len(other.journal.all("probe")), "probe")
    asked = f"{other.asked['device']}, {other.asked.get('precision', 'float32')}"
    taken_over = [{"kind": "borrowed", "key": source}]
    taken_over.append({"kind": "note", "key": f"base and {probes} are those of {other.path} ({asked})"})
    taken_over += [entry for entry in other.journal.entries if entry["kind"] in _KINDS]
    run.journal.extend(taken_over)


def _check_alike(run: Run, other: Run) -> None:
    for part in _SAME:
        if run.asked[part] != other.asked[part]:
            raise UsageError(
                f"{other.path} was begun with {_difference(part, other.asked[part], run.asked[part])}: its base and "
                "probes are of no use here; leave such flags out, or leave --probes-from out"
            )
    if (theirs := _steps(other.asked)) != (ours := _steps(run.asked)):
        raise UsageError(
            f"{other.path} prunes channels in steps of {theirs} for {other.asked['device']}, and "
            f"{run.asked['device']} wants {ours}: its probes have other widths; leave --probes-from out"
        )
    if all(run.asked.get(part) == other.asked.get(part) for part in ("device", "device_profile", "precision")):
        raise UsageError(
            f"{other.path} is of the same device and precision: ask it for another budget with --run {other.path}"
        )


def _difference(part: str, theirs: Any, ours: Any) -> str:
    """What of two parts of a question is not alike, in words."""
    if not isinstance(theirs, Mapping):
        return f"{part} {theirs}, not {ours}"
    name = next(n for n in [*theirs, *ours] if theirs.get(n) != ours.get(n))
    return f"{part} {name} {theirs.get(name)}, not {ours.get(name)}"


def _steps(asked: Mapping[str, Any]) -> Any:
    from device_profiles.profile import from_table

    profile = from_table(asked["device_profile"])
    return profile.channel_steps or profile.channel_step


def _copy(source: Path, target: Path) -> None:
    """A folder without the files that were exported of it; again where a killed process had begun."""
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("artifacts", ".*"), dirs_exist_ok=True)
    except OSError as error:
        raise disk_error(target, error) from error
