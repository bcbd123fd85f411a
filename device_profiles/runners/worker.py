"""Runs one model file and times it: a program of one file, for this machine or any board with Python and a runtime.

    python worker.py            # then one JSON request per line on stdin, one JSON answer per line on stdout

Needs Python 3.7, numpy (1 or 2) and a runtime: onnxruntime for .onnx files, ai_edge_litert or tflite_runtime for
.tflite files, executorch for .pte files. Knows nothing of the package it comes from, so that it can be copied alone.
Requests and answers:

    {"do": "describe"}                                   {"runtimes": {".onnx": "onnxruntime 1.31.1"}, "cores": 4, ...}
    {"do": "state"}                                      {"busy": 0.02, "temperature_c": 51.5, ...}
    {"do": "load", "path": "net.onnx", "threads": 1}     {"init_ms": 8.1, "runtime": "onnxruntime 1.31.1", ...}
    {"do": "round", "min_runs": 8, "min_seconds": 0.25}  {"times_us": [812.3, ...], "peak_memory_mb": 71.2}

A time is the wall clock of one inference at batch 1 on constant random input; each round starts with one run that is
not timed. A request that fails is answered {"error": "one line"}. The program ends when stdin does.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

try:
    from importlib import metadata
except ImportError:  # Python 3.7
    metadata = None  # type: ignore[assignment]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report from here and keep a database

# File suffix -> the runtimes that run it, the preferred one first: (module, package that brings it).
RUNTIMES = {
    ".onnx": (("onnxruntime", "onnxruntime"),),
    ".tflite": (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime")),
    ".pte": (("executorch.runtime", "executorch"),),
}
_BUSY_SAMPLE_S = 0.25


class RefusedError(Exception):
    """The request cannot be answered; the message says why."""


def installed(suffix: str) -> tuple[str, str] | None:
    """(module, "package version") of the preferred runtime for a file suffix, or None; imports nothing heavy."""
    for module, package in RUNTIMES[suffix]:
        version = _version(module, package)
        if version is not None:
            return module, f"{package} {version}"
    return None


def _version(module: str, package: str) -> str | None:
    if metadata is None:  # without metadata only the package itself can tell
        try:
            return str(getattr(import_module(module.partition(".")[0]), "__version__", "of unknown version"))
        except ImportError:
            return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def runtimes() -> dict[str, str]:
    """File suffix -> "package version" for all that can be run here."""
    found = ((suffix, installed(suffix)) for suffix in RUNTIMES)
    return {suffix: runtime[1] for suffix, runtime in found if runtime is not None}


def random_input(shape: list[int], dtype: Any) -> Any:
    """A constant random array: standard normal where the type is floating, else over the whole range of the type."""
    import numpy as np

    dtype = np.dtype(dtype)
    generator = np.random.RandomState(0)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return generator.randint(limits.min, int(limits.max) + 1, size=shape, dtype=dtype)
    raise RefusedError(f"its input has the type {dtype}, and only numbers can be fed")


# What an opener gives: a call that runs the file once, milliseconds it took to load, and what runs the graph, as
# {"name": ..., "share": of the nodes, "nodes": their number}, or None where the runtime does not tell.
Opened = Any


def open_onnx(runtime: Any, path: str, threads: int) -> Opened:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that go on spinning between runs would slow the other files of an interleaved measurement.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # what fails is raised
    # int8 sums that do not saturate on x86-64 without VNNI: files are judged with the same setting.
    options.add_session_config_entry("session.x64quantprecision", "1")
    began, provider = time.perf_counter(), "CPUExecutionProvider"
    graph = provider
    try:
        session = runtime.InferenceSession(path, options, providers=[provider])
    except Exception:  # 1.31 fails with the setting where layers share an int8 zero point, and is told then
        graph += ", int8 sums saturate"
        options.add_session_config_entry("session.x64quantprecision", "0")
        began = time.perf_counter()
        session = runtime.InferenceSession(path, options, providers=[provider])
    init_ms = (time.perf_counter() - began) * 1e3
    binding = session.io_binding()
    for tensor in session.get_inputs():
        batch, *sizes = tensor.shape or [1]
        if not all(isinstance(size, int) for size in sizes):
            raise RefusedError(f"its input {tensor.name!r} has no fixed size: {tensor.shape}")
        shape = [batch if isinstance(batch, int) else 1, *sizes]
        name = tensor.type[len("tensor(") : -1]  # "tensor(float)"
        dtype = {"float": "float32", "double": "float64"}.get(name, name)
        binding.bind_cpu_input(tensor.name, random_input(shape, dtype))
    for tensor in session.get_outputs():
        binding.bind_output(tensor.name)
    return lambda: session.run_with_iobinding(binding), init_ms, {"name": graph, "share": 1.0}


def open_tflite(runtime: Any, path: str, threads: int) -> Opened:
    began = time.perf_counter()
    interpreter = runtime.Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    init_ms = (time.perf_counter() - began) * 1e3
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], random_input(list(tensor["shape"]), tensor["dtype"]))
    read = getattr(interpreter, "_get_ops_details", None)  # not public, but there since TensorFlow 2.4
    return interpreter.invoke, init_ms, delegated(read()) if read else None


def delegated(operators: list[Any]) -> dict[str, Any]:
    """How much of a TFLite graph the default delegate took, from the interpreter's list of operators.

    A delegate appends a node of its own for each part that it took, with that part's inputs and outputs. The nodes it
    replaced stay in the list: they are those between its outputs and its inputs.
    """
    own = [one for one in operators if one["op_name"] != "DELEGATE"]
    maker = {int(tensor): one for one in own for tensor in one["outputs"]}
    taken = set()
    for part in operators:
        if part["op_name"] != "DELEGATE":
            continue
        given = {int(tensor) for tensor in part["inputs"]}
        waiting = [int(tensor) for tensor in part["outputs"]]
        while waiting:
            tensor = waiting.pop()
            node = maker.get(tensor)
            if tensor in given or node is None or node["index"] in taken:
                continue
            taken.add(node["index"])
            waiting += [int(source) for source in node["inputs"]]
    if not own or not taken:
        return {"name": "built-in kernels", "share": 1.0, "nodes": len(own)}
    return {"name": "XNNPACK", "share": len(taken) / len(own), "nodes": len(own)}


def open_pte(runtime: Any, path: str, threads: int) -> Opened:
    torch = import_module("torch")  # its tensors are the runtime's inputs
    import_module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
    began = time.perf_counter()
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    if method is None:
        raise RefusedError("it has no method 'forward'")
    init_ms = (time.perf_counter() - began) * 1e3
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for place in range(method.metadata.num_inputs()):
        meta = method.metadata.input_tensor_meta(place)
        if meta.dtype() != _PTE_FLOAT:
            raise RefusedError("its inputs are not float32, and only such .pte files can be fed")
        inputs.append(torch.randn(*meta.sizes(), generator=generator))
    return lambda: method.execute(inputs), init_ms, backends(Path(path).read_bytes())


_PTE_FLOAT = 6  # executorch's ScalarType.Float


def backends(program: bytes) -> dict[str, Any] | None:
    """The backends that a .pte names; how many nodes they took is not in the file."""
    names = [name for name in (b"XnnpackBackend", b"CoreMLBackend", b"VulkanBackend", b"QnnBackend") if name in program]
    if not names:
        return {"name": "portable kernels", "share": 1.0}
    return {"name": " and ".join(name.decode() for name in names)}


OPENERS = {".onnx": open_onnx, ".tflite": open_tflite, ".pte": open_pte}


def peak_memory_mb() -> float | None:
    """The most resident memory this process has had, in 10^6 bytes, or None where the system does not tell.

    From VmHWM and not from getrusage: after fork and exec the latter still counts the peak of the parent process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else None


