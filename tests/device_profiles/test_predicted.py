"""The device that is not there, and the profiles that come with the package."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance import DeviceConformance
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from device_profiles.benchmark import Measurement, benchmark
from device_profiles.devices import open_device
from device_profiles.devices.base import Device
from device_profiles.errors import DeviceError, ProfileError
from device_profiles.latency_model import LatencyModel
from device_profiles.operators import count
from device_profiles.predict import predict
from device_profiles.profile import CATALOG, DeviceProfile, catalog, load_profile, read_profile, write_profile

Save = Callable[..., Path]
node = helper.make_node
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared/data/published/phone_latency.csv"
PREDICTED = [name for name in catalog() if load_profile(name).kind == "predicted"]
PIXEL = (CATALOG / "pixel.toml").read_text()


def separable(save: Save, side: int, channels: int = 64, name: str = "net.onnx") -> Path:
    """Stem to `channels` at half the side, depthwise 3x3, 1x1, pooling and a classifier of 10."""
    half = (side + 1) // 2
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "d"], ["c"], pads=[1] * 4, group=channels),
        node("Conv", ["c", "p"], ["e"]),
        node("Add", ["e", "b"], ["s"]),
        node("GlobalAveragePool", ["s"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "l"], ["y"]),
    ]
    weights = {"w": (channels, 3, 3, 3), "d": (channels, 1, 3, 3), "p": (channels, channels, 1, 1), "l": (channels, 10)}
    assert half * 2 >= side
    return save(nodes, [1, 3, side, side], [1, 10], weights, name=name)


class TestConformance(DeviceConformance):
    damaged = "not a sound ONNX file|not a TFLite file"
    origin = "predicted"

    @pytest.fixture
    def device(self) -> Iterator[Device]:
        yield open_device("pixel")

    @pytest.fixture
    def net(self, save_onnx: Save) -> Path:
        return separable(save_onnx, 160)


def test_the_catalog_has_the_phones_and_boards() -> None:
    assert {"pixel", "pixel-1", "pixel-2", "pixel-3", "pixel-3a", "pixel-4", "raspberry-pi-3", "raspberry-pi-4"} <= set(
        PREDICTED
    )


@pytest.mark.parametrize("name", PREDICTED)
def test_every_profile_predicts_and_says_that_it_does(name: str, save_onnx: Save) -> None:
    device = open_device(name)
    path = separable(save_onnx, 160)
    seen = []
    for model in device.profile.latency:
        report = benchmark(device, {"net": path, "same": path}, threads=model.threads)
        one = report.measurements["net"]
        expected = predict(count(path), model)
        assert (one.latency_ms, one.low_ms, one.high_ms) == (expected.latency_ms, expected.low_ms, expected.high_ms)
        assert (one.origin, one.runs, one.round_minima_ms, one.threads) == ("predicted", 0, (), model.threads)
        assert "predicted" in one.runtime
        assert model.runtime in one.runtime
        (warning,) = report.warnings
        assert f"off by {model.typical_error:.0%} on average and by {model.guaranteed_error:.0%} at most" in warning
        assert one == report.measurements["same"]
        seen.append(one.latency_ms)
    assert all(0.05 < ms < 1000 for ms in seen)
    assert "left out" in device.profile.provenance


def test_pixel_is_the_phone_of_the_newest_runtime_with_the_smallest_error_and_says_so() -> None:
    pixel = load_profile("pixel")
    same = [name for name in PREDICTED if name != "pixel" and load_profile(name).latency == pixel.latency]
    assert len(same) == 1
    assert pixel.provenance.startswith(f"This is the profile {same[0]}:")
    assert "XNNPACK" in pixel.latency[0].runtime
    phones = [load_profile(name) for name in PREDICTED if name.startswith("pixel")]
    newest = [phone.latency[0] for phone in phones if "XNNPACK end2end" in phone.latency[0].runtime]
    assert pixel.latency[0].typical_error == min(model.typical_error for model in newest)


def test_the_stated_errors_keep_the_targets() -> None:
    """A mean of 6 % on one thread, of 10 % on four."""
    for name in PREDICTED:
        for model in load_profile(name).latency:
            assert model.typical_error <= (0.06 if model.threads == 1 else 0.10), (name, model.threads)


def test_both_formats_of_a_network_are_predicted_alike(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra: pip install 'mobileprune[tflite]'")
    import torch
    from torch import nn

    from exporters import InputSpec, export

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.Conv2d(32, 32, 3, 2, 1, groups=32),
        nn.ReLU6(),
        nn.Conv2d(32, 128, 1),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()
    spec = InputSpec(3, 128, 128, (0.5,) * 3, (0.5,) * 3)
    files = {
        "draft": tmp_path / "draft.onnx",
        "onnx": tmp_path / "net.onnx",
        "tflite": tmp_path / "net.tflite",
    }
    export(net, spec, files["draft"], format="onnx", simplify=False)
    export(net, spec, files["onnx"], format="onnx")
    export(net, spec, files["tflite"], format="tflite")
    found = {name: one.latency_ms for name, one in benchmark(open_device("pixel"), files).measurements.items()}
    assert found["onnx"] == pytest.approx(found["tflite"], rel=0.02)
    assert found["draft"] == pytest.approx(found["onnx"], rel=0.02)


def test_threads_that_were_not_fitted_are_refused(save_onnx: Save) -> None:
    with pytest.raises(DeviceError, match=r"threads = 3 cannot be predicted by the profile pixel, .* fitted to 1 or 2"):
        benchmark(open_device("pixel"), {"net": separable(save_onnx, 160)}, threads=3)


def test_a_network_too_small_is_refused_with_its_file(small_onnx: Path) -> None:
    with pytest.raises(DeviceError, match=rf"^{re.escape(str(small_onnx))}: its latency cannot be predicted"):
        benchmark(open_device("pixel"), {"net": small_onnx})


def test_nothing_runs_on_a_device_that_is_not_there(small_onnx: Path) -> None:
    with pytest.raises(DeviceError, match=r"predicted, so nothing can be run or timed on it.*connect the phone"):
        open_device("pixel").session({"net": small_onnx}, threads=1, timeout_s=1)


@pytest.mark.parametrize("name", ["pixel-4-gpu", "pixel-nnapi", "pixel-3-uint8", "pixel-4-EdgeTPU", "pixel-int8"])
def test_gpu_npu_and_quantised_profiles_need_a_phone(name: str) -> None:
    with pytest.raises(ProfileError, match=r"latencies are not predicted, .*; connect the phone") as caught:
        load_profile(name)
    assert "\n" not in str(caught.value)


def test_a_measurement_of_before_there_were_predictions_is_read_as_measured() -> None:
    one = Measurement(1.0, 0.9, 1.1, 1.0, 1.2, (1.0, 1.1), 16, 5.0, None, "onnxruntime 1", 1)
    old = {key: value for key, value in one.to_dict().items() if key != "origin"}
    assert Measurement.from_dict(old) == one
    assert one.to_dict()["origin"] == "measured"


# ---- the schema of the profiles


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('precision = "float32"', 'precision = "int8"', "precision = 'int8' cannot be predicted, .*connect the device"),
        ("\nthreads = 1\nchannel", "\nthreads = 3\nchannel", r"threads = 3 has no table \[\[latency\]\]"),
        ("[[latency]]\nthreads = 2", "[[latency]]\nthreads = 1", "two tables .* same threads"),
        ("[[latency]]\nthreads = 1", "[[latency]]\nthreads = true", r"\[\[latency\]\]: threads = True must be a whole"),
        ("[[latency]]\nthreads = 1", "[[latency]]\nthreds = 1", "unknown key 'threds' .*did you mean 'threads'"),
        ("[[latency]]\nthreads = 1", "[[latency]]\nzzz = 1", "unknown key 'zzz' .*the keys are threads"),
        ("[[latency]]\nthreads = 1", "[[latency]]", "the key 'threads' is missing"),
        ("ms_per_operator = 0", "ms_per_operator = -0", "ms_per_operator = -0.0.* must be from 0"),
        ("ms_per_operator = 0", "ms_per_operator = nan # ", "ms_per_operator = nan must be from 0"),
        ("ms_per_operator = 0", "ms_per_operator = inf # ", "ms_per_operator = inf must be from 0"),
        ("ms_per_operator = 0", "ms_per_operator = '0' # ", "ms_per_operator = '0' must be a number"),
        ("conv1x1 = 1", "conv1x1 = -1", "ms_per_gmac = .* has a wrong entry: conv1x1 = -1.* must be from 0"),
        ("conv1x1 = 1", "view = 1", "'view', which is no kind of operator with a cost"),
        ("conv1x1 = 1", "matmul = 1", "ms_per_gmac has 'matmul', which ms_per_million_activations lacks"),
        ("typical_error = 0", "typical_error = 0.9 # ", "typical_error = 0.9 must not exceed guaranteed_error"),
        ("guaranteed_error = 0", "guaranteed_error = 1.5 # ", "guaranteed_error = 1.5 must be a share"),
        ("macs = [", "macs = [ -1,", r"macs = .* must be two whole numbers"),
        ("sources = [", "sources = [ 3,", "sources = .* must be a list of texts"),
        ("schema = 1", "schema = 1\nlatencies = 1", "unknown key 'latencies'; did you mean 'latency'"),
    ],
)
def test_a_latency_model_that_breaks_the_schema_is_one_clear_sentence(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in PIXEL
    path = tmp_path / "phone.toml"
    path.write_text(PIXEL.replace(old, new, 1))
    with pytest.raises(ProfileError, match=said) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 100_000, "nested far too deep|not valid TOML"),
        ("# " + "x" * 2_000_000, "far too long"),
        ("schema = 1\nlatency = 3", r"latency must be tables|is missing"),
        (PIXEL.partition("[[latency]]")[0] + "latency = 3\n", r"latency must be tables, each headed"),
        (PIXEL.partition("[[latency]]")[0] + "latency = [3]\n", r"latency = 3 must be tables, each headed"),
        (PIXEL.partition("[[latency]]")[0], r"threads = 1 has no table \[\[latency\]\]"),
    ],
)
def test_hostile_toml_is_one_clear_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "phone.toml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=said) as caught:
        read_profile(path)
    assert "\n" not in str(caught.value)


@given(place=st.integers(0, len(PIXEL) - 1), what=st.sampled_from(["", "\x00", '"', "[", "9e999", "-", "=", "\n", "é"]))
def test_a_profile_damaged_anywhere_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, what: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_text(PIXEL[:place] + what + PIXEL[place + 1 :])
    try:
        assert isinstance(load_profile(path), DeviceProfile)
    except ProfileError as error:
        assert str(error).startswith(f"{path}: ")


numbers = st.floats(0, 1e6, allow_nan=False)


@given(
    per_gmac=st.dictionaries(st.sampled_from(["conv1x1", "conv", "depthwise"]), numbers, min_size=1),
    others=st.dictionaries(st.sampled_from(["pool", "elementwise", "move"]), numbers),
    per_operator=numbers,
    error=st.floats(0.001, 0.5),
    macs=st.tuples(st.integers(1, 10**6), st.integers(10**6, 10**12)),
    threads=st.integers(1, 256),
)
def test_a_written_model_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    per_gmac: dict[str, float],
    others: dict[str, float],
    per_operator: float,
    error: float,
    macs: tuple[int, int],
    threads: int,
) -> None:
    pixel = load_profile("pixel")
    model = LatencyModel(
        threads=threads,
        runtime="a runtime",
        ms_per_operator=per_operator,
        ms_per_mb_weights=0.0,
        ms_per_gmac=per_gmac,
        ms_per_million_activations={**per_gmac, **others},
        typical_error=error,
        guaranteed_error=error,
        rows=1,
        families=("one 'family'",),
        macs=macs,
        input_elements=(1, 1),
        sources=('a "source"', "b\nc"),
    )
    fields = {name: getattr(pixel, name) for name in ("title", "soc", "cores", "provenance")}
    profile = DeviceProfile("mine", kind="predicted", runtime="litert", format="tflite", precision="float32",
                            threads=threads, channel_step=8, latency=(model,), **fields)  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "mine.toml"
    write_profile(profile, path)
    assert load_profile(path) == profile


# ---- against what was published


@pytest.mark.parametrize(
    ("profile", "device", "backend", "threads", "model"),
    [
        ("pixel-1", "Pixel 1", "xnnpack end2end_bench", "1", "MobileNet v1 1.0X"),
        ("pixel-2", "Pixel 2", "xnnpack end2end_bench", "1", "MobileNet v1 1.0X"),
        ("pixel-3a", "Pixel 3a", "xnnpack end2end_bench", "1", "MobileNet v1 1.0X"),
        ("pixel-2-tflite", "Pixel 2", "tflite cpu", "1", "mobilenet_v1_1.0_224"),
        ("pixel-3", "Pixel 3", "tflite cpu", "4", "mobilenet_v1_1.0_224"),
        ("pixel-4", "Pixel 4", "tflite cpu", "4", "mobilenet_v1_1.0_224"),
        ("raspberry-pi-2", "Raspberry Pi 2 (BCM2836)", "xnnpack end2end_bench", "all", "MobileNet v1 1.0X"),
        ("raspberry-pi-3", "Raspberry Pi 3+ (BCM2837B0)", "xnnpack end2end_bench", "all", "MobileNet v1 1.0X"),
        ("raspberry-pi-4", "Raspberry Pi 4 (BCM2711)", "xnnpack end2end_bench", "all", "MobileNet v1 1.0X"),
    ],
)
def test_a_published_latency_lies_within_the_guaranteed_error(
    save_onnx: Save, profile: str, device: str, backend: str, threads: str, model: str
) -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"the published latencies are not beside the project: {PUBLISHED}")
    with PUBLISHED.open(newline="") as file:
        rows = [
            float(row["latency_ms"])
            for row in csv.DictReader(file)
            if (row["device"], row["backend"], row["threads"], row["model"], row["precision"])
            == (device, backend, threads, model, "float32")
        ]
    one = benchmark(open_device(profile), {"net": mobilenet_v1(save_onnx)}).measurements["net"]
    assert rows
    for published in rows:
        assert one.low_ms <= published <= one.high_ms


def mobilenet_v1(save: Save) -> Path:
    """MobileNetV1 (Howard et al. 2017, table 1) at 224 pixels, operator by operator."""
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    nodes = [node("Conv", ["x", "w"], ["t0"], pads=[1] * 4, strides=[2, 2])]
    weights: dict[str, tuple[int, ...]] = {"w": (32, 3, 3, 3), "l": (1024, 1001)}
    channels = 32
    for place, (out, stride) in enumerate(plan):
        weights |= {f"d{place}": (channels, 1, 3, 3), f"p{place}": (out, channels, 1, 1)}
        strides = [stride, stride]
        nodes += [
            node("Relu", [f"t{place}"], [f"r{place}"]),
            node("Conv", [f"r{place}", f"d{place}"], [f"c{place}"], pads=[1] * 4, strides=strides, group=channels),
            node("Relu", [f"c{place}"], [f"s{place}"]),
            node("Conv", [f"s{place}", f"p{place}"], [f"t{place + 1}"]),
        ]
        channels = out
    nodes += [
        node("GlobalAveragePool", [f"t{len(plan)}"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "l"], ["y"]),
    ]
    return save(nodes, [1, 3, 224, 224], [1, 1001], weights)
