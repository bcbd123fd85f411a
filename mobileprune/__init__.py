"""mobileprune: the most accurate network that keeps a budget on your device.

The public API is what ``__all__`` lists; each part is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobileprune.api import load, load_model, optimize
    from mobileprune.budget import Budget
    from mobileprune.errors import MobilepruneError, UsageError
    from mobileprune.pruning.prune import prune
    from mobileprune.scale import Scale

__all__ = ["Budget", "MobilepruneError", "Scale", "UsageError", "load", "load_model", "optimize", "prune"]

_HOMES = {
    "Budget": "mobileprune.budget",
    "MobilepruneError": "mobileprune.errors",
    "Scale": "mobileprune.scale",
    "UsageError": "mobileprune.errors",
    "load": "mobileprune.api",
    "load_model": "mobileprune.api",
    "optimize": "mobileprune.api",
    "prune": "mobileprune.pruning.prune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mobileprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
