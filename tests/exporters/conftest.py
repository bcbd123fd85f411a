"""Fixtures of the exporters' tests."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import Shelf

from exporters import formats


@pytest.fixture(params=formats())
def format_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((7, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))
