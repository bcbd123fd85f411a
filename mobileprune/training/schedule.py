"""How to train: every choice as plain numbers and names, and the optimiser and rates that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mobileprune._torchvision import import_timm
from mobileprune.errors import UsageError

AUTO = "auto"  # in run.toml: to be measured
SHAPES = ("cosine", "linear", "step", "constant")
_STEP_DECAY = 0.1  # of the rate, after each third of a training in steps


@dataclass(frozen=True)
class Schedule:
    """How to train. The rate warms up over a share of the steps, then falls in the given shape.

    optimizer: a name that timm knows; sgd is with Nesterov momentum. Weight decay spares norms and biases, where it
    does harm (arXiv 1812.01187). mixup (arXiv 1710.09412), cutmix (1905.04899): the alpha of their Beta distribution,
    0 for none. ema: decay of a moving average of the weights that is kept at the end, or 0.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 64
    optimizer: str = "sgd"
    shape: str = "cosine"
    warm_up: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    distillation: float = 0.5  # weight of the teacher's answers beside the labels; 0 without a teacher
    temperature: float = 3.0  # of the teacher's answers
    bfloat16: bool = False
    channels_last: bool = True

    def steps_per_epoch(self, images: int) -> int:
        return math.ceil(images / self.batch_size)


def check_names(optimizer: str, shape: str) -> None:
    """Raise UsageError, with near names, for an optimiser that timm does not know or a shape that is none."""
    import difflib

    import_timm()
    from timm.optim import list_optimizers

    if shape not in SHAPES:
        raise UsageError(f"no schedule {shape!r}; there are {', '.join(SHAPES)}")
    known = list_optimizers()
    if optimizer not in known:
        near = difflib.get_close_matches(optimizer, known, n=3)
        raise UsageError(
            f"no optimizer {optimizer!r} in timm; {'did you mean ' + ' or '.join(near) if near else 'try sgd'}"
        )


def make_optimizer(model: nn.Module, schedule: Schedule) -> Optimizer:
    """timm's optimiser of that name, with weight decay on kernels and matrices only."""
    import_timm()
    from timm.optim import create_optimizer_v2

    try:
        made: Optimizer = create_optimizer_v2(
            model,
            opt=schedule.optimizer,
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            momentum=schedule.momentum,
        )
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        raise UsageError(f"the optimizer {schedule.optimizer} cannot be made: {error}") from error
    return made


class Rates:
    """The learning rate of every step, by timm's schedulers; ``factor`` lowers all of them after a divergence."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule, images: int) -> None:
        import_timm()
        from timm.scheduler import create_scheduler_v2

        per_epoch = schedule.steps_per_epoch(images)
        warm = max(1, round(schedule.warm_up * schedule.epochs * per_epoch)) if schedule.warm_up else 0
        self.optimizer, self.factor = optimizer, 1.0
        left = max(schedule.epochs - warm / per_epoch, 1 / per_epoch)
        self.scheduler: Any
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="poly" if schedule.shape == "linear" else schedule.shape,
            num_epochs=left,
            decay_epochs=left / 3,
            decay_rate=1.0 if schedule.shape == "linear" else _STEP_DECAY,  # of a polynomial: its power
            warmup_epochs=warm / per_epoch,
            warmup_lr=schedule.learning_rate / max(warm, 1),
            warmup_prefix=True,
            step_on_epochs=False,
            updates_per_epoch=per_epoch,
        )

    def set(self, step: int) -> None:
        """Give the optimiser the rate of ``step``, counted from 0 over the whole training."""
        self.scheduler.step_update(step)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.factor
