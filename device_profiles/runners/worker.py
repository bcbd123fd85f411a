"""Runs one model file and times it: a program of one file, for this machine or any board with Python and a runtime.

    python worker.py            # then one JSON request per line on stdin, one JSON answer per line on stdout

Needs Python 3.8, numpy (1 or 2) and, for .onnx files, onnxruntime; for .tflite files, ai_edge_litert or tflite_runtime,
whichever is there. Knows nothing of the package it comes from, so that it can be copied alone. Requests and answers:

    {"do": "runtimes"}                                   {"runtimes": {".onnx": "onnxruntime 1.31.1"}}
    {"do": "load", "path": "net.onnx", "threads": 1}     {"init_ms": 8.1, "runtime": "onnxruntime 1.31.1"}
    {"do": "round", "min_runs": 8, "min_seconds": 0.25}  {"times_us": [812.3, ...], "peak_memory_mb": 71.2}

A time is the wall clock of one inference at batch 1 on constant random input; each round starts with one run that is
not timed. A request that fails is answered {"error": "one line"}. The program ends when stdin does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

# File suffix -> the runtimes that run it, the preferred one first: (module, package that brings it).
RUNTIMES = {
    ".onnx": (("onnxruntime", "onnxruntime"),),
    ".tflite": (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime")),
}


class RefusedError(Exception):
    """The request cannot be answered; the message says why."""


def installed(suffix: str) -> tuple[str, str] | None:
    """(module, "package version") of the preferred runtime for a file suffix, or None; imports nothing."""
    for module, package in RUNTIMES[suffix]:
        try:
            return module, f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
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


def open_onnx(runtime: Any, path: str, threads: int) -> tuple[Callable[[], Any], float]:
    """(a call that runs the file once, milliseconds it took to load)."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that go on spinning between runs would slow the other files of an interleaved measurement.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    began = time.perf_counter()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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
    return lambda: session.run_with_iobinding(binding), init_ms


def open_tflite(runtime: Any, path: str, threads: int) -> tuple[Callable[[], Any], float]:
    """(a call that runs the file once, milliseconds it took to load)."""
    began = time.perf_counter()
    interpreter = runtime.Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    init_ms = (time.perf_counter() - began) * 1e3
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], random_input(list(tensor["shape"]), tensor["dtype"]))
    return interpreter.invoke, init_ms


OPENERS = {".onnx": open_onnx, ".tflite": open_tflite}


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


class Worker:
    """Answers requests about one model file."""

    def __init__(self) -> None:
        self.run: Callable[[], Any] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        action = request.pop("do", None)
        if action == "runtimes":
            return {"runtimes": runtimes()}
        if action == "load":
            return self.load(**request)
        if action == "round":
            return self.time_round(**request)
        raise RefusedError(f"unknown request {action!r}")

    def load(self, path: str, threads: int) -> dict[str, Any]:
        suffix = Path(path).suffix.lower()
        if suffix not in RUNTIMES:
            raise RefusedError(f"only {' and '.join(RUNTIMES)} files can be run")
        found = installed(suffix)
        if found is None:
            packages = " or ".join(package for _, package in RUNTIMES[suffix])
            raise RefusedError(f"{suffix} files need the Python package {packages}, which is not installed")
        module, runtime = found
        try:
            run, init_ms = OPENERS[suffix](import_module(module), path, threads)
            run()  # a file may load and yet not run: better to know before the first round
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"{runtime} cannot run it: {first_line(error)}") from error
        self.run = run
        gc.collect()
        gc.disable()  # a collection would be timed as part of a run
        return {"init_ms": init_ms, "runtime": runtime}

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


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
