"""What the values in a profile must be. A rule says what is wrong with one, as the end of a sentence that starts with
"key = value", or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[[Any], str | None]


def one_of(*choices: object) -> Rule:
    words = " or ".join(repr(choice) for choice in choices)
    return lambda value: None if (type(value), value) in [(type(c), c) for c in choices] else f"must be {words}"


def integer(low: int, high: int) -> Rule:
    def rule(value: object) -> str | None:
        if type(value) is not int:  # a bool is an int, too
            return "must be a whole number"
        return None if low <= value <= high else f"must be from {low} to {high}"

    return rule


def number(high: float) -> Rule:
    def rule(value: object) -> str | None:
        if type(value) not in (int, float):
            return "must be a number"
        return None if 0 <= value <= high else f"must be from 0 to {high:g}"  # type: ignore[operator]

    return rule


def text(value: object) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    return None if value.strip() else "must not be empty"


def short(value: object) -> str:
    """A value as it stands in an error, cut where it is long."""
    words = repr(value)
    return words if len(words) <= 80 else f"{words[:77]}..."
