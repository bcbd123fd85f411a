"""A learning rate by a short range test (Smith, arXiv 1506.01186): raise it step by step and see where it breaks."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from mobileprune.data import ImageData
from mobileprune.randomness import own_randomness
from mobileprune.training.batches import View
from mobileprune.training.finetune import Teacher, trial_losses
from mobileprune.training.schedule import Schedule

_LOWEST, _HIGHEST = 1e-4, 1.0
_STEPS = 80
_SMOOTHING = 0.9  # of the loss over the steps, as a moving average
_FULL = 20  # steps after which the average is of as many batches as later: the first few are low, or high, by chance
_BROKEN = 1.25  # the loss, as a multiple of its lowest, at which a rate is too high
# What counts as the lowest loss, as a multiple of it. That of a network which is nearly right already hardly falls at
# any rate, and where it is lowest is chance: of a RegNetX with 0.9 of its channels 0.790 at 0.0003, 0.794 at 0.03.
_LOW = 1.02
_SAFETY = 4.0  # the rate chosen is this many times smaller than the highest at which the loss was lowest


@dataclass(frozen=True)
class RangeTest:
    """The rate found, and the smoothed loss at every rate tried."""

    rate: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]


@own_randomness()
def find_rate(
    model: nn.Module, data: ImageData, view: View, schedule: Schedule, *, seed: int, teacher: Teacher | None = None
) -> RangeTest:
    """Train a copy of ``model`` for a few steps at rates from 1e-4 to 1 and choose one well below where it breaks.

    Everything but the rate is as in ``schedule``; ``model`` and the global random generators stay as they are.
    """
    growth = (_HIGHEST / _LOWEST) ** (1 / (_STEPS - 1))
    rates = [_LOWEST * growth**i for i in range(_STEPS)]
    flat = replace(schedule, epochs=1, learning_rate=1.0, shape="constant", warm_up=0.0, ema=0.0)
    losses: list[float] = []
    average = 0.0
    for i, loss in enumerate(trial_losses(copy.deepcopy(model), data, view, flat, seed, teacher, rates)):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth = average / (1 - _SMOOTHING ** (i + 1))
        if not math.isfinite(smooth) or (i > _STEPS // 8 and smooth > _BROKEN * _lowest(losses)):
            break
        losses.append(smooth)
    low = [rates[i] for i, loss in enumerate(losses) if loss <= _LOW * _lowest(losses)]
    at_lowest = low[-1] if low else _LOWEST
    rate = float(f"{max(at_lowest / _SAFETY, _LOWEST):.2g}")
    return RangeTest(rate, tuple(rates[: len(losses)]), tuple(losses))


def _lowest(losses: Sequence[float]) -> float:
    return min(losses[_FULL:] or losses, default=math.inf)
