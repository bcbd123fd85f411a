"""How many CPU threads train fastest here and now.

Threads that share a small network wait for each other at every layer. On a quiet machine that costs little; where other
programs hold the cores it can make two threads forty times slower than one, so the number is measured, not assumed.
"""

from __future__ import annotations

import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileprune.tensors import logits_in

_AVAILABLE = torch.get_num_threads()  # before anything here changes it; OMP_NUM_THREADS counts
_STEPS = 2


def use_fastest_threads(model: nn.Module, images: Tensor, labels: Tensor, *, bfloat16: bool) -> int:
    """Time training steps with one and with all threads, leave torch with the faster number, and return it.

    images: (N, C, H, W) as the network sees them; a few are enough. ``model`` is left as it is. Nothing is tried where
    only one thread is allowed or the network does not train on the CPU.
    """
    if _AVAILABLE == 1 or images.device.type != "cpu":
        return torch.get_num_threads()
    trial = copy.deepcopy(model).train()
    seconds = {count: _time(trial, images, labels, count, bfloat16) for count in (1, _AVAILABLE)}
    best = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(best)
    return best


def _time(model: nn.Module, images: Tensor, labels: Tensor, threads: int, bfloat16: bool) -> float:
    """Seconds of the fastest of a few training steps, after one to warm up."""
    torch.set_num_threads(threads)
    best = float("inf")
    for step in range(_STEPS + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(logits_in(model(images)), labels)
        loss.backward()
        if step:
            best = min(best, time.perf_counter() - start)
    return best
