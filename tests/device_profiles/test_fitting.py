"""The fit of a latency model to files that were measured together, on works that follow a known law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.errors import DeviceError
from device_profiles.fitting import PRIOR, REACH, features, fit_files
from device_profiles.operators import KindWork, Work
from device_profiles.predict import predict

RATIOS = np.array([ratio for ratio, _ in PRIOR.values()])


def network(width: int, side: int) -> Work:
    """A stem, then ten depthwise and 1x1 convolutions, each pair at half the pixels and twice the channels at times."""
    pixels = side * side
    point = KindWork(10, 10 * width * width * pixels, 20 * width * pixels, 80 * width * pixels, 40 * width * width)
    depth = KindWork(10, 90 * width * pixels, 20 * width * pixels, 80 * width * pixels, 360 * width)
    stem = KindWork(1, 27 * width * pixels, (3 + width) * pixels, 4 * (3 + width) * pixels, 108 * width)
    kinds = {"conv1x1": point, "depthwise": depth, "conv_stem": stem}
    params = sum(one.weight_bytes for one in kinds.values()) // 4
    return Work(kinds, params, 4 * width * pixels, {}, 3 * pixels)


NETWORKS = {f"{width}@{side}": network(width, side) for width in (8, 16, 32, 64) for side in (32, 64, 96)}


def rows(scale: float, noise: np.ndarray | None = None) -> dict[str, tuple[Work, float]]:
    off = np.ones(len(NETWORKS)) if noise is None else np.exp(noise)
    truth = {name: float(features(work) @ (scale * RATIOS)) for name, work in NETWORKS.items()}
    return {name: (NETWORKS[name], ms * float(one)) for (name, ms), one in zip(truth.items(), off, strict=True)}


@given(st.floats(1.0, 1e4))
def test_the_law_of_the_prior_is_found_at_any_speed(scale: float) -> None:
    model = fit_files(rows(scale), threads=1, runtime="scripted", source="here")
    for work, ms in rows(scale).values():
        assert predict(work, model).latency_ms == pytest.approx(ms, rel=0.01)
    assert model.guaranteed_error < 0.01
    assert (model.rows, model.families, model.threads) == (12, tuple(NETWORKS), 1)


def test_the_stated_error_is_that_of_files_left_out() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, len(NETWORKS))
    model = fit_files(rows(100.0, noise), threads=1, runtime="scripted", source="here")
    assert 0.02 < model.typical_error < 0.08  # the mean of a normal error of 5 % is 4 %
    assert model.typical_error < model.guaranteed_error < 0.25
    for work, ms in rows(100.0, noise).values():
        found = predict(work, model)
        assert found.low_ms <= ms <= found.high_ms


def test_a_model_reaches_a_little_beyond_its_files() -> None:
    model = fit_files(rows(100.0), threads=1, runtime="scripted", source="here")
    sizes = [work.macs for work in NETWORKS.values()]
    assert model.macs == (min(sizes) // REACH, max(sizes) * REACH)
    predict(network(8, 28), model)
    with pytest.raises(DeviceError, match="outside of what the profile was fitted to"):
        predict(network(64, 160), model)


def test_what_cannot_be_fitted() -> None:
    few = dict(list(rows(100.0).items())[:3])
    with pytest.raises(DeviceError, match="3 files are too few to fit a latency model"):
        fit_files(few, threads=1, runtime="scripted", source="here")
    strange = Work({"conv_transpose": KindWork(1, 10**6, 10, 40, 40)}, 10, 40, {}, 3)
    with pytest.raises(DeviceError, match=r"no prior for .*conv_transpose"):
        fit_files({**rows(100.0), "s": (strange, 1.0)}, threads=1, runtime="scripted", source="here")
    torn = {name: (work, ms * (50 if i % 2 else 1)) for i, (name, (work, ms)) in enumerate(rows(100.0).items())}
    with pytest.raises(DeviceError, match="do not follow the latency model at all"):
        fit_files(torn, threads=1, runtime="scripted", source="here")