def describe() -> dict[str, Any]:
    """What this machine is; the board's own name comes from its device tree."""
    title = _text("/proc/device-tree/model").rstrip("\0") or _processor()
    soc = _text("/proc/device-tree/compatible").rstrip("\0").split("\0")[-1] or _processor()
    return {
        "title": title,
        "soc": soc,
        "cores": len(os.sched_getaffinity(0)),
        "os": f"{_distribution()}, {platform.system()} {platform.release()}",
        "abi": platform.machine(),
        "python": platform.python_version(),
        "runtimes": runtimes(),
    }


def _processor() -> str:
    lines = _text("/proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return names[-1] if names else platform.machine()


def _distribution() -> str:
    lines = [line for line in _text("/etc/os-release").splitlines() if line.startswith("PRETTY_NAME=")]
    return lines[0].partition("=")[2].strip('"') if lines else platform.system()


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def state() -> dict[str, Any]:
    """How this machine is doing; takes a quarter of a second, in which it watches what other programs do."""
    temperature, limit = _heat(Path("/sys/class/thermal"))
    flags = _text("/sys/devices/platform/soc/soc:firmware/get_throttled")  # of the Raspberry Pi
    return {
        "cores": len(os.sched_getaffinity(0)),
        "busy": _busy(),
        "load_1m": os.getloadavg()[0],
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "temperature_c": temperature,
        "temperature_limit_c": limit,
        "throttled": bool(int(flags, 16) & 0xF) if flags else None,
    }


def _heat(folder: Path) -> tuple[float | None, float | None]:
    """(temperature, limit) in degrees Celsius, of the zone nearest to its own limit, else of the hottest; None for what
    is not told."""
    read = ((_celsius(zone / "temp"), _limits(zone)) for zone in sorted(folder.glob("thermal_zone*")))
    zones = [(now, limits) for now, limits in read if now is not None]
    limited = [(now, min(limits)) for now, limits in zones if limits]
    if limited:
        return min(limited, key=lambda zone: zone[1] - zone[0])
    return max((now for now, _ in zones), default=None), None


def _limits(zone: Path) -> list[float]:
    """Where the system begins to slow the processor down, in degrees Celsius: the zone's passive trip points."""
    kinds = zone.glob("trip_point_*_type")
    trips = [Path(str(kind)[: -len("type")] + "temp") for kind in kinds if _text(kind) == "passive"]
    found = [_celsius(trip) for trip in trips]
    return [one for one in found if one is not None and one > 0]


def _celsius(path: Path) -> float | None:
    try:
        return int(_text(path)) / 1000
    except ValueError:
        return None


def _busy() -> float | None:
    """The share of the processors' time, 0 to 1, that was not idle just now."""
    before = _ticks()
    time.sleep(_BUSY_SAMPLE_S)
    after = _ticks()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return min(1.0, max(0.0, 1 - (after[0] - before[0]) / (after[1] - before[1])))


def _ticks() -> tuple[int, int] | None:
    """(idle, all) of /proc/stat's first line: user nice system idle iowait irq softirq steal ..."""
    fields = _text("/proc/stat").splitlines()[:1]
    if not fields:
        return None
    ticks = [int(one) for one in fields[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


class Worker:
    """Answers requests about one model file."""

    def __init__(self) -> None:
        self.run: Callable[[], Any] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        actions: Any = {"describe": describe, "state": state, "load": self.load, "round": self.time_round}
        action = request.pop("do", None)
        if action not in actions:
            raise RefusedError(f"unknown request {action!r}")
        return dict(actions[action](**request))

    def load(self, path: str, threads: int, core_mask: int | None = None) -> dict[str, Any]:
        """core_mask: the cores that may be used, bit 0 the first; None leaves it open."""
        suffix = Path(path).suffix.lower()
        if suffix not in RUNTIMES:
            raise RefusedError(f"only {', '.join(RUNTIMES)} files can be run")
        found = installed(suffix)
        if found is None:
            packages = " or ".join(package for _, package in RUNTIMES[suffix])
            raise RefusedError(f"{suffix} files need the Python package {packages}, which is not installed")
        keep_to(core_mask)
        module, runtime = found
        try:
            run, init_ms, delegation = OPENERS[suffix](import_module(module), path, threads)
            run()  # a file may load and yet not run: better to know before the first round
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"{runtime} cannot run it: {first_line(error)}{_hint(runtime)}") from error
        self.run = run
        gc.collect()
        gc.disable()  # a collection would be timed as part of a run
        return {"init_ms": init_ms, "runtime": runtime, "delegation": delegation}

    def time_round(self, min_runs: int, min_seconds: float) -> dict[str, Any]:
        if self.run is None:
            raise RefusedError("no file is loaded yet")
        run, clock = self.run, time.perf_counter
        run()
        times: list[float] = []
        end = clock() + min_seconds
        while len(times) < min_runs or clock() < end:
            began = clock()
            run()
            times.append(clock() - began)
        return {"times_us": [round(seconds * 1e6, 2) for seconds in times], "peak_memory_mb": peak_memory_mb()}


def keep_to(core_mask: int | None) -> None:
    """Use these cores only; the threads that a runtime starts later inherit it."""
    if core_mask is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise RefusedError("a core mask cannot be set on this system")
    wanted = {core for core in range(core_mask.bit_length()) if core_mask >> core & 1}
    missing = wanted - set(range(os.cpu_count() or 1))
    if missing:
        raise RefusedError(f"the core mask {core_mask:#x} names core {min(missing)}, which is not there")
    with suppress(OSError):
        os.sched_setaffinity(0, wanted)
    if os.sched_getaffinity(0) != wanted:
        raise RefusedError(f"the core mask {core_mask:#x} names cores that this program may not use")


def _hint(runtime: str) -> str:
    """What is known to go wrong with a runtime, as the end of a sentence."""
    numpy = sys.modules.get("numpy")
    if runtime.startswith("tflite-runtime") and numpy is not None and int(numpy.__version__.partition(".")[0]) >= 2:
        return " (tflite-runtime needs numpy 1: pip install 'numpy<2')"
    return ""


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    # Answers get a descriptor of their own, so that what a runtime prints to stdout cannot mix with them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except RefusedError as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {first_line(error)}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
