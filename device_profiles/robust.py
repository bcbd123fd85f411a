"""The few statistics of the measuring protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1), linear between the order statistics (Hyndman & Fan 1996, definition 7)."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def sign_confidence(n: int, d: int) -> float:
    """How sure it is that the median lies between the d-th smallest and the d-th largest of n independent values.

    1 - 2 P(B <= d - 1) with B binomial (n, 1/2); d from 1 to n // 2. No assumption on the distribution.
    """
    return 1.0 - 2.0 * sum(math.comb(n, k) for k in range(d)) / 2.0**n


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of the median from order statistics, whatever the distribution.

    Interpolates between the two nested pairs of order statistics whose confidences (`sign_confidence`) enclose the
    wanted one: Hettmansperger & Sheather, "Confidence intervals based on interpolated order statistics", Statistics &
    Probability Letters 4 (1986) 75-79. With G(d) the confidence of pair d, I = (G(d) - c) / (G(d) - G(d + 1)) and
    t = (n - d) I / (d + (n - 2 d) I), the ends lie the share t of the way from pair d to pair d + 1.

    Fewer than 6 values cannot carry 95 %: then it is their range, with `sign_confidence(n, 1)`.
    """
    ordered = sorted(values)
    n = len(ordered)
    if n < 2 or sign_confidence(n, 1) <= confidence:
        return ordered[0], ordered[-1]
    d = max(k for k in range(1, n // 2 + 1) if sign_confidence(n, k) >= confidence)
    outer = sign_confidence(n, d)
    inner = sign_confidence(n, d + 1) if d + 1 <= n // 2 else 0.0
    share = (outer - confidence) / (outer - inner)
    t = (n - d) * share / (d + (n - 2 * d) * share)
    low = ordered[d - 1] + t * (ordered[d] - ordered[d - 1])
    high = ordered[n - d] - t * (ordered[n - d] - ordered[n - d - 1])
    return low, high
