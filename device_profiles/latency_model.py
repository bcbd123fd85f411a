"""What a profile knows of the latency of a device that is not there: coefficients per kind of operator, and how wrong.

The latency is a sum over the work that `operators.count` finds in a file:

    ms = ms_per_operator * operators + ms_per_mb_weights * weights / 10^6 bytes
         + sum over the kinds of (ms_per_gmac[kind] * GMAC + ms_per_million_activations[kind] * activations / 10^6)

No coefficient is negative, so more work is never predicted to be faster.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from device_profiles import rules
from device_profiles.errors import ProfileError
from device_profiles.operators import KINDS
from device_profiles.rules import Rule, short

FREE_KINDS = frozenset(("view", "fused"))  # what costs nothing at run time
_KINDS = frozenset(KINDS) - FREE_KINDS - {"unsupported"}
_MOST = 1e9  # no coefficient and no size is larger; keeps sums finite


@dataclass(frozen=True)
class LatencyModel:
    """Latency on so many threads, float32, batch 1; a value that breaks the schema raises ProfileError.

    runtime: what the latencies were published for, with its version. ms_per_operator: the fixed overhead of an operator
    that costs anything. ms_per_gmac: per 10^9 multiply-accumulates of a kind.
    ms_per_million_activations: per 10^6 activations read or written by a kind; its keys are the kinds that the model
    knows. ms_per_mb_weights: per 10^6 bytes of weights.

    typical_error, guaranteed_error: mean and largest |predicted / measured - 1| over the rows when each family of
    networks is predicted by a fit without it. rows, families: what was fitted. macs, input_elements: the smallest and
    largest network and input (channels x height x width) that the model may be asked for. sources: documents.
    """

    threads: int
    runtime: str
    ms_per_operator: float
    ms_per_mb_weights: float
    ms_per_gmac: dict[str, float]
    ms_per_million_activations: dict[str, float]
    typical_error: float
    guaranteed_error: float
    rows: int
    families: tuple[str, ...]
    macs: tuple[int, int]
    input_elements: tuple[int, int]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if problem := _RULES[field.name](value):
                raise ProfileError(f"{field.name} = {short(value)} {problem}")
        if not self.typical_error <= self.guaranteed_error:
            raise ProfileError(f"typical_error = {self.typical_error} must not exceed guaranteed_error")
        if stray := sorted(set(self.ms_per_gmac) - set(self.ms_per_million_activations)):
            raise ProfileError(f"ms_per_gmac has {stray[0]!r}, which ms_per_million_activations lacks")

    def covers(self, macs: int, input_elements: int) -> bool:
        """Whether a network of that size may be asked for; the kinds of its operators must be known, too."""
        sizes = ((macs, self.macs), (input_elements, self.input_elements))
        return all(least <= size <= most for size, (least, most) in sizes)

    @classmethod
    def from_table(cls, table: object) -> LatencyModel:
        """The model in a TOML table; raises ProfileError naming the key."""
        if not isinstance(table, Mapping):
            raise ProfileError(f"latency = {short(table)} must be tables, each headed [[latency]]")
        fields = [field.name for field in dataclasses.fields(cls)]
        if unknown := [key for key in table if key not in fields]:
            near = difflib.get_close_matches(unknown[0], fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(fields)}"
            raise ProfileError(f"unknown key {unknown[0]!r} in [[latency]]; {hint}")
        if missing := [key for key in fields if key not in table]:
            raise ProfileError(f"the key {missing[0]!r} is missing in [[latency]]")
        values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in table.items()}
        try:
            return cls(**values)
        except ProfileError as error:
            raise ProfileError(f"[[latency]]: {error}") from error


def _error(value: object) -> str | None:
    if type(value) is not float or not 0 < value < 1:
        return "must be a share above 0 and below 1"
    return None


def _texts(value: object) -> str | None:
    if not isinstance(value, tuple) or not value or any(rules.text(one) for one in value):
        return "must be a list of texts, at least one"
    return None


def _range(value: object) -> str | None:
    if not isinstance(value, tuple) or len(value) != 2 or any(type(one) is not int for one in value):
        return "must be two whole numbers: the smallest and the largest"
    return None if 0 < value[0] <= value[1] < math.inf else "must be two numbers above 0, the smaller first"


def _per_kind(value: object) -> str | None:
    if not isinstance(value, dict) or not value:
        return "must be a table with a number for each kind of operator"
    for kind, one in value.items():
        if kind not in _KINDS:
            return f"has {kind!r}, which is no kind of operator with a cost; these are {', '.join(sorted(_KINDS))}"
        if problem := rules.number(_MOST)(one):
            return f"has a wrong entry: {kind} = {short(one)} {problem}"
    return None


_RULES: dict[str, Rule] = {
    "threads": rules.integer(1, 256),
    "runtime": rules.text,
    "ms_per_operator": rules.number(_MOST),
    "ms_per_mb_weights": rules.number(_MOST),
    "ms_per_gmac": _per_kind,
    "ms_per_million_activations": _per_kind,
    "typical_error": _error,
    "guaranteed_error": _error,
    "rows": rules.integer(1, 10**6),
    "families": _texts,
    "macs": _range,
    "input_elements": _range,
    "sources": _texts,
}
