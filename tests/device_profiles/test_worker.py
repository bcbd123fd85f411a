"""worker.py by itself: what it tells of delegates, cores and the board, and the Pythons it must run on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from device_profiles.devices.base import Delegation
from device_profiles.errors import DeviceError
from device_profiles.layers import write_layer
from device_profiles.runners import worker

QUICK: dict[str, Any] = {"rounds": 2, "min_runs": 2, "min_seconds": 0.0}


def node(index: int, inputs: list[int], outputs: list[int], name: str = "CONV_2D") -> dict[str, Any]:
    return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}


# x=0 -> 1 -> 2 -> 3 -> 4=y, weights from 10 on
CHAIN = [node(i, [i, 10 + i], [i + 1]) for i in range(4)]


@pytest.mark.parametrize(
    ("parts", "share"),
    [
        ([], None),
        ([node(4, [0, 10, 11, 12, 13], [4], "DELEGATE")], 1.0),
        ([node(4, [0, 10], [1], "DELEGATE")], 0.25),
        ([node(4, [0, 10], [1], "DELEGATE"), node(5, [2, 12, 13], [4], "DELEGATE")], 0.75),
        ([node(4, [1, 11, 12], [3], "DELEGATE")], 0.5),
    ],
)
def test_the_nodes_that_a_delegate_took_lie_between_its_ends(parts: list[dict[str, Any]], share: float | None) -> None:
    found = worker.delegated([*CHAIN, *parts])
    if share is None:
        assert found == {"name": "built-in kernels", "share": 1.0, "nodes": 4}
    else:
        assert found == {"name": "XNNPACK", "share": share, "nodes": 4}


def test_a_branch_inside_a_delegate_is_counted_once() -> None:
    diamond = [node(0, [0], [1]), node(1, [1], [2]), node(2, [1], [3]), node(3, [2, 3], [4], "ADD"), node(4, [4], [5])]
    found = worker.delegated([*diamond, node(5, [0], [4], "DELEGATE")])
    assert found == {"name": "XNNPACK", "share": 0.8, "nodes": 5}


def test_the_real_runtimes_tell_what_runs_a_file(small_tflite: Path, small_onnx: Path) -> None:
    found = benchmark(open_device("host"), {"t": small_tflite, "o": small_onnx}, **QUICK).measurements
    assert found["t"].delegation == Delegation("XNNPACK", 1.0, 5)
    assert str(found["t"].delegation) == "XNNPACK, 5 of 5 nodes"
    assert str(found["o"].delegation) == "CPUExecutionProvider, all of the graph"


def pte(folder: Path, lowered: bool) -> Path:
    """A small network for ExecuTorch, with and without XNNPACK."""
    exir = pytest.importorskip("executorch.exir", reason="needs ExecuTorch: pip install executorch")
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    program = torch.export.export(net, (torch.zeros(1, 3, 8, 8),))
    parts = [XnnpackPartitioner()] if lowered else []
    path = folder / f"net{lowered}.pte"
    path.write_bytes(exir.to_edge_transform_and_lower(program, partitioner=parts).to_executorch().buffer)
    return path


def test_executorch_files_run_and_name_their_backend(tmp_path: Path) -> None:
    files = {"lowered": pte(tmp_path, True), "plain": pte(tmp_path, False)}
    found = benchmark(open_device("host"), files, **QUICK).measurements
    assert found["lowered"].runtime.startswith("executorch ")
    assert found["lowered"].delegation == Delegation("XnnpackBackend")
    assert found["plain"].delegation == Delegation("portable kernels", 1.0)


def test_a_missing_runtime_is_refused_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(worker.RUNTIMES, ".pte", (("no_such_runtime", "no-such-runtime"),))
    assert ".pte" not in worker.runtimes()
    path = tmp_path / "net.pte"
    path.touch()
    with pytest.raises(
        DeviceError, match=r"no runtime for '\.pte' files; .*for \.pte files: pip install no-such-runtime"
    ):
        benchmark(open_device("host"), {"a": path}, **QUICK)


def test_cores_are_kept_to(small_onnx: Path) -> None:
    import psutil

    host = open_device("host")
    with host.session({"a": small_onnx}, threads=1, timeout_s=60, core_mask=0b1):
        (child,) = (one for one in psutil.Process().children() if any("worker.py" in part for part in one.cmdline()))
        assert child.cpu_affinity() == [0]
    with pytest.raises(DeviceError, match="names core 4000, which is not there"):
        benchmark(host, {"a": small_onnx}, core_mask=1 << 4000, **QUICK)
    assert len(os.sched_getaffinity(0)) == len(psutil.Process().cpu_affinity() or [])  # ours are as they were


def ask(python: str, *requests: dict[str, Any], options: tuple[str, ...] = ("-I",)) -> list[dict[str, Any]]:
    done = subprocess.run(
        [python, *options, str(Path(worker.__file__))],
        input="\n".join(json.dumps(one) for one in requests),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_describes_the_machine_and_its_state() -> None:
    about, state = ask(sys.executable, {"do": "describe"}, {"do": "state"})
    assert about["cores"] == state["cores"] == len(os.sched_getaffinity(0))
    assert about["soc"]
    assert about["title"]
    assert about["runtimes"][".onnx"].startswith("onnxruntime ")
    assert state["busy"] is None or 0 <= state["busy"] <= 1
    assert set(state) <= {
        "cores", "busy", "load_1m", "governor", "temperature_c", "temperature_limit_c", "throttled"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["python3.7", "python3.8", "python3.9", "python3.13"])
def test_it_runs_on_the_pythons_of_boards(name: str, tmp_path: Path) -> None:
    python = shutil.which(name)
    if python is None or subprocess.run([python, "-V"], capture_output=True).returncode:
        pytest.skip(f"{name} is not installed here")
    net = write_layer("dense", 4, tmp_path / "net.onnx")
    about, state, loaded = ask(
        python,
        {"do": "describe"},
        {"do": "state"},
        {"do": "load", "path": str(net), "threads": 1},
        options=("-I", "-S"),
    )
    assert about["runtimes"] == {}
    assert state["cores"] >= 1
    assert loaded == {"error": ".onnx files need the Python package onnxruntime, which is not installed"}


def test_it_is_written_for_python_3_7() -> None:
    """The syntax of that version, whichever Python runs the tests."""
    import ast

    ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 7))


@pytest.mark.parametrize(
    ("flags", "throttled"), [("0", False), ("50000", False), ("50005", True), ("4", True), ("", None)]
)
def test_the_flags_of_a_raspberry_pi(monkeypatch: pytest.MonkeyPatch, flags: str, throttled: bool | None) -> None:
    """The lower bits say what is now (under-voltage, capped, throttled, hot), the upper ones what once was."""
    read = worker._text
    monkeypatch.setattr(worker, "_text", lambda path: flags if "get_throttled" in str(path) else read(path))
    assert worker.state()["throttled"] is throttled


@pytest.mark.parametrize(
    ("zones", "told"),
    [
        ([(70.0, 95.0), (52.0, 60.0)], (52.0, 60.0)),  # the hottest is far from its own limit
        ([(70.0, None), (52.0, 60.0)], (52.0, 60.0)),
        ([(70.0, 75.0), (None, 60.0)], (70.0, 75.0)),
        ([(40.0, None), (52.0, None), (None, None)], (52.0, None)),
        ([(-5.0, None)], (-5.0, None)),
        ([], (None, None)),
    ],
)
def test_each_thermal_zone_is_compared_with_its_own_limit(
    zones: list[tuple[float | None, float | None]], told: tuple[float | None, float | None], tmp_path: Path
) -> None:
    for number, (now, limit) in enumerate(zones):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text("" if now is None else f"{now * 1000:.0f}\n")
        if limit is not None:
            (zone / "trip_point_0_type").write_text("passive\n")
            (zone / "trip_point_0_temp").write_text(f"{limit * 1000:.0f}\n")
    assert worker._heat(tmp_path) == told


def test_the_limit_of_a_board_is_its_passive_trip_point(tmp_path: Path) -> None:
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    for number, (kind, limit) in enumerate(
        (("critical", 110000), ("passive", 80000), ("hot", 100000), ("passive", -1))
    ):
        (zone / f"trip_point_{number}_type").write_text(f"{kind}\n")
        (zone / f"trip_point_{number}_temp").write_text(f"{limit}\n")
    assert worker._limits(zone) == [80.0]
