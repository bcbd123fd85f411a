"""Runs .tflite files with Google's `benchmark_model` where the user has it: it alone knows GPU and NNAPI.

It is a program for 64-bit ARM that is looked for in $MOBILEPRUNE_BENCHMARK_MODEL and then in the cache. What it is told
and what it answers is in benchmark_model.py.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from device_profiles.devices.base import Round
from device_profiles.devices.remote import Remote, Request, Runner, RunningFile
from device_profiles.errors import DeviceError
from device_profiles.runners import benchmark_model
from device_profiles.runners.bundle import cache

VARIABLE = "MOBILEPRUNE_BENCHMARK_MODEL"
HOW_TO_GET = (
    "for GPU and NNAPI get Google's benchmark_model for android_aarch64 and name it with --benchmark-binary "
    f"or ${VARIABLE}"
)
_AARCH64 = (2, 183)  # ELF class of 64 bits, machine


def find() -> Path | None:
    """The user's benchmark_model, if there is one; raises DeviceError for a file that is none for 64-bit ARM."""
    given = os.environ.get(VARIABLE)
    path = Path(given) if given else cache() / "benchmark_model" / "arm64" / "benchmark_model"
    if not given and not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise DeviceError(f"{path}: benchmark_model cannot be read: {error.strerror}") from error
    if head[:4] != b"\x7fELF" or (head[4], int.from_bytes(head[18:20], "little")) != _AARCH64:
        raise DeviceError(f"{path}: this is no program for 64-bit ARM; the phone needs the android_aarch64 build")
    return path


class GoogleRunner(Runner):
    def __init__(self, binary: Path) -> None:
        self._binary = binary

    def install(self, remote: Remote, folder: str) -> None:
        remote.push(self._binary, _place(folder), mode=0o755)

    def start(self, remote: Remote, folder: str, request: Request) -> RunningFile:
        return _GoogleFile(remote, _place(folder), request)


class _GoogleFile(RunningFile):
    """Each round is a call of the program: it loads the file anew, which is not timed."""

    def __init__(self, remote: Remote, binary: str, request: Request) -> None:
        self._remote, self._binary, self._request = remote, binary, request
        self.loaded = self._call(min_runs=1, min_seconds=0.0).loaded

    def time_round(self, *, min_runs: int, min_seconds: float) -> Round:
        return self._call(min_runs=min_runs, min_seconds=min_seconds).round

    def close(self) -> None:
        """Nothing runs between the calls."""

    def _call(self, *, min_runs: int, min_seconds: float) -> benchmark_model.Output:
        one = self._request
        command = benchmark_model.command(
            self._binary,
            one.remote_path,
            threads=one.threads,
            min_runs=min_runs,
            min_seconds=min_seconds,
            delegate=one.delegate,
            core_mask=one.core_mask,
        )
        limit = math.ceil(one.timeout_s + min_seconds)
        # The phone ends it by itself: it must not go on where the connection is lost.
        done = self._remote.run(["timeout", "-s", "KILL", str(limit), *command], timeout_s=limit + 10)
        try:
            if done.status in (124, 137):
                raise DeviceError(
                    f"no answer within {limit} s, so the run counts as hanging and was ended; allow more time if the "
                    "model is really that slow"
                )
            if done.status > 128 or done.status in (126, 127):
                raise DeviceError(f"benchmark_model cannot run it: {done.words} (exit status {done.status})")
            said = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
            return benchmark_model.parse(said, delegate=one.delegate)
        except DeviceError as error:
            raise DeviceError(f"{one.label}: {error}") from None


def _place(folder: str) -> str:
    return f"{folder}/benchmark_model"
