"""Training a network, from scratch or after pruning: one recipe for base, probes and result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileprune._torchvision import import_timm
from mobileprune.data import ImageData
from mobileprune.errors import MobilepruneError
from mobileprune.training.batches import View, augment, resident, shuffled
from mobileprune.training.distill import distillation_loss
from mobileprune.training.memory import out_of_memory, parts, release
from mobileprune.training.schedule import Rates, Schedule, make_optimizer
from mobileprune.training.state import Numbers, State
from mobileprune.training.threads import use_fastest_threads

__all__ = ["Progress", "Schedule", "Teacher", "fit"]

_CLIP_NORM = 5.0
_TRIAL_IMAGES = 16
_TRY_AGAIN_S = 20.0
_LOWER = 0.3  # what the rate is multiplied with after a divergence
_TRIES = 4  # rates until a divergence is an error
_RUNAWAY = 2.0  # an epoch whose loss is so many times what it was before has diverged


@dataclass(frozen=True)
class Teacher:
    """The network to learn from, and what it sees."""

    model: nn.Module
    view: View


@dataclass(frozen=True)
class Progress:
    """Told after each batch: images seen in this training so far, of how many, the epoch, and the batch's loss."""

    seen: int
    total: int
    epoch: int
    loss: float


class _DivergedError(Exception):
    """The loss is not finite, or far higher than it was."""


