"""The fit behind `fit_device_profile.py`: coefficients per kind of operator from published latencies.

The logarithm of the latency is fitted, so that a row counts by its relative error, and the unknowns are logarithms of
the coefficients, so that none is negative. A prior on the ratios of the coefficients holds those that a device's rows
say little about, which plain non-negative least squares leaves wild on operators it has not seen. Rows of different
documents come from different runtimes: each document but the largest gets a scale of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from published_rows import Row
from scipy.optimize import least_squares

from device_profiles.latency_model import FREE_KINDS
from device_profiles.operators import Work

# Kinds that share the coefficient of their activations: dense convolutions read and write alike, a normalisation is
# elementwise, a reduction is a pooling over everything.
_ELEMENTS_AS = {
    "conv1x1": "dense",
    "conv": "dense",
    "conv_stem": "dense",
    "norm": "elementwise",
    "softmax": "elementwise",
    "reduce": "pool",
}
# Term -> (ratio to the milliseconds per GMAC of 1x1 convolutions, standard deviation of its logarithm). The ratios of
# the arithmetic (1, .9, 1.5, 3) were found on several phones; those of the activations are a memory of some GB/s.
PRIOR: dict[tuple[str, str], tuple[float, float]] = {
    ("macs", "conv1x1"): (1.0, 0.15),
    ("macs", "conv"): (0.9, 0.25),
    ("macs", "conv_stem"): (1.5, 0.4),
    ("macs", "depthwise"): (3.0, 0.4),
    ("macs", "linear"): (1.0, 0.5),
    ("elements", "dense"): (0.003, 0.7),
    ("elements", "depthwise"): (0.003, 0.7),
    ("elements", "linear"): (0.003, 0.7),
    ("elements", "elementwise"): (0.005, 0.7),
    ("elements", "pool"): (0.01, 0.7),
    ("elements", "move"): (0.006, 0.7),
    ("weights", "all"): (0.002, 0.7),
    ("operators", "all"): (7e-5, 1.0),
}
TERMS = tuple(PRIOR)
# What is bound by memory, or runs on one thread, gains less from threads than convolutions do.
NOT_SHARED = frozenset((("elements", "elementwise"), ("elements", "pool"), ("elements", "move"), ("operators", "all")))
_SOURCE_STD = 0.1  # of the logarithm of a document's scale: mild, so that a family is not explained away


@dataclass(frozen=True)
class Settings:
    """Prior ratios and the standard deviations of their logarithms, by term; noise: of a row's log latency."""

    ratios: tuple[float, ...]
    stds: tuple[float, ...]
    noise: float

    @classmethod
    def general(cls, threads: int, *, tight: float, noise: float) -> Settings:
        """The prior above, its deviations times `tight`; TFLite's kernels of `NOT_SHARED` know one thread only."""
        ratios = [ratio * (threads if term in NOT_SHARED else 1) for term, (ratio, _) in PRIOR.items()]
        return cls(tuple(ratios), tuple(std * tight for _, std in PRIOR.values()), noise)


Works = dict[str, Work]  # network -> its work


def features(work: Work) -> np.ndarray:
    """The work in the units of the terms: GMAC, 10^6 activations, 10^6 bytes of weights, operators."""
    found: Counter[tuple[str, str]] = Counter()
    for kind, one in work.kinds.items():
        if kind in FREE_KINDS:
            continue
        found["macs", kind] += one.macs / 1e9  # type: ignore[assignment]
        found["elements", _ELEMENTS_AS.get(kind, kind)] += one.activation_elements / 1e6  # type: ignore[assignment]
        found["weights", "all"] += one.weight_bytes / 1e6  # type: ignore[assignment]
        found["operators", "all"] += one.operators
    if strange := [term for term, size in found.items() if size and term not in PRIOR]:
        raise ValueError(f"no prior for {strange[0]}")
    return np.array([found[term] for term in TERMS], dtype=float)


def fit(rows: Sequence[Row], works: Works, settings: Settings) -> np.ndarray:
    """The coefficients (milliseconds per unit of each term) of the most probable model, on the scale of the largest
    document of the rows.

    Families weigh by the square root of their number of rows: sixteen of one say less than sixteen of several.
    """
    X = np.array([features(works[row.network]) for row in rows])
    y = np.log([row.latency_ms for row in rows])
    documents = [name for name, _ in Counter(row.source for row in rows).most_common()]
    others = np.array([[row.source == name for name in documents[1:]] for row in rows], float).reshape(len(rows), -1)
    sizes = Counter(row.family for row in rows)
    weights = np.array([sizes[row.family] ** -0.25 for row in rows])
    ratios, stds = np.array(settings.ratios), np.array(settings.stds)
    n = len(ratios)

    def residuals(p: np.ndarray) -> np.ndarray:
        predicted = p[0] + np.log(X @ (ratios * np.exp(p[1 : 1 + n]))) + others @ p[1 + n :]
        return np.concatenate(
            [(predicted - y) * weights / settings.noise, p[1 : 1 + n] / stds, p[1 + n :] / _SOURCE_STD]
        )

    start = np.zeros(1 + n + others.shape[1])
    start[0] = np.median(y - np.log(X @ ratios))
    found = least_squares(residuals, start).x
    coefficients: np.ndarray = np.exp(found[0] + found[1 : 1 + n]) * ratios
    return coefficients


def like(shape: np.ndarray, more_threads: float, *, std: float, noise: float) -> Settings:
    """A prior from another device's coefficients: its ratios, within `std`, and a scale that is free.

    Where the other one had fewer threads, by the factor `more_threads`, the terms of `NOT_SHARED` grow by its root
    against the rest: half way between shared fully and not at all.
    """
    ratios = shape / shape[0] * [more_threads**0.5 if term in NOT_SHARED else 1.0 for term in TERMS]
    return Settings(tuple(ratios), (std,) * len(TERMS), noise)


def left_out(rows: Sequence[Row], works: Works, fitter: Callable[[Sequence[Row], str], np.ndarray]) -> dict[Row, float]:
    """Predicted / measured - 1 of each row, by `fitter(rows of the other families, family left out)`."""
    errors: dict[Row, float] = {}
    for family in sorted({row.family for row in rows}):
        coefficients = fitter([row for row in rows if row.family != family], family)
        errors |= errors_of([row for row in rows if row.family == family], works, coefficients)
    return errors


def errors_of(rows: Sequence[Row], works: Works, coefficients: np.ndarray) -> dict[Row, float]:
    """Predicted / measured - 1 of each row."""
    return {row: float(features(works[row.network]) @ coefficients) / row.latency_ms - 1 for row in rows}


def per_kind(coefficients: np.ndarray, works: Sequence[Work]) -> tuple[dict[str, float], dict[str, float]]:
    """(ms per GMAC, ms per million activations) of the kinds in these works, and of those that share a coefficient."""
    value = dict(zip(TERMS, (float(f"{one:.4g}") for one in coefficients), strict=True))
    seen = {kind for work in works for kind in work.kinds if kind not in FREE_KINDS}
    shared = {_ELEMENTS_AS.get(kind, kind) for kind in seen} - {"dense"}
    kinds = sorted(seen | {kind for kind, term in _ELEMENTS_AS.items() if term in shared})
    macs = {kind: value["macs", kind] for kind in kinds if ("macs", kind) in value}
    return macs, {kind: value["elements", _ELEMENTS_AS.get(kind, kind)] for kind in kinds}


def single(coefficients: np.ndarray, term: tuple[str, str]) -> float:
    return float(f"{coefficients[TERMS.index(term)]:.4g}")
