"""mobileprune: the most accurate network that keeps a budget on your device.

The public API is what ``__all__`` lists; each part is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobileprune.api import Event, Journey, Result, diff, explain, load, load_model, optimize
    from mobileprune.budget import Budget
    from mobileprune.errors import MobilepruneError, UsageError
    from mobileprune.pruning.prune import prune
    from mobileprune.scale import Scale

__all__ = [
    "Budget",
    "Event",
    "Journey",
    "MobilepruneError",
    "Result",
    "Scale",
    "UsageError",
    "diff",
    "explain",
    "load",
    "load_model",
    "optimize",
    "prune",
]

_HOMES = {
    "Budget": "mobileprune.budget",
    "Event": "mobileprune.api",
    "Journey": "mobileprune.api",
    "MobilepruneError": "mobileprune.errors",
    "Result": "mobileprune.api",
    "Scale": "mobileprune.scale",
    "UsageError": "mobileprune.errors",
    "diff": "mobileprune.api",
    "explain": "mobileprune.api",
    "load": "mobileprune.api",
    "load_model": "mobileprune.api",
    "optimize": "mobileprune.api",
    "prune": "mobileprune.pruning.prune",
}


class _Package(ModuleType):
    """Keeps ``mobileprune.optimize`` the function, also after the module of the same name has been imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mobileprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