def fit(
    model: nn.Module,
    data: ImageData,
    view: View,
    schedule: Schedule,
    *,
    seed: int,
    teacher: Teacher | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> None:
    """Train ``model`` in place on ``data.train`` and leave it in eval mode.

    checkpoint: a file that holds the state after each finished epoch; where it exists training goes on from it, and it
    is removed at the end. Every epoch's randomness comes from (seed, epoch) alone, so a resumed training sees the same
    batches. A training that diverges goes back to its last good epoch with a lower rate, and a batch that does not fit
    into memory is taken in parts; ``say`` is told both. Raises MobilepruneError when no lower rate helps either.
    """
    training = _Training(model, data, view, schedule, seed, teacher, progress, say, checkpoint)
    training.state.restore()
    while training.numbers.epochs < schedule.epochs:
        try:
            training.epoch(training.numbers.epochs)
        except _DivergedError:
            training.step_back()
    training.finish()


def trial_losses(
    model: nn.Module,
    data: ImageData,
    view: View,
    schedule: Schedule,
    seed: int,
    teacher: Teacher | None,
    rates: Sequence[float],
    batches: Iterator[tuple[Tensor, Tensor]],
) -> Iterator[float]:
    """The loss of each step of a training that takes ``batches`` at ``rates``; ends early where it is not finite."""
    quiet = _Training(model, data, view, schedule, seed, teacher, lambda _: None, lambda _: None, None)
    generator = quiet.begin(0)
    for rate, (images, labels) in zip(rates, batches, strict=False):
        for group in quiet.optimizer.param_groups:
            group["lr"] = rate
        try:
            yield quiet.step(augment(images.to(quiet.device), generator, flip=data.flip), labels.to(quiet.device))
        except _DivergedError:
            return


class _Training:
    """One training: what it works on, and its epochs."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        view: View,
        schedule: Schedule,
        seed: int,
        teacher: Teacher | None,
        progress: Callable[[Progress], None],
        say: Callable[[str], None],
        checkpoint: Path | None,
    ) -> None:
        layout = torch.channels_last if schedule.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=layout)  # type: ignore[call-overload]
        self.data, self.view, self.schedule, self.seed = data, view, schedule, seed
        self.teacher = teacher if schedule.distillation else None
        self.progress, self.say = progress, say
        self.device = next(model.parameters()).device
        self.train = resident(data.train, self.device)
        self.optimizer = make_optimizer(model, schedule)
        self.rates = Rates(self.optimizer, schedule, len(data.train))
        self.average = _average(model, schedule)
        self.mix = _mixer(schedule, len(data.classes))
        self.numbers = Numbers(batch=schedule.batch_size)
        averaged = [self.average.module] if self.average else []
        self.state = State(checkpoint, self.numbers, model, self.optimizer, *averaged)
        self.few, self.tried = data.train.sample(_TRIAL_IMAGES), -math.inf

    def epoch(self, epoch: int) -> None:
        """One pass over the training images. Raises _DivergedError; the state is saved where it ends well."""
        generator = self.begin(epoch)
        images_in_all = len(self.data.train)
        step, seen, losses = epoch * self.schedule.steps_per_epoch(images_in_all), 0, 0.0
        for images, labels in shuffled(self.train, self.schedule.batch_size, generator):
            images = augment(images.to(self.device), generator, flip=self.data.flip)
            self.rates.set(step)
            loss = self.step(images, labels.to(self.device))
            step += 1
            if self.average:
                self.average.update(self.model, step=step)
            seen, losses = seen + len(labels), losses + loss * len(labels)
            done = epoch * images_in_all + seen
            self.progress(Progress(done, self.schedule.epochs * images_in_all, epoch, loss))
        self._check(losses / max(seen, 1))
        self.numbers.epochs = epoch + 1
        self.state.save()

    def begin(self, epoch: int) -> torch.Generator:
        """Set everything that an epoch's randomness comes from, and the number of threads."""
        if time.monotonic() - self.tried > _TRY_AGAIN_S:  # other programs come and go
            seen, labels = self.view(self.few.images.to(self.device)), self.few.labels.to(self.device)
            use_fastest_threads(self.model, seen, labels, bfloat16=self.schedule.bfloat16)
            self.tried = time.monotonic()
        seed = self.seed * 1_000_003 + epoch
        torch.manual_seed(seed)  # dropout and stochastic depth
        if self.mix is not None:
            np.random.seed(seed % 2**32)  # timm's mixup draws from here
        self.rates.factor = self.numbers.factor
        self.model.train()
        return torch.Generator().manual_seed(seed)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Learn from one batch; its mean loss."""
        targets = labels
        if self.mix is not None:
            even = len(images) // 2 * 2  # pairs are mixed; the odd one out waits for another epoch
            images, targets = self.mix(images[:even].float(), labels[:even])
        loss = self._gradients(images, targets)
        if not math.isfinite(loss):
            raise _DivergedError
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self.optimizer.step()
        return loss

    def _gradients(self, images: Tensor, targets: Tensor) -> float:
        """Gradients of the mean loss, in as many parts as memory needs; the loss."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                total = 0.0
                for x, y in zip(parts(images, self.numbers.batch), parts(targets, self.numbers.batch), strict=True):
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.bfloat16):
                        loss = self._loss(x, y) * (len(x) / len(images))
                    loss.backward()
                    total += float(loss.detach())
                return total
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else "out of memory"
            self._halve(min(self.numbers.batch, len(images)), reason)

    def _halve(self, batch: int, reason: str) -> None:
        if batch < 4:
            raise MobilepruneError(
                f"not even {batch} images of {self.view.size} px fit into memory ({reason}); use a smaller --image-size"
            )
        self.numbers.batch = batch // 2
        self.optimizer.zero_grad(set_to_none=True)
        release()
        self.say(
            f"out of memory: {self.numbers.batch} of a batch's {self.schedule.batch_size} images are taken at once"
        )

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        seen = self.view(images)
        logits = self.model(seen if self.schedule.channels_last else seen.contiguous()).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.schedule.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.inference_mode():
            answers = self.teacher.model(self.teacher.view(images)).float()
        share = self.schedule.distillation
        return (1 - share) * loss + share * distillation_loss(logits, answers.clone(), self.schedule.temperature)

    def _check(self, loss: float) -> None:
        """Compare an epoch's mean loss with the lowest so far, or with that of guessing."""
        guessing = math.log(len(self.data.classes)) * (1.0 if self.teacher is None else self.schedule.temperature**2)
        known = self.numbers.lowest_loss if self.numbers.epochs else 0.0
        if not loss <= _RUNAWAY * max(known, guessing):
            raise _DivergedError
        self.numbers.lowest_loss = min(self.numbers.lowest_loss, loss)

    def step_back(self) -> None:
        """Return to the last good epoch with a lower rate. Raises MobilepruneError after too many of them."""
        factor, epoch = self.numbers.factor * _LOWER, self.numbers.epochs
        rate = self.schedule.learning_rate
        if factor < _LOWER ** (_TRIES - 0.5):
            raise MobilepruneError(
                f"training diverged in epoch {epoch + 1} at a learning rate of {rate:g} and at every lower one down to "
                f"{rate * self.numbers.factor:g}; start a new run with a lower --learning-rate "
                "or --finetune-learning-rate"
            )
        self.state.step_back()
        self.numbers.factor = factor
        since = f"the end of epoch {epoch}" if epoch else "the start"
        self.say(
            f"training diverged in epoch {epoch + 1}: back to {since} with {_LOWER:g} times the learning rate, "
            f"{rate * factor:.3g}"
        )

    def finish(self) -> None:
        if self.average:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()
        self.state.remove()


def _average(model: nn.Module, schedule: Schedule) -> Any:
    """timm's moving average of the weights, whose decay grows with the steps so that short trainings profit, too."""
    if not schedule.ema:
        return None
    import_timm()
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=schedule.ema, use_warmup=True)


def _mixer(schedule: Schedule, classes: int) -> Any:
    if not schedule.mixup and not schedule.cutmix:
        return None
    import_timm()
    from timm.data import Mixup

    # Labels are smoothed in the loss, where those of unmixed batches are, too.
    return Mixup(schedule.mixup, schedule.cutmix, label_smoothing=0.0, num_classes=classes)
