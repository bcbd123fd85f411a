"""Fixtures of the exporters' tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from exporter_peers import absent, need_format
from small_nets import Shelf

import exporters
from exporters import exporter, formats
from exporters.child import shared_child

KINDS = [(name, precision) for name in formats() for precision in exporter(name).precisions]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fresh_child: the test starts the converters' process anew")


@pytest.fixture(params=formats())
def format_name(request: pytest.FixtureRequest) -> str:
    need_format(request.param)
    return str(request.param)


@pytest.fixture
def suffix(format_name: str) -> str:
    return exporters.suffix(format_name)


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A format and a precision."""
    need_format(request.param[0])
    return request.param


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((7, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(autouse=True)
def _fresh_child(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("fresh_child"):
        shared_child().close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        absent(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
