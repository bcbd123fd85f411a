"""The fit behind `fit_device_profile.py`: device_profiles/fitting.py on rows of published documents.

Rows of different documents come from different runtimes: each document but the largest gets a scale of its own. Whole
families of networks are left out to find the error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from published_rows import Row

from device_profiles.fitting import NOT_SHARED, TERMS, fit_coefficients
from device_profiles.fitting import PRIOR as PRIOR
from device_profiles.fitting import Settings as Settings
from device_profiles.fitting import features as features
from device_profiles.fitting import per_kind as per_kind
from device_profiles.fitting import single as single
from device_profiles.operators import Work

Works = dict[str, Work]  # network -> its work


def fit(rows: Sequence[Row], works: Works, settings: Settings) -> np.ndarray:
    """The coefficients (milliseconds per unit of each term) of the most probable model, on the scale of the largest
    document of the rows.

    Families weigh by the square root of their number of rows: sixteen of one say less than sixteen of several.
    """
    documents = [name for name, _ in Counter(row.source for row in rows).most_common()]
    others = np.array([[row.source == name for name in documents[1:]] for row in rows], float).reshape(len(rows), -1)
    sizes = Counter(row.family for row in rows)
    return fit_coefficients(
        np.array([features(works[row.network]) for row in rows]),
        np.array([row.latency_ms for row in rows]),
        settings,
        weights=np.array([sizes[row.family] ** -0.25 for row in rows]),
        offsets=others,
    )


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
