"""The caller's random numbers: what seeds the global generators gives them back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_randomness() -> Iterator[None]:
    """Afterwards torch's generators, of the CPU and of GPUs in use, and NumPy's are as before. Also a decorator."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # looking would begin to use them
    before = np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(before)
