"""Predictions in closed form, their monotony, and everything they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from device_profiles.errors import DeviceError
from device_profiles.latency_model import LatencyModel
from device_profiles.operators import KindWork, Work, count
from device_profiles.predict import calibrate, predict

Save = Callable[..., Path]
node = helper.make_node

MODEL = LatencyModel(
    threads=2,
    runtime="a runtime 1.0",
    ms_per_operator=0.5,
    ms_per_mb_weights=3.0,
    ms_per_gmac={"conv1x1": 100.0, "conv_stem": 200.0, "linear": 50.0},
    ms_per_million_activations={"conv1x1": 7.0, "conv_stem": 11.0, "linear": 13.0, "pool": 17.0},
    typical_error=0.04,
    guaranteed_error=0.25,
    rows=4,
    families=("a", "b"),
    macs=(1000, 10**9),
    input_elements=(100, 10**6),
    sources=("a paper",),
)


def test_a_tiny_graph_by_hand(save_onnx: Save) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["d"]),
        node("GlobalAveragePool", ["d"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "u"], ["y"]),
    ]
    weights = {"w": (8, 3, 3, 3), "v": (4, 8, 1, 1), "u": (4, 10)}
    prediction = predict(count(save_onnx(nodes, [1, 3, 16, 16], [1, 10], weights)), MODEL)
    pixels = 16 * 16
    arithmetic = 200 * (pixels * 8 * 27) + 100 * (pixels * 32) + 50 * 40
    moved = 11 * (pixels * 11) + 7 * (pixels * 12) + 17 * (4 * pixels + 4) + 13 * 14
    weight_bytes = 4 * (8 * 27 + 32 + 40)
    by_hand = 4 * 0.5 + 3 * weight_bytes / 1e6 + arithmetic / 1e9 + moved / 1e6
    assert prediction.latency_ms == pytest.approx(by_hand, rel=1e-12)
    assert prediction.low_ms == pytest.approx(by_hand / 1.25)
    assert prediction.high_ms == pytest.approx(by_hand / 0.75)
    assert prediction.relative_std == pytest.approx(0.04 * math.sqrt(math.pi / 2))


def work_of(kinds: dict[str, KindWork], *, inputs: int = 1000, unsupported: dict[str, int] | None = None) -> Work:
    params = sum(one.weight_bytes for one in kinds.values()) // 4
    return Work(kinds, params, 1, unsupported or {}, inputs)


def convolution(macs: int = 10**6, elements: int = 1000, operators: int = 1, weight_bytes: int = 400) -> KindWork:
    return KindWork(operators, macs, elements, 4 * elements, weight_bytes)


amounts = st.integers(0, 10**6)
kind_works = st.builds(convolution, st.integers(1000, 10**8), amounts, st.integers(1, 100), st.integers(0, 10**6))


@given(
    works=st.dictionaries(st.sampled_from(sorted(MODEL.ms_per_gmac)), kind_works, min_size=1),
    more=st.tuples(st.integers(0, 10**6), amounts, st.integers(0, 10), amounts),
    data=st.data(),
)
def test_more_work_of_any_kind_is_never_predicted_to_be_faster(
    works: dict[str, KindWork], more: tuple[int, int, int, int], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(sorted(works)))
    base = predict(work_of(works), MODEL)
    larger = predict(work_of({**works, kind: works[kind] + convolution(*more)}), MODEL)
    assert larger.latency_ms >= base.latency_ms > 0
    assert base.low_ms < base.latency_ms < base.high_ms


def test_an_operator_that_was_not_fitted_is_refused_by_its_kind() -> None:
    works = {"conv1x1": convolution(), "depthwise": convolution()}
    with pytest.raises(DeviceError, match=r"kind 'depthwise' and the profile was fitted to conv1x1, conv_stem, linear"):
        predict(work_of(works), MODEL)


def test_arithmetic_of_a_kind_fitted_without_any_is_refused() -> None:
    with pytest.raises(DeviceError, match="kind 'pool'"):
        predict(work_of({"pool": convolution()}), MODEL)


def test_an_operator_that_is_not_known_is_refused_by_its_name() -> None:
    works = {"conv1x1": convolution(), "unsupported": KindWork(1)}
    with pytest.raises(DeviceError, match="the cost of Hardmax, Our is not known"):
        predict(work_of(works, unsupported={"Hardmax": 1, "Our": 2}), MODEL)


def test_a_shape_operator_is_too_small_to_be_refused() -> None:
    works = {"conv1x1": convolution(elements=10**5)}
    tiny = KindWork(1, 0, 4, 32, 0)
    assert predict(work_of({**works, "move": tiny}), MODEL) == predict(work_of(works), MODEL)
    with pytest.raises(DeviceError, match="kind 'move'"):
        predict(work_of({**works, "move": KindWork(1, 0, 5000, 20000, 0)}), MODEL)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (
            work_of({"conv1x1": convolution(macs=999)}),
            r"999 multiply-accumulates lie outside .*\(1,000 to 1,000,000,000\)",
        ),
        (work_of({"conv1x1": convolution(macs=10**9 + 1)}), "1,000,000,001 multiply-accumulates lie outside"),
        (work_of({"conv1x1": convolution()}, inputs=99), "99 inputs lie outside"),
        (work_of({"conv1x1": convolution()}, inputs=10**6 + 1), "1,000,001 inputs lie outside"),
    ],
)
def test_sizes_beyond_what_was_fitted_are_refused(work: Work, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        predict(work, MODEL)
    assert "\n" not in str(caught.value)


def test_sizes_at_the_ends_of_what_was_fitted_are_taken() -> None:
    for macs in MODEL.macs:
        for inputs in MODEL.input_elements:
            assert predict(work_of({"conv1x1": convolution(macs=macs)}, inputs=inputs), MODEL).latency_ms > 0


@pytest.mark.parametrize(("activation", "weight"), [(1, 1), (2, 2), (4, 1), (4, 2), (1, 4)])
def test_quantised_and_half_precision_files_need_a_phone(activation: int, weight: int) -> None:
    one = KindWork(1, 10**6, 1000, activation * 1000, weight * 100)
    work = replace(work_of({"conv1x1": one}), params=100)
    with pytest.raises(DeviceError, match=r"not all float32\. GPU, NPU and quantised latencies .* connect the phone"):
        predict(work, MODEL)


def test_a_real_file_with_int8_weights_needs_a_phone(save_onnx: Save) -> None:
    import numpy as np

    nodes = [node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", ["x", "w"], ["y"])]
    constants = {"q": np.ones((16, 8, 1, 1), np.int8), "s": np.asarray(np.float32(0.1))}
    path = save_onnx(nodes, [1, 8, 16, 16], [1, 16, 16, 16], constants=constants)
    assert helper.np_dtype_to_tensor_dtype(np.dtype(np.int8)) == TensorProto.INT8
    with pytest.raises(DeviceError, match="not all float32"):
        predict(count(path), MODEL)


def test_covers_is_what_predict_takes() -> None:
    for macs, inputs in ((999, 100), (1000, 99), (1000, 100), (10**9, 10**6), (10**9 + 1, 100)):
        work = work_of({"conv1x1": convolution(macs=macs)}, inputs=inputs)
        if MODEL.covers(macs, inputs):
            predict(work, MODEL)
        else:
            with pytest.raises(DeviceError, match="lie outside"):
                predict(work, MODEL)


@given(st.floats(0.2, 5.0))
def test_a_phone_that_is_faster_by_one_factor_is_calibrated_exactly(factor: float) -> None:
    works = [work_of({"conv1x1": convolution(macs=macs)}) for macs in (10**6, 10**8, 10**7)]
    anchors = [(work, factor * predict(work, MODEL).latency_ms) for work in works[:2]]
    calibrated = calibrate(MODEL, anchors, "LiteRT on my phone")
    assert calibrated.runtime == "LiteRT on my phone"
    expected = factor * predict(works[2], MODEL).latency_ms
    assert predict(works[2], calibrated).latency_ms == pytest.approx(expected, rel=1e-9)
    assert (calibrated.typical_error, calibrated.guaranteed_error) == pytest.approx((0.04, 0.25), abs=1e-9)


def test_anchors_that_disagree_widen_the_stated_errors() -> None:
    works = [work_of({"conv1x1": convolution(macs=macs)}) for macs in (10**6, 10**8)]
    anchors = [(work, by * predict(work, MODEL).latency_ms) for work, by in zip(works, (1.0, 4.0), strict=True)]
    with pytest.raises(DeviceError, match="do not fit the profile at all"):
        calibrate(MODEL, anchors, "r")
    anchors = [(work, by * predict(work, MODEL).latency_ms) for work, by in zip(works, (1.0, 2.25), strict=True)]
    calibrated = calibrate(MODEL, anchors, "r")
    assert calibrated.guaranteed_error == pytest.approx(0.5)
    assert calibrated.typical_error == pytest.approx((0.5 + 1 / 3) / 2)


def test_a_latency_that_is_none_does_not_calibrate() -> None:
    works = [work_of({"conv1x1": convolution(macs=macs)}) for macs in (10**6, 10**8)]
    for ms in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DeviceError, match="not above 0 ms"):
            calibrate(MODEL, [(works[0], 1.0), (works[1], ms)], "r")


def test_one_anchor_or_two_alike_do_not_calibrate() -> None:
    work = work_of({"conv1x1": convolution(macs=10**7)})
    near = work_of({"conv1x1": convolution(macs=14 * 10**6)})
    for anchors in ([], [(work, 1.0)], [(work, 1.0), (near, 1.4)]):
        with pytest.raises(DeviceError, match="two measured networks or more"):
            calibrate(MODEL, anchors, "r")
