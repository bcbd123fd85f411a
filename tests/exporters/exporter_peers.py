"""What tests of exporters need besides the packages: a missing one skips, or fails where peers are required."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

import exporters
from exporters.child import Child, drafts_child


def absent(reason: str) -> NoReturn:
    missing = pytest.fail if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS") else pytest.skip
    missing(reason)
    raise AssertionError("not reached")


def need_format(name: str) -> None:
    reason = exporters.available(name)
    if reason:
        absent(reason)


class SharedChild(Child):
    """The child of throw-away files where a test does not ask for a fresh one: saves the start, 3 to 6 s a file."""

    def call(self, function: str, **arguments: object) -> object:
        return drafts_child().call(function, **arguments)
