"""Which numbers the options take: one table for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from mobileprune.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """From ``least`` to ``most`` (None: any), without these two where ``open_``; ``whole`` numbers or any."""

    least: int
    most: int | None = None
    whole: bool = True
    open_: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Integral if self.whole else Real):
            return False
        number, most = float(value), float("inf") if self.most is None else self.most
        return self.least < number < most if self.open_ else self.least <= number <= most  # false for NaN

    def __str__(self) -> str:
        above, below = ("above", "below") if self.open_ else ("of at least", "at most")
        upper = "" if self.most is None else f" and {below} {self.most}"
        return f"a {'whole ' * self.whole}number {above} {self.least}{upper}"


_SHARE = Limits(0, 1, whole=False)
_AMOUNT = Limits(0, whole=False)
_ABOVE_ZERO = Limits(0, whole=False, open_=True)

LIMITS: Mapping[str, Limits] = {
    "image_size": Limits(8),
    "seed": Limits(0),
    "probes": Limits(4, 64),  # a surface in three dimensions needs four
    "confidence": Limits(0, 1, whole=False, open_=True),
    "profile_scales": Limits(10, 64),
    "rounds": Limits(2, 100),
    "round_seconds": _AMOUNT,
    "base_epochs": Limits(0),
    "probe_epochs": Limits(1),
    "probe_images": Limits(0),
    "epochs": Limits(1),
    "batch_size": Limits(2),
    "learning_rate": _ABOVE_ZERO,
    "finetune_learning_rate": _ABOVE_ZERO,
    "distillation": _SHARE,
    "temperature": _ABOVE_ZERO,
    "warm_up": _SHARE,
    "weight_decay": _AMOUNT,
    "label_smoothing": _SHARE,
    "mixup": _AMOUNT,
    "cutmix": _AMOUNT,
    "ema": _SHARE,
    "norm_images": Limits(0),
}
AUTOMATIC = ("learning_rate", "finetune_learning_rate")  # which may be "auto" instead


def check_limits(options: Mapping[str, Any]) -> None:
    """Raises UsageError for an option whose number is out of its limits; None is none that was given."""
    for name, limits in LIMITS.items():
        value = options.get(name)
        if value is None or value in limits or (name in AUTOMATIC and value == "auto"):
            continue
        other = ', or "auto"' if name in AUTOMATIC else ""
        raise UsageError(f"{name}={value!r} is out of range: give {limits}{other}")
