"""The latency of a file on a device that is not there, from the work in the file and the model in a profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from device_profiles.errors import DeviceError
from device_profiles.latency_model import FREE_KINDS, LatencyModel
from device_profiles.operators import KindWork, Work

NEEDS_A_DEVICE = "GPU, NPU and quantised latencies are not predicted: connect the phone and measure"
_NEGLIGIBLE = 1e-3  # of all activations: shapes and the like
_STD_OF_MEAN_ERROR = math.sqrt(math.pi / 2)  # of a normal distribution, whose mean |error| is known


class Prediction(NamedTuple):
    """A latency in milliseconds, and the standard deviation of its error relative to it.

    low_ms, high_ms: where the true latency lies when the prediction is off by the guaranteed error, which is relative
    to the true one.
    """

    latency_ms: float
    relative_std: float
    low_ms: float
    high_ms: float


def predict(work: Work, model: LatencyModel) -> Prediction:
    """The predicted latency of that work; the formula is in latency_model.py.

    The standard deviation is that of a normal distribution whose mean error is the model's typical one. Raises
    DeviceError, in one sentence, for operators, precisions and sizes that the model was not fitted to.
    """
    _check(work, model)
    latency = 0.0
    for kind, one in _costly(work, model).items():
        latency += model.ms_per_operator * one.operators
        latency += model.ms_per_mb_weights * one.weight_bytes / 1e6
        latency += model.ms_per_gmac.get(kind, 0.0) * one.macs / 1e9
        latency += model.ms_per_million_activations[kind] * one.activation_elements / 1e6
    return Prediction(
        latency_ms=latency,
        relative_std=model.typical_error * _STD_OF_MEAN_ERROR,
        low_ms=latency / (1 + model.guaranteed_error),
        high_ms=latency / (1 - model.guaranteed_error),
    )


def calibrate(model: LatencyModel, anchors: Sequence[tuple[Work, float]], runtime: str) -> LatencyModel:
    """The model rescaled to a device at hand: all its coefficients times one factor, the same for every kind.

    anchors: work and measured milliseconds of two or more networks, best the second smallest and the largest of those
    in question: a single one says less than the published rows and can do harm. runtime: what they were measured with.
    The factor is the geometric mean of measured / predicted; the stated errors grow where an anchor is off by more.
    Raises DeviceError for fewer than two anchors, two of nearly the same work, and what `predict` refuses.
    """
    sizes = [work.macs for work, _ in anchors]
    if len(anchors) < 2 or max(sizes) < 1.5 * min(sizes):
        raise DeviceError(
            "a profile is calibrated with two measured networks or more, the largest with at least 1.5 times the "
            "multiply-accumulates of the smallest; add one of another size"
        )
    if not all(0 < ms < math.inf for _, ms in anchors):
        raise DeviceError("a profile cannot be calibrated with a latency that is not above 0 ms; measure again")
    logs = [math.log(ms / predict(work, model).latency_ms) for work, ms in anchors]
    factor = math.exp(sum(logs) / len(logs))
    off = [abs(factor * predict(work, model).latency_ms / ms - 1) for work, ms in anchors]
    if max(off) >= 1:
        raise DeviceError("the measured networks do not fit the profile at all; choose the profile of another device")
    return replace(
        model,
        runtime=runtime,
        ms_per_operator=factor * model.ms_per_operator,
        ms_per_mb_weights=factor * model.ms_per_mb_weights,
        ms_per_gmac={kind: factor * one for kind, one in model.ms_per_gmac.items()},
        ms_per_million_activations={kind: factor * one for kind, one in model.ms_per_million_activations.items()},
        typical_error=max(model.typical_error, sum(off) / len(off)),
        guaranteed_error=max(model.guaranteed_error, *off),
    )


def _check(work: Work, model: LatencyModel) -> None:
    if work.unsupported:
        names = ", ".join(work.unsupported)
        raise DeviceError(f"its latency cannot be predicted, because the cost of {names} is not known; measure it")
    for kind, one in _costly(work, model).items():
        if kind not in model.ms_per_million_activations or (one.macs and kind not in model.ms_per_gmac):
            known = ", ".join(sorted(model.ms_per_million_activations))
            raise DeviceError(
                f"its latency cannot be predicted, because it has operators of the kind {kind!r} and the profile was "
                f"fitted to {known} only; choose another profile or measure it"
            )
    if not _is_float32(work):
        raise DeviceError(f"its latency cannot be predicted, because it is not all float32. {NEEDS_A_DEVICE}")
    sizes = (("multiply-accumulates", work.macs, model.macs), ("inputs", work.input_elements, model.input_elements))
    for words, size, (least, most) in sizes:
        if not least <= size <= most:
            raise DeviceError(
                f"its latency cannot be predicted, because its {size:,} {words} lie outside of what the profile was "
                f"fitted to ({least:,} to {most:,}); choose another profile or measure it"
            )


def _costly(work: Work, model: LatencyModel) -> dict[str, KindWork]:
    """The kinds that cost anything; one without arithmetic that the model does not know may be too small to matter."""
    moved = sum(one.activation_elements for one in work.kinds.values())
    return {
        kind: one
        for kind, one in work.kinds.items()
        if kind not in FREE_KINDS
        and (kind in model.ms_per_million_activations or one.macs or one.activation_elements > _NEGLIGIBLE * moved)
    }


def _is_float32(work: Work) -> bool:
    """Whether activations and weights have four bytes each, a weight that is used twice being read twice."""
    computing = [one for one in work.kinds.values() if one.macs]
    activations = all(one.activation_bytes == 4 * one.activation_elements for one in computing)
    return activations and sum(one.weight_bytes for one in work.kinds.values()) >= 4 * work.params
