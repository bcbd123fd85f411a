"""Fit a latency model (latency_model.py): coefficients per kind of operator from latencies of whole files.

The logarithm of the latency is fitted, so that a row counts by its relative error, and the unknowns are logarithms of
the coefficients, so that none is negative. A prior on the ratios of the coefficients holds those that the rows say
little about, which plain non-negative least squares leaves wild on operators it has not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from device_profiles.errors import DeviceError
from device_profiles.latency_model import FREE_KINDS, LatencyModel
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
REACH = 2  # a model may be asked for networks and inputs so many times smaller or larger than the fitted ones
FEWEST_FILES = 4  # one is left out at a time, and what is left must say something of size and of kind
_OFFSET_STD = 0.1  # of the logarithm of an offset: mild, so that it does not explain away what a model should
_OWN_TIGHT, _OWN_NOISE = 1.0, 0.02  # of files measured on one device in one go


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


def features(work: Work) -> np.ndarray:
    """The work in the units of the terms: GMAC, 10^6 activations, 10^6 bytes of weights, operators.

    Raises ValueError for a kind of operator without a prior.
    """
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


def fit_coefficients(
    X: np.ndarray,
    latency_ms: np.ndarray,
    settings: Settings,
    weights: np.ndarray | None = None,
    offsets: np.ndarray | None = None,
) -> np.ndarray:
    """The coefficients (milliseconds per unit of each term) of the most probable model.

    X (rows, terms): `features` of each row. weights (rows,): how much a row counts, 1 unless given. offsets (rows,
    groups): 1 where a row belongs to a group with a scale of its own, such as those of another document.
    """
    from scipy.optimize import least_squares

    y = np.log(latency_ms)
    others = np.zeros((len(y), 0)) if offsets is None else offsets
    how_much = np.ones(len(y)) if weights is None else weights
    ratios, stds = np.array(settings.ratios), np.array(settings.stds)
    n = len(ratios)

    def residuals(p: np.ndarray) -> np.ndarray:
        predicted = p[0] + np.log(X @ (ratios * np.exp(p[1 : 1 + n]))) + others @ p[1 + n :]
        return np.concatenate(
            [(predicted - y) * how_much / settings.noise, p[1 : 1 + n] / stds, p[1 + n :] / _OFFSET_STD]
        )

    start = np.zeros(1 + n + others.shape[1])
    start[0] = np.median(y - np.log(X @ ratios))
    found = least_squares(residuals, start).x
    fitted: np.ndarray = np.exp(found[0] + found[1 : 1 + n]) * ratios
    return fitted


def per_kind(fitted: np.ndarray, works: Sequence[Work]) -> tuple[dict[str, float], dict[str, float]]:
    """(ms per GMAC, ms per million activations) of the kinds in these works, and of those that share a coefficient."""
    value = dict(zip(TERMS, (float(f"{one:.4g}") for one in fitted), strict=True))
    seen = {kind for work in works for kind in work.kinds if kind not in FREE_KINDS}
    shared = {_ELEMENTS_AS.get(kind, kind) for kind in seen} - {"dense"}
    kinds = sorted(seen | {kind for kind, term in _ELEMENTS_AS.items() if term in shared})
    macs = {kind: value["macs", kind] for kind in kinds if ("macs", kind) in value}
    return macs, {kind: value["elements", _ELEMENTS_AS.get(kind, kind)] for kind in kinds}


def single(fitted: np.ndarray, term: tuple[str, str]) -> float:
    return float(f"{fitted[TERMS.index(term)]:.4g}")


def fit_files(rows: Mapping[str, tuple[Work, float]], *, threads: int, runtime: str, source: str) -> LatencyModel:
    """The model of files that were measured together: name -> (work, milliseconds).

    Its errors are those of each file predicted by a fit to the others. Raises DeviceError for too few files, for
    operators of unknown cost, and where the files do not follow the model at all.
    """
    if len(rows) < FEWEST_FILES:
        raise DeviceError(
            f"{len(rows)} files are too few to fit a latency model; measure {FEWEST_FILES} or more, of several sizes"
        )
    works = [work for work, _ in rows.values()]
    try:
        X = np.array([features(work) for work in works])
    except ValueError as error:
        raise DeviceError(f"no latency model can be fitted: {error}") from error
    y = np.array([ms for _, ms in rows.values()])
    settings = Settings.general(threads, tight=_OWN_TIGHT, noise=_OWN_NOISE)
    every = np.arange(len(y))
    off = [float(X[i] @ fit_coefficients(X[every != i], y[every != i], settings) / y[i] - 1) for i in every]
    whole = fit_coefficients(X, y, settings)
    worst = max(abs(one) for one in [*off, *(X @ whole / y - 1)])
    if worst >= 1:
        raise DeviceError("the measured files do not follow the latency model at all; measure again, or other files")
    macs, elements = per_kind(whole, works)
    return LatencyModel(
        threads=threads,
        runtime=runtime,
        ms_per_operator=single(whole, ("operators", "all")),
        ms_per_mb_weights=single(whole, ("weights", "all")),
        ms_per_gmac=macs,
        ms_per_million_activations=elements,
        typical_error=_up(float(np.mean(np.abs(off)))),
        guaranteed_error=_up(float(worst)),
        rows=len(rows),
        families=tuple(rows),
        macs=_reach([work.macs for work in works]),
        input_elements=_reach([work.input_elements for work in works]),
        sources=(source,),
    )


def _up(share: float) -> float:
    """Rounded up to a thousandth; never 0, which no measured error is."""
    return min(0.999, max(0.001, float(np.ceil(share * 1000) / 1000)))


def _reach(sizes: Sequence[int]) -> tuple[int, int]:
    return max(1, min(sizes) // REACH), max(sizes) * REACH
