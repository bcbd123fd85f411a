"""Training a network, from scratch or after pruning: one recipe for base, probes and result."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileprune._torchvision import import_timm
from mobileprune.data import ImageData
from mobileprune.errors import MobilepruneError
from mobileprune.randomness import own_randomness
from mobileprune.tensors import logits_in
from mobileprune.training.batches import Batch, Share, View, batches, images_per_epoch, resident
from mobileprune.training.distill import distillation_loss
from mobileprune.training.memory import TooLargeError, out_of_memory, parts, release
from mobileprune.training.schedule import Rates, Schedule, make_optimizer
from mobileprune.training.state import Numbers, State
from mobileprune.training.threads import use_fastest_threads

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    """Told after each batch: images seen in this training so far, of how many, the epoch, and the batch's loss.

    accuracy: the share of the batch's images, augmented as they are, that was recognised; None where labels are mixed.
    """

    seen: int
    total: int
    epoch: int
    loss: float
    accuracy: float | None = None


class _DivergedError(Exception):
    """The loss is not finite, or far higher than it was."""


@own_randomness()
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
    at_once: int = 0,
) -> None:
    """Train ``model`` in place on ``data.train`` and leave it in eval mode.

    checkpoint: a file that holds the state after each finished epoch; where it exists training goes on from it. It
    stays: the caller removes it when what was trained is kept elsewhere. at_once: images that are known to fit into
    memory, or 0. Every epoch's randomness comes from (seed, epoch) alone, so a resumed training sees the same batches.
    A training that diverges goes back to its last good epoch with a lower rate, and a batch that does not fit into
    memory is taken in parts; ``say`` is told both. Raises MobilepruneError when no lower rate helps either. The global
    random generators are left as they were.

    In several processes that accelerate has connected, each calls this alike and takes its share of every batch;
    progress is that of all. Where memory is short in one of them all must begin again: TooLargeError.
    """
    training = _Training(model, data, view, schedule, seed, teacher, progress, say, checkpoint)
    training.restore(at_once)
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
) -> Iterator[float]:
    """The loss of each step of a training with a step at each of ``rates``; ends early where it is not finite."""
    quiet = _Training(model, data, view, schedule, seed, teacher, lambda _: None, lambda _: None, None)
    generator = quiet.begin(0)
    endless = itertools.chain.from_iterable(quiet.batches(generator) for _ in itertools.count())
    for rate, batch in zip(rates, endless, strict=False):
        for group in quiet.optimizer.param_groups:
            group["lr"] = rate
        try:
            yield quiet.step(batch)[0]
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
        self.accelerator, self.network = _connected(model)
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        self.optimizer = make_optimizer(model, schedule)
        self.rates = Rates(self.optimizer, schedule, len(data.train))
        self.average = _average(model, schedule)
        self.mix = _mixer(schedule, len(data.classes))
        self.numbers = Numbers(batch=schedule.batch_size)
        averaged = [self.average.module] if self.average else []
        first = self.share.rank == 0  # all processes have the same state
        self.state = State(checkpoint, self.numbers, model, self.optimizer, *averaged, writes=first)
        self.few, self.tried = data.train.sample(_TRIAL_IMAGES), -math.inf

    def restore(self, at_once: int) -> None:
        """Go on from the checkpoint, if there is one."""
        self.state.restore()
        self.numbers.batch = min(self.numbers.batch, at_once or self.numbers.batch)

    def epoch(self, epoch: int) -> None:
        """One pass over the training images. Raises _DivergedError; the state is saved where it ends well."""
        generator = self.begin(epoch)
        size, paired = self.schedule.batch_size, self.mix is not None
        images = images_per_epoch(len(self.train), size, self.share, paired=paired)
        step, seen, losses = epoch * self.schedule.steps_per_epoch(len(self.train)), 0, 0.0
        for batch in self.batches(generator):
            self.rates.set(step)
            loss, accuracy = self.step(batch)
            step += 1
            if self.average:
                self.average.update(self.model, step=step)
            seen, losses = seen + batch.whole, losses + loss * batch.whole
            done = epoch * images + seen
            self.progress(Progress(done, self.schedule.epochs * images, epoch, loss, accuracy))
        self._check(losses / max(seen, 1))
        self.numbers.epochs = epoch + 1
        self.state.save()

    def batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """What this process takes of an epoch's batches."""
        size, paired = self.schedule.batch_size, self.mix is not None
        return batches(self.train, size, generator, self.device, flip=self.data.flip, share=self.share, paired=paired)

    def begin(self, epoch: int) -> torch.Generator:
        """Set everything that an epoch's randomness comes from, and the number of threads."""
        if time.monotonic() - self.tried > _TRY_AGAIN_S:  # other programs come and go
            seen, labels = self.view(self.few.images.to(self.device)), self.few.labels.to(self.device)
            use_fastest_threads(self.model, seen, labels, bfloat16=self.schedule.bfloat16)
            self.tried = time.monotonic()
        seed = self.seed * 1_000_003 + epoch
        torch.manual_seed(seed + self.share.rank)  # dropout and stochastic depth, other masks for other images
        if self.mix is not None:
            np.random.seed(seed % 2**32)  # timm's mixup draws from here
        self.rates.factor = self.numbers.factor
        self.model.train()
        return torch.Generator().manual_seed(seed)

    def step(self, batch: Batch) -> tuple[float, float | None]:
        """Learn from one batch; its mean loss, and the share that was recognised where labels are not mixed."""
        images, targets = batch.images, batch.labels
        if self.mix is not None:
            images, targets = self.mix(images.float(), targets)
        loss, recognised = self._gradients(images, targets, batch.whole)
        if not math.isfinite(loss):
            raise _DivergedError
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self.optimizer.step()
        return loss, recognised if self.mix is None else None

    def _gradients(self, images: Tensor, targets: Tensor, whole: int) -> tuple[float, float]:
        """Gradients of the mean loss of the ``whole`` batch, in as many parts as memory needs; that loss, and the
        share of images that were recognised."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                mine = self._backward(images, targets, whole)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else "out of memory"
            else:
                loss, recognised = self.accelerator.reduce(mine, "sum").tolist()
                return loss, recognised
            self._halve(min(self.numbers.batch, len(images)), reason)

    def _backward(self, images: Tensor, targets: Tensor, whole: int) -> Tensor:
        """Gradients of the mean loss over all processes, which exchange them with the last part.

        (2,): what this process's images add to that loss, and to the share that was recognised."""
        pairs = list(zip(parts(images, self.numbers.batch), parts(targets, self.numbers.batch), strict=True))
        mine = torch.zeros(2, device=self.device)
        for number, (x, y) in enumerate(pairs, 1):
            with nullcontext() if number == len(pairs) else self.accelerator.no_sync(self.network):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.bfloat16):
                    logits, loss = self._loss(x, y)
                    loss = loss * (len(x) / whole)
                self.accelerator.backward(loss * self.share.count)  # the exchange takes the mean
            mine[0] += loss.detach()
            if self.mix is None:
                mine[1] += (logits.detach().argmax(1) == y).sum() / whole
        return mine

    def _halve(self, batch: int, reason: str) -> None:
        if batch < 4:
            raise MobilepruneError(
                f"not even {batch} images of {self.view.size} px fit into memory ({reason}); use a smaller --image-size"
            )
        self.numbers.batch = batch // 2
        self.optimizer.zero_grad(set_to_none=True)
        release()
        fewer = f"out of memory: {batch // 2} of a batch's {self.schedule.batch_size} images are taken at once"
        if self.share.count > 1:  # the others wait for this process in the middle of this step
            raise TooLargeError(f"{fewer} in each process, from the last finished epoch on", batch // 2)
        self.say(fewer)

    def _loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the mean loss over ``images``."""
        seen = self.view(images)
        logits = logits_in(self.network(seen if self.schedule.channels_last else seen.contiguous()))
        loss = F.cross_entropy(logits, targets, label_smoothing=self.schedule.label_smoothing)
        if self.teacher is None:
            return logits, loss
        with torch.inference_mode():
            answers = logits_in(self.teacher.model(self.teacher.view(images)))
        share = self.schedule.distillation
        taught = distillation_loss(logits, answers.clone(), self.schedule.temperature)
        return logits, (1 - share) * loss + share * taught

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


def _connected(model: nn.Module) -> tuple[Accelerator, nn.Module]:
    """How this process exchanges gradients with the others, and ``model`` as it is then called; alone: ``model``.

    Batch norm is over the images of each process, as it is common: over those of all it is slow, and torch has it on
    GPUs alone. The running statistics that are kept are those of the first process.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    handler = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    accelerator = Accelerator(device_placement=False, mixed_precision="no", kwargs_handlers=[handler])
    return accelerator, accelerator.prepare_model(model)


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
