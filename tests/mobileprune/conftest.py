"""One small finished run, made as a person makes it, for the tests that read a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

TINY = Path(__file__).parent / "tiny_net.py"
# The smallest question that still has every part: three dimensions, chains of probes, both file formats.
QUESTION = [
    "--model", f"{TINY}:tiny", "--model-arg", "blocks=2", "--image-size", "16", "--budget", "1MMACs",
    "--base-epochs", "2", "--probe-epochs", "1", "--epochs", "1", "--probes", "5", "--profile-scales", "10",
    "--rounds", "2", "--round-seconds", "0", "--training-precision", "float32",
]  # fmt: skip

# Two threads of a small network mostly wait for each other where other programs run, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A phone on the desk must not change what a test means by pixel.
os.environ["MOBILEPRUNE_ADB"] = "no-adb-in-tests"
# The time that an example takes decides no test.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _cache(cache_folder: Path) -> Iterator[None]:
    """Decoded images of tests do not belong into the cache of the person who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILEPRUNE_CACHE", str(cache_folder))
        yield


Call = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from mobileprune.cli import main; main()", *map(str, arguments)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    missing = pytest.fail if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS") else pytest.skip
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0:
        missing("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        missing(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture(scope="session")
def call() -> Call:
    """Run mobileprune in a process of its own, as the console script does."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280, **options)  # type: ignore[call-overload, no-any-return]

    return run


@pytest.fixture(scope="session")
def finished(call: Call, tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Path:
    """A run folder whose journey is over."""
    path = tmp_path_factory.mktemp("journey") / "run"
    done = call("optimize", "--run", path, *QUESTION, env={**os.environ, "MOBILEPRUNE_CACHE": str(cache_folder)})
    assert done.returncode == 0, done.stderr
    return path
