"""What tests of exporters need besides the packages: a missing one skips, or fails where peers are required."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

import exporters


def absent(reason: str) -> NoReturn:
    missing = pytest.fail if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS") else pytest.skip
    missing(reason)
    raise AssertionError("not reached")


def need_format(name: str) -> None:
    reason = exporters.available(name)
    if reason:
        absent(reason)
