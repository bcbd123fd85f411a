"""Device profiles: what is known of a device, as a small TOML file. Data only: no code, no pickle."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_profiles import rules
from device_profiles.errors import ProfileError
from device_profiles.latency_model import LatencyModel
from device_profiles.rules import Rule, short

SCHEMA = 1
CATALOG = Path(__file__).parent / "catalog"
_MOST_BYTES = 1_000_000
STEP_KINDS = ("dense", "pointwise", "depthwise")
FORMAT_OF_RUNTIME = {"onnxruntime": "onnx", "litert": "tflite"}


@dataclass(frozen=True)
class DeviceProfile:
    """One device as a place where artifacts run; a value that breaks the schema raises ProfileError.

    runtime and format belong together (onnxruntime runs onnx, litert runs tflite). threads: how many the runtime may
    use. channel_step: widths that are multiples of it are fast here; channel_steps: the same as it was measured per
    kind of convolution (`STEP_KINDS`). soc and cores are left out of a profile whose device can be asked. provenance:
    in words, where each figure of the profile comes from. latency: a model for each number of threads that the latency
    can be predicted for; a profile of the kind "predicted" has at least that of its own threads. address: where the
    device is, for the kinds that are connected: ssh://user@host, or the serial number that adb lists. unreached: why a
    device that was measured is predicted now, a sentence.
    """

    name: str
    title: str
    kind: str
    runtime: str
    format: str
    precision: str
    threads: int
    channel_step: int
    provenance: str
    soc: str | None = None
    cores: int | None = None
    latency: tuple[LatencyModel, ...] = ()
    channel_steps: dict[str, int] | None = None
    address: str | None = None
    unreached: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            optional = field.default is None
            if value is None and optional:
                continue
            if problem := _RULES[field.name](value):
                raise ProfileError(f"{field.name} = {short(value)} {problem}")
        if FORMAT_OF_RUNTIME[self.runtime] != self.format:
            wanted = FORMAT_OF_RUNTIME[self.runtime]
            raise ProfileError(
                f"format = {self.format!r} does not fit runtime = {self.runtime!r}, which runs {wanted!r}"
            )
        self._check_latency()

    def covers(self, macs: int, input_elements: int) -> bool:
        """Whether the latency of a network of that size can be had: always on a device, else within what was fitted."""
        if self.kind != "predicted":
            return True
        return all(model.covers(macs, input_elements) for model in self.latency if model.threads == self.threads)

    def _check_latency(self) -> None:
        if self.latency and self.precision != "float32":
            raise ProfileError(
                f"precision = {self.precision!r} cannot be predicted, only 'float32'; for others connect the device"
            )
        threads = [model.threads for model in self.latency]
        if len(set(threads)) < len(threads):
            raise ProfileError("two tables [[latency]] are for the same threads")
        if self.kind == "predicted" and self.threads not in threads:
            raise ProfileError(f"threads = {self.threads} has no table [[latency]] to be predicted from")


def catalog() -> tuple[str, ...]:
    """The names of the profiles that come with the package, sorted."""
    return tuple(sorted(path.stem for path in CATALOG.glob("*.toml")))


def user_folder() -> Path:
    """Where the user's own profiles are kept: $MOBILEPRUNE_PROFILES, or mobileprune/profiles in the configuration."""
    if given := os.environ.get("MOBILEPRUNE_PROFILES"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mobileprune" / "profiles"


def user_profiles() -> tuple[str, ...]:
    """The names of the profiles in the user's folder, sorted; those of the catalog keep their meaning."""
    return tuple(sorted({path.stem for path in user_folder().glob("*.toml")} - set(catalog())))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """The profile of that name in the catalog or in the user's folder, or the one in that file (anything with a folder
    or ending in .toml).

    Raises ProfileError for an unknown name (saying which are near and which exist) and for a file that is missing, is
    no TOML or breaks the schema (naming the file and the key).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        return read_profile(Path(name_or_path))
    if text in catalog():
        return read_profile(CATALOG / f"{text}.toml")
    if text in user_profiles():
        return read_profile(user_folder() / f"{text}.toml")
    known = (*catalog(), *user_profiles())
    if wanted := re.search(r"gpu|npu|tpu|nnapi|dsp|hexagon|u?int8|quant|fp16|float16", text.lower()):
        raise ProfileError(
            f"no device profile is called {text!r}: {wanted[0]} latencies are not predicted, because what is "
            "published cannot carry it; connect the phone and measure them, or choose one of the catalog: "
            + ", ".join(known)
        )
    near = difflib.get_close_matches(text.lower(), known, n=2)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    raise ProfileError(f"no device profile is called {text!r};{hint} the catalog has: {', '.join(known)}")


def read_profile(path: Path) -> DeviceProfile:
    """The profile in a TOML file; raises ProfileError naming the file and what is wrong in it."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ProfileError(f"{path}: the file is far too long for a device profile")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ProfileError(f"{path}: the device profile is nested far too deep") from error
    except OSError as error:
        raise ProfileError(f"{path}: the device profile cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: the device profile is not valid TOML: {error}") from error
    try:
        return from_table(table)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from error


def write_profile(profile: DeviceProfile, path: Path) -> None:
    """Write the profile as TOML that `read_profile` gives back equal; the file appears whole or not at all."""
    import tomli_w

    text = tomli_w.dumps(to_table(profile), multiline_strings=True)
    handle, beside = _open_beside(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except OSError as error:
        raise ProfileError(f"{path}: the device profile cannot be written: {error.strerror}") from error
    finally:
        Path(beside).unlink(missing_ok=True)


def check_place(name: str, path: Path | None = None) -> None:
    """Raises ProfileError where a profile of that name could not be saved, or be written as the file `path`.

    For what takes minutes to measure: `write_profile` and `save_profile` would say so only afterwards.
    """
    if problem := _identifier(name):
        raise ProfileError(f"name = {short(name)} {problem}")
    path = _saved_as(name) if path is None else path
    handle, beside = _open_beside(path)
    os.close(handle)
    Path(beside).unlink()


def _open_beside(path: Path) -> tuple[int, str]:
    """An open temporary file in the folder of `path`, and its name; raises ProfileError."""
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ProfileError(f"{path}: the device profile cannot be written: {error.strerror}") from error


def save_profile(profile: DeviceProfile) -> Path:
    """Write the profile into the user's folder under its name, where `load_profile` finds it; returns where.

    Raises ProfileError for a name of the catalog and where it cannot be written.
    """
    path = _saved_as(profile.name)
    write_profile(profile, path)
    return path


def _saved_as(name: str) -> Path:
    """The file of that profile in the user's folder, which is made; raises ProfileError as `save_profile` says."""
    if name in catalog():
        raise ProfileError(f"the name {name!r} is one of the catalog's; give the profile another one")
    path = user_folder() / f"{name}.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(f"{path.parent}: the folder cannot be made: {error.strerror}") from error
    return path


def to_table(profile: DeviceProfile) -> dict[str, Any]:
    """The profile as numbers, texts, lists and tables, for TOML or JSON; `from_table` is its inverse."""
    filled = {key: value for key, value in dataclasses.asdict(profile).items() if value is not None and value != ()}
    table: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **filled}))
    return table


