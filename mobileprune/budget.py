"""Budgets: "12ms", "50%", "300MMACs", "2MB": what must hold for the result."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mobileprune.errors import UsageError

Quantity = Literal["latency", "macs", "params", "size", "memory"]

# unit -> (quantity, factor to the quantity's base unit: ms, MACs, parameters, bytes)
_UNITS: dict[str, tuple[Quantity, float]] = {
    "us": ("latency", 1e-3),
    "ms": ("latency", 1.0),
    "s": ("latency", 1e3),
    "KMACS": ("macs", 1e3),
    "MMACS": ("macs", 1e6),
    "GMACS": ("macs", 1e9),
    "KPARAMS": ("params", 1e3),
    "MPARAMS": ("params", 1e6),
    "KB": ("size", 1e3),
    "MB": ("size", 1e6),
    "GB": ("size", 1e9),
    "KIB": ("size", 2.0**10),
    "MIB": ("size", 2.0**20),
    "MBRAM": ("memory", 1e6),
}
_FORMS = "12ms, 50% (of the base's latency), 300MMACs, 1.5MParams, 2MB (file size) or 64MBRAM (peak activations)"
_SHOWN: dict[Quantity, tuple[float, str]] = {
    "latency": (1.0, "ms"),
    "macs": (1e-6, "MMACs"),
    "params": (1e-6, "MParams"),
    "size": (1e-6, "MB"),
    "memory": (1e-6, "MB"),
}


@dataclass(frozen=True)
class Budget:
    """An upper limit on one quantity, in its base unit (ms, MACs, parameters, bytes), or a share of the base's."""

    text: str
    quantity: Quantity
    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget as a person writes it. Raises UsageError for anything else."""
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|[A-Za-z]+)\s*", text)
        if not match:
            raise UsageError(f"{text!r} is not a budget: write for example {_FORMS}")
        number, unit = float(match[1]), match[2]
        clean = text.strip().replace(" ", "")
        if number <= 0:
            raise UsageError(f"{text!r} is not a budget: it must be more than zero")
        if unit == "%":
            if number > 100:
                raise UsageError(f"{text!r} is more than the base takes: a share of the base is at most 100%")
            return cls(clean, "latency", number / 100, relative=True)
        known = _UNITS.get(unit.lower()) or _UNITS.get(unit.upper())
        if known is None:
            raise UsageError(f"{text!r} is not a budget: {unit!r} is no unit of one; write for example {_FORMS}")
        quantity, factor = known
        return cls(clean, quantity, number * factor)

    def limit(self, base: float) -> float:
        """The limit in the base unit, given what the base network takes."""
        return self.value * base if self.relative else self.value

    def __str__(self) -> str:
        return self.text


def shown(quantity: Quantity, value: float) -> str:
    """A value in the unit people use for the quantity: 12.3 ms, 300 MMACs, 2.1 MB."""
    factor, unit = _SHOWN[quantity]
    amount = value * factor
    return f"{amount:.0f} {unit}" if abs(amount) >= 999.5 else f"{amount:.3g} {unit}"  # never 2.05e+03


def allowing(quantity: Quantity, value: float) -> str:
    """The budget, as it is asked for, that ``value`` (in the quantity's base unit, above zero) keeps: rounded up."""
    factor, unit = _SHOWN[quantity]
    amount = value * factor
    places = max(2 - math.floor(math.log10(amount)), 0)
    up = math.ceil(amount * 10**places * (1 - 1e-12)) / 10**places
    return f"{up:.{places}f}{'MBRAM' if quantity == 'memory' else unit}"


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """All budgets of one request, one per quantity. Raises UsageError for two on the same quantity."""
    budgets = tuple(Budget.parse(text) for text in texts)
    seen: dict[str, Budget] = {}
    for budget in budgets:
        if budget.quantity in seen:
            raise UsageError(
                f"two budgets on {budget.quantity}: {seen[budget.quantity]} and {budget}; keep the one that must hold"
            )
        seen[budget.quantity] = budget
    return budgets


def budgets_key(budgets: Sequence[Budget]) -> str:
    """A name for a set of budgets that is the same in any order and fit for a folder: ``50pct``, ``12ms+2MB``."""
    return "+".join(sorted(b.text.replace("%", "pct") for b in budgets))
