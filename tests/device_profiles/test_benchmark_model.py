"""The output of Google's benchmark_model in the forms that its builds of 2018 to today print, whole and cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_profiles.devices.base import Delegation
from device_profiles.errors import DeviceError
from device_profiles.runners.benchmark_model import Output, command, delegation, parse

NEW = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [1]
INFO: Num threads: [1]
INFO: Graph: [/data/local/tmp/net.tflite]
INFO: Loaded model /data/local/tmp/net.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 64 out of 66 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions.
INFO: The input model file size (MB): 13.9786
INFO: Initialized session in 92.318ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=3 first=235158 curr=199905 min=199905 max=235158 avg=211669 std=16600 p5=199905 median=199944 p95=235158

INFO: Running benchmark for at least 25 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 median=141253 p95=187533

INFO: Inference timings in us: Init: 92318, First inference: 235158, Warmup (avg): 211669, Inference (avg): 145528
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE.
INFO: Memory footprint delta from the start of the tool (MB): init=26.6 overall=41.5
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
INFO: Memory status at the end of exeution:
"""
OLD = """\
STARTING!
Num runs: [50]
Loaded model /data/local/tmp/net.tflite
resolved reporter
Initialized session in 38.467ms
Running benchmark for at least 1 iterations and at least 0.5 seconds
count=6 first=91234 curr=80100 min=79999 max=91234 avg=83235 std=3991

Running benchmark for at least 50 iterations and at least 1 seconds
count=50 first=79985 curr=79550 min=78912 max=81234 avg=79760.9 std=444

Average inference timings in us: Warmup: 83235, Init: 38467, Inference: 79760.9
"""


def test_a_new_build() -> None:
    found = parse(NEW)
    assert (found.round.minimum_ms, found.round.p50_ms, found.round.p90_ms) == (140.071, 141.253, 187.533)
    assert (found.round.runs, found.round.peak_memory_mb) == (25, 93.2383)
    assert (found.loaded.init_ms, found.loaded.runtime) == (92.318, "benchmark_model")
    assert found.loaded.delegation == Delegation("XNNPACK", 64 / 66, 66)
    assert str(found.loaded.delegation) == "XNNPACK, 64 of 66 nodes"


def test_an_old_build_without_median_p95_and_memory() -> None:
    found = parse(OLD)
    assert (found.round.minimum_ms, found.round.runs, found.round.peak_memory_mb) == (78.912, 50, None)
    assert found.round.p50_ms == pytest.approx(79.7609)  # the mean, for want of a median
    assert found.round.p90_ms == 81.234  # the maximum, for want of any percentile
    assert found.loaded.init_ms == 38.467
    assert found.loaded.delegation is None


def test_the_oldest_build_calls_it_no_stats() -> None:
    assert parse(OLD.replace("Inference: 79760.9", "no stats: 79760.9")) == parse(OLD)


def test_the_init_time_is_in_the_last_line_too() -> None:
    assert parse(re.sub("INFO: Initialized.*\n", "", NEW)).loaded.init_ms == 92.318
    assert parse(re.sub("Initialized.*\n", "", OLD)).loaded.init_ms == 38.467


@pytest.mark.parametrize("same", ["count=1 curr=140990", "count=4 curr=140990(all same)"])
def test_runs_that_took_all_the_same_have_a_form_of_their_own(same: str) -> None:
    text = re.sub("count=25.*", same, NEW).replace("Inference (avg): 145528", "Inference (avg): 140990")
    found = parse(text).round
    assert (found.minimum_ms, found.p50_ms, found.p90_ms) == (140.99, 140.99, 140.99)
    assert found.runs == int(same[6])


def test_the_warm_up_may_be_a_single_run() -> None:
    assert parse(re.sub("count=3.*", "count=1 curr=235158", NEW)) == parse(NEW)


def test_a_count_that_max_secs_cut_short_is_told_as_it_is() -> None:
    assert parse(NEW.replace("count=25", "count=7")).round.runs == 7


def test_large_numbers_come_with_exponents_and_windows_line_ends_do_not_matter() -> None:
    assert parse(NEW.replace("avg=145528", "avg=1.45528e+05")) == parse(NEW)
    assert parse(NEW.replace("\n", "\r\n")) == parse(NEW)


def test_without_the_peak_the_growth_of_memory_is_taken() -> None:
    assert parse(re.sub("INFO: Overall peak.*\n", "", NEW)).round.peak_memory_mb == 41.5


GPU = "TfLiteGpuDelegateV2"


