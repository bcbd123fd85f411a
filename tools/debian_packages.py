"""Debian packages unpacked into a folder, of another release and another architecture than this machine's.

Uses apt with a configuration of its own, so that nothing is installed and this machine's package lists stay as they
are. The mirror is the one that this machine gets Debian from, or `MOBILEPRUNE_DEBIAN_MIRROR` where it is no Debian.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

RELEASE = "trixie"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LIST = "usr/share/unpacked"
_RECIPE = "2"  # counts the changes to how packages are unpacked


def cache() -> Path:
    """Where what was fetched is kept: $MOBILEPRUNE_CACHE, else ~/.cache/mobileprune."""
    return Path(os.environ.get("MOBILEPRUNE_CACHE") or Path.home() / ".cache" / "mobileprune")


def unpacked(name: str, packages: Sequence[str], *, dependencies: bool, keep: Sequence[str] = ()) -> Path:
    """A folder with these packages ("libc6:arm64"), made once and kept in the cache; raises SystemExit with a reason.

    dependencies: with all that they depend on. keep: only these files are kept, all where it is empty.
    """
    wanted = (RELEASE, sorted(packages), dependencies, sorted(keep), _RECIPE)
    digest = hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]
    folder = cache() / "debian" / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as beside:
        for archive in _fetch(Path(beside) / "apt", packages, dependencies):
            _extract(archive, Path(beside) / "root", keep)
        try:
            (Path(beside) / "root").rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def versions(folder: Path) -> dict[str, str]:
    """Package -> version, of what an unpacked folder holds."""
    lines = (folder / _LIST).read_text().splitlines()
    return dict(line.split() for line in lines)


def _extract(archive: Path, root: Path, keep: Sequence[str]) -> None:
    if not keep:
        _call(["dpkg-deb", "--extract", str(archive), str(root)])
        return
    unpacker = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE)
    _call(["tar", "--extract", "--directory", str(root), *(f"./{name}" for name in keep)], stdin=unpacker.stdout)
    if unpacker.wait():
        raise SystemExit(f"{archive.name} cannot be unpacked")


def _fetch(place: Path, packages: Sequence[str], dependencies: bool) -> list[Path]:
    archives = place / "archives"
    for path in (archives / "partial", place / "lists" / "partial"):
        path.mkdir(parents=True)
    for path in (place / "status", place / "preferences"):
        path.touch()
    (place / "sources").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {RELEASE} main\n")
    (place / "apt.conf").write_text(
        f'Dir::State "{place}"; Dir::State::lists "{place}/lists"; Dir::State::status "{place}/status";\n'
        f'Dir::Cache "{place}"; Dir::Cache::archives "{archives}";\n'
        f'Dir::Etc::sourcelist "{place}/sources"; Dir::Etc::sourceparts "/dev/null";\n'
        f'Dir::Etc::preferences "{place}/preferences"; Dir::Etc::preferencesparts "/dev/null";\n'
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; "amd64"; };\n'
        'APT::Sandbox::User "root"; APT::Install-Recommends "false"; Acquire::Retries "3";\n'
    )
    apt = {**os.environ, "APT_CONFIG": str(place / "apt.conf")}
    _call(["apt-get", "update", "-qq"], apt)
    if dependencies:
        _call(["apt-get", "install", "--download-only", "-qq", "-y", *packages], apt)
    else:
        _call(["apt-get", "download", "-qq", *packages], apt, archives)
    found = sorted(archives.glob("*.deb"))
    root = place.parent / "root"
    (root / _LIST).parent.mkdir(parents=True)
    shown = [_call(["dpkg-deb", "--show", "--showformat", "${Package} ${Version}\n", str(path)]) for path in found]
    (root / _LIST).write_text("".join(sorted(shown)))
    return found


def _mirror() -> str:
    if given := os.environ.get("MOBILEPRUNE_DEBIAN_MIRROR"):
        return given
    missing = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if missing or not _KEYRING.is_file():
        raise SystemExit(f"this needs {missing[0] if missing else _KEYRING}, which Debian and Ubuntu have")
    told = _call(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    uris = [line for line in told.splitlines() if re.search(r"/debian/?$", line)]
    if not uris:
        raise SystemExit("no Debian mirror is configured on this machine; name one in MOBILEPRUNE_DEBIAN_MIRROR")
    return uris[0]


def _call(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    stdin: IO[bytes] | None = None,
) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, stdin=stdin, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SystemExit(f"{command[0]} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
