"""The bundle: a runner with LiteRT, ONNX Runtime and glibc, for 64-bit ARM devices that have none of them.

tools/build_bundle.py makes it; here it is found in the cache, put on a device and spoken to. The runner answers the
same requests as worker.py. It is started by the bundle's own loader, so that an Android phone, which has no glibc, runs
what was published for Linux.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from device_profiles.devices.remote import LineFile, Remote, Request, Runner
from device_profiles.digest import sha256
from device_profiles.errors import DeviceError

SCHEMA = 1
MANIFEST = "manifest.json"
RUNNER = "runner"
LOADER = "ld-linux-aarch64.so.1"
ABIS = ("arm64-v8a", "aarch64", "arm64")  # as Android, Linux and Debian call it
HOW_TO_MAKE = "python tools/build_bundle.py makes it"
# What only the runner of one kind of file needs.
_ONLY = {".onnx": "libonnxruntime.so.1", ".tflite": "libLiteRt.so"}
_MOST_CORES = 64  # that the runner can choose from
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class Bundle:
    """A bundle that is there. runtimes: file suffix -> runtime with version. recipe: a digest of what made it."""

    folder: Path
    recipe: str
    runtimes: dict[str, str] = field(hash=False)
    files: dict[str, str] = field(hash=False)

    def check(self) -> None:
        """Raises DeviceError unless every file is as it was made."""
        for name, digest in self.files.items():
            path = self.folder / name
            if not path.is_file() or sha256(path) != digest:
                raise DeviceError(f"{path}: a file of the bundle is missing or damaged; {HOW_TO_MAKE} anew (--force)")


def cache() -> Path:
    """Where programs for devices are kept: $MOBILEPRUNE_CACHE, else ~/.cache/mobileprune."""
    return Path(os.environ.get("MOBILEPRUNE_CACHE") or Path.home() / ".cache" / "mobileprune")


def folder() -> Path:
    """Where the bundle is kept."""
    return cache() / "bundles" / "arm64"


def find() -> Bundle | None:
    """The bundle in the cache, if one was made; raises DeviceError for one that cannot be read."""
    place = folder()
    try:
        told = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA:
            return None  # another version's
        found = Bundle(place, str(told["recipe"]), dict(told["runtimes"]), dict(told["files"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"{place / MANIFEST}: the bundle's manifest cannot be read; {HOW_TO_MAKE} anew") from error
    if not all(_NAME.fullmatch(name) for name in found.files):
        raise DeviceError(f"{place / MANIFEST}: the bundle's manifest names impossible files; {HOW_TO_MAKE} anew")
    return found


class BundleRunner(Runner):
    """Runs files of one suffix with the bundle."""

    def __init__(self, bundle: Bundle, suffix: str) -> None:
        self._bundle = bundle
        self._suffix = suffix
        self._names = [name for name in bundle.files if name not in _ONLY.values() or name == _ONLY[suffix]]

    def install(self, remote: Remote, folder: str) -> None:
        self._bundle.check()
        place = self._place(folder)
        remote.run(["mkdir", "-p", place], check=True)
        remote.push_all({f"{place}/{name}": self._bundle.folder / name for name in self._names}, mode=0o755)

    def start(self, remote: Remote, folder: str, request: Request) -> LineFile:
        if request.delegate != "cpu":
            raise DeviceError(f"{request.label}: the bundle runs on the CPU only, not on {request.delegate!r}")
        core = (request.core_mask or 1).bit_length() - 1
        if core >= _MOST_CORES:
            raise DeviceError(
                f"{request.label}: the core mask {request.core_mask:#x} names core {core}, which is not there"
            )
        # What runtimes want to keep goes with our folder.
        alone = ["env", f"HOME={self._place(folder)}", f"XDG_CACHE_HOME={self._place(folder)}"]
        return LineFile(remote, [*alone, *self.command(folder)], request)

    def command(self, folder: str) -> list[str]:
        """How the runner is started on a device where `install` put it into `folder`."""
        place = self._place(folder)
        return [f"{place}/{LOADER}", "--library-path", place, f"{place}/{RUNNER}"]

    def _place(self, folder: str) -> str:
        return f"{folder}/bundle{self._suffix}"
