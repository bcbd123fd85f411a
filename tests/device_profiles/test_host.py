"""The real host: real files in real worker processes, and every way in which these can fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conformance import RunningDeviceConformance

from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from device_profiles.devices.host import HostDevice
from device_profiles.errors import DeviceError
from device_profiles.runners import worker
from device_profiles.runners.client import WorkerClient

QUICK = {"rounds": 2, "min_runs": 3, "min_seconds": 0.01}


@pytest.fixture
def host() -> Iterator[HostDevice]:
    """The host, checked to leave no process behind."""
    device = open_device("host")
    assert isinstance(device, HostDevice)
    yield device
    assert children() == []


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if any("worker.py" in part for part in one.cmdline())]


class TestConformance(RunningDeviceConformance):
    @pytest.fixture
    def device(self, host: HostDevice) -> HostDevice:
        return host


def test_the_host_describes_itself_and_tells_its_state(host: HostDevice) -> None:
    info, state = host.describe(), host.state()
    assert info.name == "host"
    assert info.cores == state.cores <= (os.cpu_count() or 1)
    assert info.runtimes[".onnx"].startswith("onnxruntime ")
    assert state.busy is not None
    assert state.load_1m is not None


def test_two_formats_are_measured_together(host: HostDevice, small_onnx: Path, small_tflite: Path) -> None:
    report = benchmark(host, {"onnx": small_onnx, "tflite": small_tflite}, **QUICK)  # type: ignore[arg-type]
    assert report.measurements["onnx"].runtime.startswith("onnxruntime ")
    assert report.measurements["tflite"].runtime.startswith("ai-edge-litert ")
    for one in report.measurements.values():
        assert one.peak_memory_mb is not None
        assert one.peak_memory_mb > 1


def test_a_relative_path(host: HostDevice, small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_onnx.parent)
    benchmark(host, {"a": Path(small_onnx.name)}, **QUICK)  # type: ignore[arg-type]


def test_a_file_cut_short_is_one_clear_sentence(host: HostDevice, tmp_path: Path, small_tflite: Path) -> None:
    path = tmp_path / "short.tflite"
    path.write_bytes(small_tflite.read_bytes()[:1000])
    with pytest.raises(DeviceError, match=r"short.tflite: "):
        benchmark(host, {"bad": path}, **QUICK)  # type: ignore[arg-type]


def test_a_worker_killed_in_the_middle_of_a_round(host: HostDevice, small_onnx: Path) -> None:
    def kill() -> None:
        while not children():
            time.sleep(0.01)
        time.sleep(1.5)
        children()[0].send_signal(signal.SIGSEGV)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DeviceError, match=r"small.*\.onnx: the worker process that ran it was ended by SIGSEGV"):
        benchmark(host, {"a": small_onnx}, min_seconds=30)
    killer.join()


def test_a_worker_killed_between_rounds(host: HostDevice, small_onnx: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 1:
            process = children()[0]
            process.kill()
            while process.status() != psutil.STATUS_ZOMBIE:  # left for the client to find
                time.sleep(0.01)

    with pytest.raises(DeviceError, match="was ended by SIGKILL"):
        benchmark(host, {"a": small_onnx}, **QUICK, progress=kill)  # type: ignore[arg-type]


def test_a_worker_that_hangs_is_ended_after_the_time_limit(host: HostDevice, small_onnx: Path) -> None:
    def stop(done: int, total: int) -> None:
        children()[0].suspend()

    with pytest.raises(DeviceError, match=r"no answer within 3.\d* s, so the run counts as hanging"):
        benchmark(host, {"a": small_onnx}, **QUICK, progress=stop, timeout_s=3)  # type: ignore[arg-type]


def test_a_worker_that_hangs_while_loading(host: HostDevice, small_onnx: Path) -> None:
    """A pipe that nobody writes to: the runtime waits for it for ever."""
    pipe = small_onnx.with_name("pipe.onnx")
    os.mkfifo(pipe)
    with (
        pytest.raises(DeviceError, match=r"pipe.onnx: no answer within 2 s"),
        host.session({"pipe": pipe}, threads=1, timeout_s=2),
    ):
        pass


def test_an_interrupted_measurement_leaves_no_worker(host: HostDevice, small_onnx: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(host, {"a": small_onnx}, **QUICK, progress=interrupt)  # type: ignore[arg-type]


def test_clean_up_ends_the_processes_of_an_open_session(host: HostDevice, small_onnx: Path) -> None:
    with host.session({"a": small_onnx}, threads=1, timeout_s=60):
        assert len(children()) == 1
        host.clean_up()
        assert children() == []


def test_workers_end_when_their_caller_is_killed(small_onnx: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from device_profiles.benchmark import benchmark; "
        "from device_profiles.devices import open_device; "
        "benchmark(open_device('host'), {'a': Path(sys.argv[1])}, rounds=1000, min_seconds=0.1, "
        "progress=lambda done, total: print(done, flush=True))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(small_onnx)], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    caller.stdout.readline()  # the first round is done
    workers = psutil.Process(caller.pid).children()
    assert len(workers) == 1
    caller.kill()
    caller.wait()
    caller.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def test_a_worker_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"net.onnx: the worker cannot be started: .*No such file"):
        WorkerClient([str(tmp_path / "no python")], "net.onnx")


def test_a_worker_that_fails_at_once_is_quoted() -> None:
    client = WorkerClient([sys.executable, "-c", "raise SystemExit('no numpy here')"], "net.onnx")
    with pytest.raises(DeviceError, match=r"net.onnx: .* ended with exit code 1 after saying 'no numpy here'"):
        client.ask({"do": "runtimes"}, timeout_s=30)


def test_the_worker_is_one_file_that_runs_alone(tmp_path: Path, small_onnx: Path) -> None:
    """Copied away and started without this package in sight; what a runtime prints must not mix with the answers."""
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    copy = alone / "worker.py"
    copy.write_text(Path(worker.__file__).read_text())
    requests = [
        {"do": "describe"},
        {"do": "round", "min_runs": 1, "min_seconds": 0},
        {"do": "dance"},
        {"do": "load", "path": "weights.pth", "threads": 1},
        {"do": "load", "path": str(small_onnx), "threads": 1},
        {"do": "round", "min_runs": 5, "min_seconds": 0},
    ]
    done = subprocess.run(
        [sys.executable, "-I", str(copy)],
        input="\n".join(json.dumps(one) for one in requests),
        cwd=alone,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    versions, early, unknown, suffix, loaded, timed = (json.loads(line) for line in done.stdout.splitlines())
    assert versions["runtimes"][".onnx"] == loaded["runtime"]
    assert early == {"error": "no file is loaded yet"}
    assert unknown == {"error": "unknown request 'dance'"}
    assert suffix == {"error": "only .onnx, .tflite, .pte files can be run"}
    assert len(timed["times_us"]) == 5
    assert min(timed["times_us"]) > 0


def test_the_worker_needs_neither_numpy_nor_a_runtime_until_a_file_is_loaded() -> None:
    source = Path(worker.__file__).read_text()
    code = "import sys; import runpy; runpy.run_path(sys.argv[1]); print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, worker.__file__], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
    assert "device_profiles" not in source
