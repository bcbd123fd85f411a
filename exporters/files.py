"""Files that are whole or absent, under whatever name the user chose."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporters.errors import ExportError

_LONGEST_NAME = 255  # bytes, on the usual Linux file systems


def shown(path: Path) -> str:
    """The path as a message shows it: control characters and undecodable bytes escaped."""
    return repr(os.fspath(path))


def with_ending(path: Path, ending: str) -> Path:
    """The file beside `path` whose name has `ending` appended, shortened where the name would grow too long."""
    name = os.fsencode(path.name)[: _LONGEST_NAME - len(ending)]
    return path.with_name(os.fsdecode(name) + ending)


def check_target(path: Path, suffix: str) -> None:
    """Refuse a path that cannot become a file before any work is done for it."""
    if "\0" in os.fspath(path):
        raise ExportError(f"cannot write {shown(path)}: the name holds a null character; choose another name")
    if path.suffix != suffix:
        raise ExportError(f"cannot write {shown(path)}: the name must end in {suffix!r}")
    try:
        if path.is_dir():
            raise ExportError(f"cannot write {shown(path)}: it is a folder; name a file inside it")
        if not path.parent.is_dir():
            raise ExportError(f"cannot write {shown(path)}: the folder {shown(path.parent)} does not exist; create it")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ExportError:
    """The system's refusal to write `path`, in a sentence."""
    reason = error.strerror or str(error)
    return ExportError(f"cannot write {shown(path)}: {reason.lower()}; free some space or choose another place")


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a hidden file beside `path`; rename it to `path` when the block ends well, else remove it.

    `durable` waits until the bytes are on the disk. Raises ExportError where the system refuses to write.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
        if durable:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)
