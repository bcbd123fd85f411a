"""Training a network, from scratch or after pruning: one recipe for base, probes and result."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileprune.data import ImageData
from mobileprune.errors import MobilepruneError
from mobileprune.run import writing
from mobileprune.training.batches import View, augment, shuffled
from mobileprune.training.distill import distillation_loss
from mobileprune.training.threads import use_fastest_threads

_WARM_UP_SHARE = 0.1
_CLIP_NORM = 5.0
_TRIAL_IMAGES = 16
_TRY_AGAIN_S = 20.0


@dataclass(frozen=True)
class Schedule:
    """How to train. SGD with Nesterov momentum; the rate warms up over a tenth of the steps, then falls as a cosine."""

    epochs: int
    learning_rate: float
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    distillation: float = 0.5  # weight of the teacher's answers beside the labels; 0 without a teacher
    bfloat16: bool = False


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


def fit(
    model: nn.Module,
    data: ImageData,
    view: View,
    schedule: Schedule,
    *,
    seed: int,
    teacher: Teacher | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> None:
    """Train ``model`` in place on ``data.train`` and leave it in eval mode.

    checkpoint: a file that holds the state after each finished epoch; where it exists training goes on from it, and it
    is removed at the end. Every epoch's randomness comes from (seed, epoch) alone, so a resumed training sees the same
    batches. Raises MobilepruneError when the loss is no longer finite.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    few, tried = data.train.sample(_TRIAL_IMAGES), -math.inf
    optimizer = torch.optim.SGD(_parameter_groups(model, schedule), momentum=schedule.momentum, nesterov=True)
    steps = schedule.epochs * math.ceil(len(data.train) / schedule.batch_size)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    state = _Resumable(checkpoint, model, optimizer, rates)
    total = schedule.epochs * len(data.train)
    model.train()
    for epoch in range(state.restore(), schedule.epochs):
        if time.monotonic() - tried > _TRY_AGAIN_S:  # other programs come and go
            use_fastest_threads(model, view(few.images.to(device)), few.labels.to(device), bfloat16=schedule.bfloat16)
            tried = time.monotonic()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        torch.manual_seed(seed * 1_000_003 + epoch)  # dropout and stochastic depth
        seen = epoch * len(data.train)
        for images, labels in shuffled(data.train, schedule.batch_size, generator):
            images = augment(images.to(device), generator, flip=data.flip)
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16):
                loss = _loss(model, images, labels.to(device), view, schedule, teacher)
            value = _finite(loss, epoch, schedule)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            optimizer.step()
            rates.step()
            seen += len(labels)
            progress(Progress(seen, total, epoch, value))
        state.save(epoch + 1)
    model.eval()
    state.remove()


def _loss(
    model: nn.Module, images: Tensor, labels: Tensor, view: View, schedule: Schedule, teacher: Teacher | None
) -> Tensor:
    logits = model(view(images)).float()
    loss = F.cross_entropy(logits, labels, label_smoothing=schedule.label_smoothing)
    if teacher is None or schedule.distillation == 0:
        return loss
    with torch.inference_mode():
        answers = teacher.model(teacher.view(images)).float()
    share = schedule.distillation
    return (1 - share) * loss + share * distillation_loss(logits, answers.clone())


def _finite(loss: Tensor, epoch: int, schedule: Schedule) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise MobilepruneError(
            f"training diverged in epoch {epoch + 1} at a learning rate of {schedule.learning_rate:g}; "
            "start a new run with a lower --learning-rate or --finetune-learning-rate"
        )
    return value


def _parameter_groups(model: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only: on norms and biases it does harm (arXiv 1812.01187)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    kernels, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    rate = schedule.learning_rate
    return [
        {"params": kernels, "lr": rate, "weight_decay": schedule.weight_decay},
        {"params": others, "lr": rate, "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, round(_WARM_UP_SHARE * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class _Resumable:
    """The state after the last finished epoch, in a file of tensors and numbers (read with weights_only)."""

    def __init__(self, path: Path | None, model: nn.Module, *others: Any) -> None:
        self.path, self.parts = path, (model, *others)

    def restore(self) -> int:
        """Load the state if there is one; the number of epochs already done."""
        if self.path is None or not self.path.exists():
            return 0
        saved = torch.load(self.path, weights_only=True, map_location="cpu")
        for part, state in zip(self.parts, saved["parts"], strict=True):
            part.load_state_dict(state)
        return int(saved["epochs"])

    def save(self, epochs: int) -> None:
        if self.path is None:
            return
        buffer = io.BytesIO()  # torch's own writer turns a full disk into a crash of its own
        torch.save({"epochs": epochs, "parts": [part.state_dict() for part in self.parts]}, buffer)
        with writing(self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def has_fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 natively; emulated it is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