@pytest.mark.parametrize(
    ("asked", "said", "found"),
    [
        ("gpu", f"Replacing 60 out of 66 node(s) with delegate ({GPU}) node, yielding 3 partitions.", (60 / 66, 66)),
        (
            "gpu",
            f"Replacing 4 out of 8 node(s) with delegate ({GPU}) node\n"
            f"Replacing 2 out of 2 node(s) with delegate ({GPU}) node",
            (0.6, 10),
        ),
        ("gpu", f"Replacing 31 node(s) with delegate ({GPU}) node, yielding 2 partitions.", (None, None)),
        (
            "gpu",
            "Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.",
            (1.0, None),
        ),
        (
            "gpu",
            "Explicitly applied GPU delegate, and the model graph will be partially executed by the delegate w/ 2 "
            "delegate kernels.",
            (None, None),
        ),
        (
            "nnapi",
            "Replacing 66 out of 66 node(s) with delegate (TfLiteNnapiDelegate) node, yielding 1 partitions.\n"
            "Explicitly applied NNAPI delegate, and the model graph will be completely executed by the delegate.",
            (1.0, 66),
        ),
    ],
)
def test_what_a_delegate_took(asked: str, said: str, found: tuple[float | None, int | None]) -> None:
    one = delegation(said, asked)
    assert one is not None
    assert (one.name, one.share, one.nodes) == (asked.upper(), *found)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "INFO: Created TensorFlow Lite delegate for GPU.",
        "Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate.",
        "Replacing 64 out of 66 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions.",
        f"Replacing 0 out of 66 node(s) with delegate ({GPU}) node, yielding 0 partitions.",
    ],
)
def test_a_gpu_that_silently_left_all_to_the_cpu_is_refused(said: str) -> None:
    with pytest.raises(DeviceError, match="the GPU took no part of this file, so it ran on the CPU"):
        parse(re.sub("VERBOSE: Replacing.*", said, NEW), delegate="gpu")


def test_a_cpu_without_xnnpack_says_so() -> None:
    said = "Though XNNPACK delegate is explicitly applied, the model graph will not be executed by the delegate."
    assert delegation(said, "cpu") == Delegation("built-in kernels", 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ended before it had timed the file"),
        ("STARTING!\nLoaded model x\n", "ended before it had timed the file; its last line was 'Loaded model x'"),
        ("STARTING!\nERROR: Failed to load model\nBenchmarking failed.\n", "cannot run it: Failed to load model"),
        ("CANNOT LINK EXECUTABLE: library not found\n", "cannot run it: CANNOT LINK EXECUTABLE"),
        ("sh: ./benchmark_model: not found\n", "cannot run it"),
        (NEW.replace("min=140071", "min=0"), "contradict each other"),
        (NEW.replace("avg=145528", "avg=345528"), "contradict each other"),
        (NEW.replace("max=195121", "max=1951"), "contradict each other"),
    ],
)
def test_an_output_that_measures_nothing_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.integers(0, len(NEW)))
@example(NEW.index("p95=187533") + len("p95=1875"))
@example(NEW.index("Inference (avg): 145528") + len("Inference (avg): 145"))
def test_an_output_cut_anywhere_gives_the_whole_time_or_none(cut: int) -> None:
    whole = parse(NEW)
    try:
        found = parse(NEW[:cut])
    except DeviceError:
        return
    assert (found.loaded, found.round.minimum_ms, found.round.runs) == (whole.loaded, 140.071, 25)
    assert found.round.peak_memory_mb in (None, 41.5, 93.2383)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=50), st.booleans())
def test_statistics_of_any_runs_are_read_back(times: list[int], percentiles: bool) -> None:
    ordered = sorted(times)
    average = sum(times) / len(times)
    if ordered[0] == ordered[-1]:
        line = f"count={len(times)} curr={times[-1]}(all same)"
    else:
        line = (
            f"count={len(times)} first={times[0]} curr={times[-1]} min={ordered[0]} max={ordered[-1]} "
            f"avg={average:g} std=1"
        )
        line += f" p5={ordered[0]} median={ordered[len(times) // 2]} p95={ordered[-1]}" if percentiles else ""
    text = re.sub("count=25.*", line, NEW).replace("(avg): 145528", f"(avg): {average:g}")
    found = parse(text).round
    assert (found.runs, found.minimum_ms) == (len(times), ordered[0] / 1e3)
    assert found.minimum_ms <= found.p50_ms * (1 + 1e-5)
    assert found.p90_ms == ordered[-1] / 1e3


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert isinstance(parse(text), Output)
    except DeviceError as error:
        assert "\n" not in str(error)


def test_the_command_line() -> None:
    words = command("/d/benchmark_model", "/d/a b.tflite", threads=4, min_runs=8, min_seconds=0.25, core_mask=0xF0)
    assert words[:4] == ["taskset", "f0", "/d/benchmark_model", "--graph=/d/a b.tflite"]
    assert {"--num_threads=4", "--use_xnnpack=true", "--num_runs=8", "--min_secs=0.25"} <= set(words)
    options = {"threads": 1, "min_runs": 1, "min_seconds": 0.0}
    assert "--use_gpu=true" in command("b", "g", delegate="gpu", **options)  # type: ignore[arg-type]
    assert "--use_nnapi=true" in command("b", "g", delegate="nnapi", **options)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="delegate = 'npu' does not exist"):
        command("b", "g", delegate="npu", **options)  # type: ignore[arg-type]
