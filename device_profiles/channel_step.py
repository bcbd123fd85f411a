"""The channel step of a device: the widths at which it is fast, found by measuring single convolutions.

Kernels take several channels at a time, so that latency over width is a staircase: a convolution of 60 channels may
take as long as one of 64. A width is called a loss where it takes clearly longer than its work is worth, and the step
is the smallest number whose multiples are no loss. It is found per kind of convolution, from widths just below two
landmarks: each of them is an odd multiple of one candidate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_profiles.benchmark import benchmark
from device_profiles.devices.base import Device
from device_profiles.layers import write_layer
from device_profiles.profile import STEP_KINDS

CANDIDATES = (1, 2, 4, 8, 16)
LARGEST = 32  # the step where not even odd multiples of 16 are fast
LANDMARKS = (64, 128)
_BASE_WIDTHS = (32, 64, 96, 128)  # multiples of LARGEST: fast everywhere, they say what work is worth
LOSS = 0.08  # gaps of 5 % are noise
# Makes a file with one convolution of that kind, from so many channels to as many, that the device can run.
Make = Callable[[str, int], Path]


@dataclass(frozen=True)
class ChannelStep:
    """What was found for one kind of convolution. losses: candidate -> mean relative extra time of its odd multiples;
    latency_ms: width -> latency."""

    kind: str
    step: int
    losses: dict[int, float]
    latency_ms: dict[int, float]


def widths() -> tuple[int, ...]:
    """The widths that are measured of every kind."""
    return tuple(sorted({*_BASE_WIDTHS, *(mark - step for mark in LANDMARKS for step in CANDIDATES)}))


def channel_steps(
    device: Device,
    *,
    make: Make | None = None,
    kinds: Sequence[str] = STEP_KINDS,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> dict[str, ChannelStep]:
    """Measure the kinds of convolution on the device, one after the other, and decide each one's step.

    All widths of a kind are measured together; all kinds at once would be more than the memory of a small board holds.
    make: writes the files; unless given they have the format of the device's profile. progress: called with
    (file-rounds done, in all). how: see `benchmark`. Raises DeviceError where the device cannot be measured.
    """
    found = {}
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
        for place, kind in enumerate(kinds):

            def write(kind: str, channels: int) -> Path:
                return write_layer(kind, channels, Path(folder) / f"{kind}-{channels}.{device.profile.format}")

            def advance(done: int, total: int, before: int = place) -> None:
                if progress:
                    progress(before * total + done, len(kinds) * total)

            files = {f"{kind}-{width}": (make or write)(kind, width) for width in widths()}
            report = benchmark(device, files, progress=advance, **how)
            latency_ms = {width: report.measurements[f"{kind}-{width}"].latency_ms for width in widths()}
            found[kind] = decide(kind, latency_ms)
    return found


def decide(kind: str, latency_ms: Mapping[int, float]) -> ChannelStep:
    """The step, from the latency of each of `widths`: the smallest candidate such that neither it nor a larger one
    loses more than LOSS."""
    worth = _worth(kind, latency_ms)
    losses = {}
    for step in CANDIDATES:
        each = [latency_ms[mark - step] / worth(mark - step) - 1 for mark in LANDMARKS]
        losses[step] = sum(each) / len(each)
    step = LARGEST
    for candidate in reversed(CANDIDATES):
        if losses[candidate] > LOSS:
            break
        step = candidate
    return ChannelStep(kind, step, losses, dict(latency_ms))


def _worth(kind: str, latency_ms: Mapping[int, float]) -> Callable[[int], float]:
    """What a width should take: overhead, activations and arithmetic, a + b width + c width^2, fitted with non-negative
    coefficients (without the last one for depthwise) to the base widths by relative error."""
    import numpy as np
    from scipy.optimize import nnls

    powers = (0, 1) if kind == "depthwise" else (0, 1, 2)
    rows = np.array([[width**power / latency_ms[width] for power in powers] for width in _BASE_WIDTHS])
    scale = rows.max(axis=0)
    found = nnls(rows / scale, np.ones(len(_BASE_WIDTHS)))[0] / scale
    return lambda width: float(sum(c * width**power for c, power in zip(found, powers, strict=True)))
