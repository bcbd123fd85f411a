"""``mobileprune bench FILE...`` on the real host: every figure, chosen cores, without a pause, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from device_profiles.layers import write_layer
from mobileprune import profiling
from mobileprune.cli import main

QUICK = ("--rounds", "2", "--round-seconds", "0", "--lenient")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return write_layer("pointwise", 64, tmp_path / "net.onnx", side=56)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def good(*arguments: object) -> str:
    done = bench(*arguments)
    assert done.exit_code == 0, done.stderr
    return " ".join(done.stdout.split())


def test_every_figure_of_a_measurement_is_told(net: Path) -> None:
    report = json.loads(good(net, "--json", "--rounds", "6", "--round-seconds", "0", "--lenient"))
    (one,) = report["measurements"].values()
    assert len(one["round_minima_ms"]) == 6
    assert sorted(one["round_minima_ms"])[2] <= one["latency_ms"] <= sorted(one["round_minima_ms"])[3]
    assert one["low_ms"] <= one["latency_ms"] <= one["high_ms"]
    assert one["spread"] == pytest.approx((one["high_ms"] - one["low_ms"]) / 2 / one["latency_ms"])
    assert one["latency_ms"] <= one["p50_ms"] <= one["p90_ms"]
    assert one["runs"] >= 48
    assert one["init_ms"] > 0
    assert one["peak_memory_mb"] > 10
    assert (one["delegation"]["name"], one["delegation"]["share"]) == ("CPUExecutionProvider", 1.0)
    assert (one["threads"], one["origin"]) == (1, "measured")
    for state in (report["before"], report["after"]):
        assert 0 <= state["busy"] <= 1
        assert state["load_1m"] >= 0
    shown = good(net, *QUICK)
    for words in ("95 % interval", "±", "p50, p90", "init", "MB", "all of the graph", "1 thread, measured", "before: "):
        assert words in shown


def test_a_prediction_is_shown_as_one(net: Path) -> None:
    shown = good(net, "--device", "pixel")
    assert "1 thread, predicted" in shown
    assert "by the error" in shown
    assert "0 ms" not in shown  # nothing was loaded


def test_files_are_timed_on_chosen_cores_and_threads(net: Path) -> None:
    report = json.loads(good(net, "--core-mask", "0x1", "--threads", "1", "--json", *QUICK))
    assert report["core_mask"] == 1
    assert "1 thread on the cores 1, measured" in good(net, "--core-mask", "1", *QUICK)


def test_a_file_is_run_without_a_pause(net: Path) -> None:
    found = json.loads(good(net, "--sustained", "4s", "--core-mask", "1", "--json"))
    assert found["points"][-1]["time_s"] >= 4
    assert len(found["points"]) >= 8
    assert (found["origin"], found["core_mask"], found["delegation"]["share"]) == ("measured", 1, 1.0)
    assert set(found["before"]) == set(found["after"]) >= {"temperature_c", "busy", "governor"}
    shown = good(net, "--sustained", "4")
    assert found["verdict"].partition(":")[0].partition(" ")[0] == "host"
    assert re.search(r" ms \([-+]\d+%\) over \d+ s", shown)
    assert "net.onnx: onnxruntime" in shown
    assert "before: " in shown


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--core-mask", "1" + "0" * 50], 1, "core mask 0x1" + "0" * 50 + " names core 200, which is not there"),
        (["--core-mask", "zz"], 2, "the core mask 'zz' is no hexadecimal number above 0"),
        (["--core-mask", "1", "--device", "pixel"], 1, "pixel is predicted, for cores that nobody chose"),
        (["--delegate", "gpu"], 1, "host runs files on its cpu only, not on gpu; GPU and NNAPI are measured on"),
        (["--delegate", "nnapi", "--device", "pixel"], 1, "the latency of pixel on nnapi is not predicted"),
        (["--delegate", "gpu", "--sustained", "4s"], 1, "host runs files on its cpu only, not on gpu"),
        (["--sustained", "soon"], 2, "'soon' is no time such as 90s, 10m or 1h"),
        (["--sustained", "3s"], 1, "3 s are too short for a throttling curve"),
        (["--sustained", "4s", "--device", "pixel"], 1, "pixel is predicted, so nothing can be run or timed on it"),
        (["--sustained", "4s", "--rounds", "3"], 2, "--rounds: not with --sustained"),
        (["--sustained", "4s", "--core-mask", "1" + "0" * 50], 1, "names core 200, which is not there"),
        (["--budget", "5ms"], 2, "--budget: only for runs"),
        (["--threads", "9", "--device", "pixel"], 1, "threads = 9 cannot be predicted by the profile pixel"),
        (["--benchmark-binary", "/no/such"], 2, "there is no such benchmark_model"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(net: Path, flags: list[str], code: int, said: str) -> None:
    refused(bench(net, *flags), code, said)


def test_files_of_the_same_name_may_be_named_from_here_and_from_the_root(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    write_layer("pointwise", 8, tmp_path / "other" / "net.onnx", side=8)
    monkeypatch.chdir(tmp_path / "other")
    shown = good(net, "net.onnx", *QUICK)
    assert "other/net.onnx" in shown


def test_two_files_cannot_both_run_without_a_pause(net: Path, tmp_path: Path) -> None:
    other = write_layer("pointwise", 8, tmp_path / "other.onnx", side=8)
    refused(bench(net, other, "--sustained", "4s"), 2, "2 were named: name one")


@pytest.mark.parametrize("flags", [["--device", "pixel"], ["--threads", "2"], ["--sustained", "10m"], ["--lenient"]])
def test_a_run_is_measured_as_its_question_says(tmp_path: Path, flags: list[str]) -> None:
    name = "--strict" if flags == ["--lenient"] else flags[0]
    refused(bench(tmp_path, *flags), 2, f"{name}: only for files; a run is measured as it was asked to be")


def test_a_run_and_a_device_are_profiled_apart(tmp_path: Path) -> None:
    def profile(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["profile", *map(str, arguments)])

    refused(profile(tmp_path, "--device", "host", "--rounds", "3"), 2, "--device and --rounds: only for a device")
    refused(profile("--device", "host", "--budget", "5ms"), 2, "--budget: only for runs")
    refused(profile(), 2, "nothing to profile")
    refused(profile("--device", "pixel", "--calibrate"), 2, "nothing to calibrate with")
    refused(profile("--device", "host", "--cool-down", "soon"), 2, "'soon' is no time such as 90s, 10m or 1h")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--name", "Pixel 8"], "name = 'Pixel 8' must be 1 to 64 of the characters a-z, 0-9"),
        (["--name", "pixel-4"], "the name 'pixel-4' is one of the catalog's; give the profile another one"),
        (["--output", "/no/such/mine.toml"], "/no/such/mine.toml: the device profile cannot be written"),
    ],
)
@pytest.mark.parametrize("kind", [["--device", "host"], ["--device", "pixel", "--calibrate", "host"]])
def test_a_profile_that_cannot_be_written_is_not_measured(
    kind: list[str], flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEPRUNE_PROFILES", str(tmp_path))
    monkeypatch.setattr(profiling, "_networks", lambda *_: pytest.fail("networks were exported"))
    refused(CliRunner().invoke(main, ["profile", *kind, "--model", "resnet20", *flags]), 2, said)
    assert [*tmp_path.iterdir()] == []


def refused(done: Result, code: int, said: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert said in sentence
