"""Accuracy and loss of a network on a split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mobileprune.data import Split
from mobileprune.training.batches import View
from mobileprune.training.memory import out_of_memory, release

_MOST = 256  # images at once
# On two cores 160 px are scored at 140 images a second in batches of 64, at 59 in batches of 256; 32 px at any alike.
_CPU_PIXELS = 64 * 160**2


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy in [0, 1], mean cross-entropy in nats, and the number of images they were taken on."""

    accuracy: float
    loss: float
    images: int

    @property
    def std(self) -> float:
        """Standard error of the accuracy: binomial, with Laplace's rule so that it is never zero."""
        p = (self.accuracy * self.images + 1) / (self.images + 2)
        return float((p * (1 - p) / self.images) ** 0.5)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "std": self.std}


def usual_batch(side: int, device: torch.device) -> int:
    """How many images of ``side`` px are scored at once."""
    return _MOST if device.type != "cpu" else max(1, min(_MOST, _CPU_PIXELS // side**2))


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, view: View, *, batch_size: int = 0) -> Score:
    """Score ``model`` in eval mode on ``split``, in float32. Its mode is left as found.

    Without a ``batch_size`` a CPU gets fewer of large images at once. Batches that do not fit into memory are halved.
    """
    device = next(model.parameters()).device
    batch_size = batch_size or usual_batch(view.size, device)
    was_training = model.training
    model.eval()
    count = len(split)
    correct, loss = 0, 0.0
    start = 0
    while start < count:
        end = min(start + batch_size, count)
        labels = split.labels[start:end].to(device)
        try:
            logits = model(view(split.images[start:end].to(device))).float()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or batch_size < 2:
                raise
            batch_size //= 2
            release()
            continue
        start = end
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    model.train(was_training)
    return Score(correct / count, loss / count, count)
