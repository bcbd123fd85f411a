"""Which arithmetic and memory layout train fastest here: measured, since a flag of the processor tells little.

bfloat16 is half the work where the processor multiplies it natively and several times the work where it is emulated;
channels last suits most convolutions and not all.
"""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileprune.tensors import logits_in

_STEPS = 4
_CLEAR_GAIN = 0.85  # of the time of plain float32; less is not worth other numbers, and noise must not decide


@dataclass(frozen=True)
class Setting:
    """How to compute: whether in bfloat16 (weights stay float32), and whether channels come last in memory."""

    bfloat16: bool
    channels_last: bool

    def __str__(self) -> str:
        return f"{'bfloat16' if self.bfloat16 else 'float32'}, channels {'last' if self.channels_last else 'first'}"


# What the others must clearly beat: float32, and the layout that convolutions are fastest with nearly everywhere.
PLAIN = Setting(bfloat16=False, channels_last=True)


def fastest_setting(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Setting, dict[str, float]]:
    """Time training steps in every setting; the fastest, and the seconds of each.

    images: (N, C, H, W) as the network sees them. ``model`` is left as it is. Settings are timed in turns, so that
    other programs slow all of them alike.
    """
    settings = [Setting(*flags) for flags in itertools.product((False, True), repeat=2)]
    trials = {setting: _laid_out(copy.deepcopy(model).train(), images, setting) for setting in settings}
    best = dict.fromkeys(settings, float("inf"))
    for turn in range(_STEPS + 1):
        for setting, (trial, seen) in trials.items():
            seconds = _step(trial, seen, labels, setting)
            if turn:  # the first is to warm up
                best[setting] = min(best[setting], seconds)
    fastest = min(settings, key=lambda setting: best[setting])
    chosen = fastest if best[fastest] < _CLEAR_GAIN * best[PLAIN] else PLAIN
    return chosen, {str(setting): round(seconds, 6) for setting, seconds in best.items()}


def _laid_out(model: nn.Module, images: Tensor, setting: Setting) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    return model.to(memory_format=layout), images.contiguous(memory_format=layout)  # type: ignore[call-overload]


def _step(model: nn.Module, images: Tensor, labels: Tensor, setting: Setting) -> float:
    """Seconds of one forward and backward pass."""
    _wait(images.device)
    start = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=setting.bfloat16):
        loss = F.cross_entropy(logits_in(model(images)), labels)
    loss.backward()
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