def from_table(table: Mapping[str, Any]) -> DeviceProfile:
    """The profile in a table; raises ProfileError naming the key that breaks the schema."""
    fields = {field.name: field for field in dataclasses.fields(DeviceProfile)}
    allowed = ["schema", *fields]
    for key in table:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(allowed)}"
            raise ProfileError(f"unknown key {key!r}; {hint}")
    required = ["schema", *(name for name, field in fields.items() if field.default is dataclasses.MISSING)]
    if missing := [key for key in required if key not in table]:
        raise ProfileError(f"the key {missing[0]!r} is missing")
    if problem := rules.one_of(SCHEMA)(table["schema"]):
        raise ProfileError(f"schema = {table['schema']!r} {problem}; another version of mobileprune wrote this profile")
    values = {key: value for key, value in table.items() if key != "schema"}
    if "latency" in values:
        if not isinstance(values["latency"], list):
            raise ProfileError("latency must be tables, each headed [[latency]]")
        values["latency"] = tuple(LatencyModel.from_table(one) for one in values["latency"])
    return DeviceProfile(**values)


def _identifier(value: object) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value):
        return None
    return "must be 1 to 64 of the characters a-z, 0-9, '.', '_' and '-', starting with a letter or digit"


def _address(value: object) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= 512 and value.isprintable() and not value.startswith("-"):
        return None
    return "must be a line of text that does not start with '-'"


def _steps(value: object) -> str | None:
    if not isinstance(value, dict) or not value:
        return "must be a table with a number for each kind of convolution"
    for kind, step in value.items():
        if kind not in STEP_KINDS:
            return f"has {kind!r}, which is no kind of convolution with a step; these are {', '.join(STEP_KINDS)}"
        if problem := rules.integer(1, 256)(step):
            return f"has a wrong entry: {kind} = {step!r} {problem}"
    return None


def _is_models(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, LatencyModel) for one in value)


_RULES: dict[str, Rule] = {
    "name": _identifier,
    "title": rules.text,
    "kind": rules.one_of("host", "adb", "ssh", "predicted"),
    "runtime": rules.one_of(*FORMAT_OF_RUNTIME),
    "format": rules.one_of(*FORMAT_OF_RUNTIME.values()),
    "precision": rules.one_of("float32", "float16", "int8"),
    "threads": rules.integer(1, 256),
    "channel_step": rules.integer(1, 256),
    "provenance": rules.text,
    "soc": rules.text,
    "cores": rules.integer(1, 4096),
    "channel_steps": _steps,
    "address": _address,
    "unreached": rules.text,
    "latency": lambda value: None if _is_models(value) else "must be tables, each headed [[latency]]",
}
