"""mobileprune.toml: what ``optimize`` takes as flags, in a file. Flags win over it.

The file's keys are the flags' names without the dashes in front (``probe-epochs = 4``; ``probe_epochs`` is the same),
so that a new flag is a new key and nothing here changes. A flag that may be repeated takes a list, ``model-arg`` also
a table.
"""

from __future__ import annotations

import difflib
import json
import textwrap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileprune.errors import UsageError

NAME = "mobileprune.toml"


@dataclass(frozen=True)
class Key:
    """A flag as a key of the file. field: its name in the program. help: as ``--help`` prints it."""

    name: str
    field: str
    repeated: bool
    flag: bool  # on or off, takes no value
    numeric: bool
    table: bool  # may be written as a table: its values are KEY=VALUE
    help: str


def read(path: Path, keys: Sequence[Key]) -> dict[str, Any]:
    """The file's values by field, as text the way a command line gives them (booleans stay).

    Raises UsageError for a file that is not TOML, a key that is none (with the nearest one that is) and a value of a
    kind that its flag cannot take.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no configuration {path}; `mobileprune init` writes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}; `mobileprune init` writes a right one") from None
    known = {key.name: key for key in keys}
    values: dict[str, Any] = {}
    for written, value in data.items():
        key = known.get(written.replace("_", "-"))
        if key is None:
            raise UsageError(f"{path}: {written!r} is no key{_nearest(written, known)}")
        if key.field in values:
            raise UsageError(f"{path}: {key.name} is there twice, as {written!r} and in another spelling; keep one")
        values[key.field] = _value(path, key, value)
    return values


def _nearest(written: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(written.replace("_", "-"), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(known)}"


def _value(path: Path, key: Key, value: Any) -> Any:
    if key.flag:
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {key.name} is {value!r}; write true or false")
        return value
    if key.repeated:
        if key.table and isinstance(value, Mapping):
            value = [f"{name}={one!r}" if isinstance(one, bool) else f"{name}={one}" for name, one in value.items()]
        entries = value if isinstance(value, list) else [value]
        return [_text(path, key, entry) for entry in entries]
    return _text(path, key, value)


def _text(path: Path, key: Key, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "a number" if key.numeric else "text"
        raise UsageError(f"{path}: {key.name} is {value!r}; it takes {kind}")
    return str(value)


def write(keys: Sequence[Key], values: Mapping[str, Any]) -> str:
    """A commented file: the keys that ``values`` (by field) has are set, the others stand in comments."""
    parts = [
        "# What `mobileprune optimize` is asked in this folder. A flag on the command line wins over this file.",
        "# Relative paths are relative to the folder in which the command runs.",
    ]
    for key in keys:
        value = values.get(key.field)
        given = value not in (None, (), [])
        example = _literal(key, value) if given else _placeholder(key)
        parts += ["", *(f"# {line}" for line in _folded(key.help)), f"{'' if given else '# '}{key.name} = {example}"]
    return "\n".join(parts) + "\n"


def _folded(text: str, width: int = 110) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width)


def _placeholder(key: Key) -> str:
    """What a key that is not set shows in its comment: its default where its help tells one."""
    if key.flag:
        return "true"
    _, told, default = key.help.rpartition("[default: ")
    default = default.rstrip("]").split(";")[0].strip()
    if not told or default == "":
        return "[...]" if key.repeated else "..."
    return _literal(key, [default] if key.repeated else default)


def _literal(key: Key, value: Any) -> str:
    """``value`` as TOML, of which JSON's strings, numbers and lists of strings are a part."""
    if key.repeated:
        value = [str(one) for one in value]
    elif key.numeric and isinstance(value, str):
        with suppress(ValueError):  # a default in words stays
            value = json.loads(value)
    elif not isinstance(value, bool | int | float):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)
