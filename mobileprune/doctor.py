"""What this machine has of what mobileprune can use; what a missing piece would enable, and how to get it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "warn", "missing", "broken"]

_GIB = 2**30
_ROOM = 2 * _GIB  # what a run on a small network and its caches can take
_SEARCH_S = 10.0  # how long a program may take to tell its version


@dataclass(frozen=True)
class Check:
    """One piece. required: mobileprune cannot work without it. enables: what it is good for. remedy: how to get it."""

    name: str
    state: State
    found: str
    enables: str
    remedy: str = ""
    required: bool = False

    @property
    def fatal(self) -> bool:
        return self.required and self.state != "ok"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(folder: Path | None = None) -> list[Check]:
    """Look at everything. folder: where runs would be written, by default the current one. Takes some seconds."""
    checks: list[Check] = [_python()]
    checks += _packages()
    checks += _formats()
    checks += _runtimes()
    checks += _programs()
    checks += [_gpu(), _machine(), _disk(folder or Path.cwd())]
    return checks


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    good = sys.version_info[:2] >= (3, 11)
    remedy = "" if good else "install Python 3.11 or newer and make a new environment with it"
    return Check("Python", "ok" if good else "broken", found, "everything", remedy, required=True)


def _packages() -> Iterator[Check]:
    yield _import("torch", "torch", "training and pruning", "pip install torch", required=True)
    yield _torchvision()
    yield _import("timm", "timm", "--model timm:NAME", "pip install timm", required=True)
    extra = "pip install 'mobileprune[ray]'"
    yield _import("ray", "ray", "--engine ray: probes on several machines", extra, only_find=True)


def _import(
    name: str, module: str, enables: str, remedy: str, *, required: bool = False, only_find: bool = False
) -> Check:
    """Whether a package is there and can be imported; ``only_find`` for those that are slow to import."""
    if util.find_spec(module) is None:
        return Check(name, "missing", "not installed", enables, remedy, required)
    try:
        if not only_find:
            __import__(module)
    except Exception as error:  # a broken package may raise anything
        reason = f"cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return Check(name, "broken", reason, enables, f"{remedy} --force-reinstall", required)
    return Check(name, "ok", _version(name), enables, required=required)


def _torchvision() -> Check:
    enables = "--model torchvision:NAME"
    try:
        from mobileprune._torchvision import import_torchvision

        import_torchvision()
    except Exception as error:  # the many ways in which a build does not fit its torch
        remedy = f"pip install --force-reinstall torchvision that was built for torch {_version('torch')}"
        return Check("torchvision", "broken", str(error).splitlines()[0], enables, remedy, required=True)
    return Check("torchvision", "ok", _version("torchvision"), enables, required=True)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "no version known"


def _formats() -> Iterator[Check]:
    import exporters

    for name in exporters.formats():
        missing = exporters.available(name)
        command = re.search(r"pip install [^;,]+", missing or "")
        remedy = command[0].rstrip("` .") if command else (missing or "")
        yield Check(
            f"{name} files",
            "missing" if missing else "ok",
            "cannot be written here" if missing else "can be written",
            f"exporting {name}",
            remedy,
            required=name == "onnx",
        )


def _runtimes() -> Iterator[Check]:
    pip = "pip install"
    yield _import("onnxruntime", "onnxruntime", "timing .onnx on this machine", f"{pip} onnxruntime", required=True)
    extra = f"{pip} 'mobileprune[tflite]'"
    yield _import("ai-edge-litert", "ai_edge_litert", "timing .tflite on this machine", extra, only_find=True)


def _programs() -> Iterator[Check]:
    yield _program("adb", ["version"], "phones: --device adb", "apt-get install adb, or Android's platform-tools")
    yield _program("ssh", ["-V"], "Linux boards: --device ssh", "apt-get install openssh-client")


def _program(name: str, ask: list[str], enables: str, remedy: str) -> Check:
    path = shutil.which(name)
    if path is None:
        return Check(name, "missing", "not on the PATH", enables, remedy)
    try:
        done = subprocess.run([path, *ask], capture_output=True, text=True, timeout=_SEARCH_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, "broken", f"{path} does not answer: {error}", enables, remedy)
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode or not lines:
        return Check(name, "broken", f"{path} ends with code {done.returncode}", enables, remedy)
    return Check(name, "ok", lines[0], enables)


def _gpu() -> Check:
    enables = "faster training (latency is always the device's own)"
    try:
        import torch

        if torch.cuda.is_available():
            names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
            return Check("GPU", "ok", names, enables)
        built = "this torch was built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
    except ImportError:
        built = "torch is not installed"
    return Check("GPU", "missing", built, enables, "not needed; with an NVIDIA card: pip install a CUDA build of torch")


def _machine() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    busy = _busy(psutil.cpu_percent)
    found = (
        f"{os.cpu_count()} cores, {memory.available / _GIB:.0f} of {memory.total / _GIB:.0f} GiB memory free, "
        f"{busy:.0f} % busy"
    )
    good = busy < 25
    remedy = "" if good else "close other programs before latencies of this machine are measured"
    return Check("machine", "ok" if good else "warn", found, "--device host", remedy)


def _busy(sample: Callable[..., float]) -> float:
    return sample(interval=0.5)


def _disk(folder: Path) -> Check:
    there = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    good = free >= _ROOM and os.access(there, os.W_OK)
    found = f"{free / _GIB:.0f} GiB free in {folder}" + ("" if os.access(there, os.W_OK) else ", not writable")
    remedy = "" if good else "free some space, or choose a folder elsewhere with --run"
    return Check("disk", "ok" if good else "warn", found, "run folders", remedy)
