"""Whether LiteRT for 64-bit ARM agrees, which phones run: other kernels than this machine's, run here by qemu.

Used where `tools/test_phone.py fetch` and `tools/build_bundle.py` have put qemu and the runner into the cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from exporters.old import OtherRuntime, compare
from exporters.runtimes import Array, Runtime, open_runtime

NAME = "litert on arm64"
_LOADER = "ld-linux-aarch64.so.1"
_LIBRARY = "libLiteRt.so"
_HOW_TO_GET = "python tools/test_phone.py fetch and python tools/build_bundle.py"
_GREETING: dict[str, str | int] = {"do": "answer"}  # refused by a runner that works, whatever the file


def programs() -> tuple[Path, Path] | None:
    """qemu and the folder of the runner for ARM; None where they are not installed."""
    cache = Path(os.environ.get("MOBILEPRUNE_CACHE") or Path.home() / ".cache" / "mobileprune")
    bundle = cache / "bundles" / "arm64"
    qemu = next(iter(sorted(cache.glob("debian/qemu-*/usr/bin/qemu-aarch64"))), None)
    return (qemu, bundle) if qemu is not None and (bundle / "runner").is_file() else None


def check_arm64(path: Path, images: Array, precision: str = "float32", timeout_s: float = 300.0) -> OtherRuntime:
    """Run a .tflite file on normalised images (N, C, H, W) as an ARM program and in our runtime, and compare.

    Raises ExportError where our own runtime cannot run the file.
    """
    found = programs()
    if found is None:
        return OtherRuntime(NAME, None, reason=f"not installed here; run: {_HOW_TO_GET}")
    ours = open_runtime(path)
    if ours.taken.dtype == "int16":
        return OtherRuntime(NAME, None, reason="not compared: its runner feeds no 16-bit integers")
    wanted = ours(images)
    try:
        with tempfile.TemporaryDirectory(prefix="mobileprune-") as name:
            got = _outputs(*found, path, ours, images, Path(name), timeout_s)
    except subprocess.TimeoutExpired:
        return OtherRuntime(NAME, None, reason=f"not compared: under qemu it took more than {timeout_s:g} s")
    except (OSError, ValueError) as error:  # the last of answers and results that cannot be read
        reason = f"not compared: {found[0]} or the runner does not work: {error}; run: {_HOW_TO_GET}"
        return OtherRuntime(NAME, None, reason=reason)
    if isinstance(got, str):
        return OtherRuntime(NAME, False, reason=f"{NAME} cannot run it: {got}")
    return compare(NAME, got, wanted, precision)


def _outputs(
    qemu: Path, bundle: Path, path: Path, ours: Runtime, images: Array, folder: Path, timeout_s: float
) -> Array | str:
    """Logits (N, classes) of images (N, C, H, W), by way of files in `folder`; else why the runner cannot run the file.

    Raises OSError, ValueError and TimeoutExpired where qemu or the runner itself does not work.
    """
    shutil.copyfile(path, folder / "model.tflite")  # the runner reads plain names only
    requests: list[dict[str, str | int]] = [
        _GREETING,
        {"do": "load", "path": str(folder / "model.tflite"), "threads": 1},
    ]
    for index, image in enumerate(np.ascontiguousarray(images.transpose(0, 2, 3, 1), dtype=np.float32)):
        (folder / f"{index}.in").write_bytes(ours.taken.from_real(image).tobytes())
        requests.append({"do": "run", "input": str(folder / f"{index}.in"), "output": str(folder / f"{index}.out")})
    if reason := _asked(qemu, bundle, requests, timeout_s):
        return reason
    raw = [np.fromfile(folder / f"{index}.out", ours.given.dtype) for index in range(len(images))]
    return ours.given.to_real(np.stack(raw))


def _asked(qemu: Path, bundle: Path, requests: list[dict[str, str | int]], timeout_s: float) -> str | None:
    """Send the requests to the runner (see device_profiles/runners/native/runner.c); why one failed, or None.

    The first is `_GREETING`. Raises OSError, ValueError and TimeoutExpired where qemu or the runner does not work.
    """
    loader = bundle / _LOADER
    if loader.is_file():
        loader.chmod(0o755)  # qemu runs only what is marked as a program; bundles of old leave it to the phone
    command: list[str | Path] = [qemu, loader, "--library-path", bundle, bundle / "runner"]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, errors="backslashreplace", timeout=timeout_s
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last_words = said[-1] if said else f"it ended with status {done.returncode}"
    if not answers or not all(isinstance(answer, dict) for answer in answers):
        raise OSError(last_words)  # not even the greeting was answered
    errors = [str(answer["error"]) for answer in answers[1:] if "error" in answer]
    if not errors and len(answers) < len(requests):
        errors = [last_words]
    if errors and _LIBRARY in errors[0]:  # the runtime cannot be loaded, whatever the file
        raise OSError(errors[0])
    return errors[0] if errors else None
