"""The near end of worker.py: a child process that is asked one JSON line at a time and may hang or die."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from device_profiles.devices.base import Delegation, Loaded, Round, Session
from device_profiles.errors import DeviceError
from device_profiles.runners import worker


class WorkerClient:
    """One running worker. `label` names it in errors; `command` starts it (a worker may well be behind ssh).

    Every failure is a DeviceError, after which the process is gone.
    """

    def __init__(self, command: Sequence[str], label: str, environment: Mapping[str, str] | None = None) -> None:
        self._label = label
        self._unread = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process); it has no name to clean up
        try:
            # A session of its own: Ctrl-C reaches the caller alone, who then ends its workers in order.
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise DeviceError(f"{label}: the worker cannot be started: {error}") from error

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The worker's answer; raises DeviceError when it refuses, dies, or takes longer than `timeout_s`."""
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended; what it left may say how
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
            line = self._read_line(time.monotonic() + timeout_s)
        except TimeoutError:
            self.close()
            raise DeviceError(
                f"{self._label}: no answer within {timeout_s:g} s, so the run counts as hanging and was ended; "
                "allow more time if the model is really that slow"
            ) from None
        if not line:
            raise DeviceError(f"{self._label}: {self._last_words()}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            self.close()
            raise DeviceError(f"{self._label}: the answer was cut short or is no JSON: {line[:80]!r}") from None
        if "error" in answer:
            raise DeviceError(f"{self._label}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process and wait until it is gone; harmless when it already is."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _read_line(self, deadline: float) -> bytes:
        """One line with its end, or nothing when the worker closed its own; raises TimeoutError at the deadline."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return b""
                self._unread += chunk
        line, end, self._unread = self._unread.partition(b"\n")
        return line + end

    def _last_words(self) -> str:
        """How the process ended, for a sentence, with the last line it left on stderr."""
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.close()
            return "the worker that ran it closed the connection without an answer"
        code = self._exit_code()
        try:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except ValueError:
            how = f"was ended by signal {-code}"
        said = self._said().splitlines()
        self.close()
        # Runtimes greet on stderr; only a line that was left by an error is worth repeating.
        words = f" after saying {said[-1]!r}" if said and code >= 0 else ""
        return f"the worker process that ran it {how}{words}: the runtime crashed on this file or ran out of memory"

    def _exit_code(self) -> int:
        """Of the process that ended; below 0 for a signal."""
        return self._process.returncode

    def _said(self) -> str:
        """What it wrote to stderr."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()


class WorkerSession(Session):
    """Files that were loaded by workers, one each."""

    def __init__(self, clients: Mapping[str, WorkerClient], timeout_s: float) -> None:
        self._clients = clients
        self._loaded: dict[str, Loaded] = {}
        self._timeout_s = timeout_s

    def load(self, name: str, path: str, *, threads: int, core_mask: int | None) -> None:
        """path: as the worker sees it."""
        request = {"do": "load", "path": path, "threads": threads, "core_mask": core_mask}
        answer = self._clients[name].ask(request, timeout_s=self._timeout_s)
        delegation = Delegation.of(answer["delegation"])
        self._loaded[name] = Loaded(answer["init_ms"], answer["runtime"], delegation)

    def loaded(self, name: str) -> Loaded:
        return self._loaded[name]

    def time_round(self, name: str, *, min_runs: int, min_seconds: float) -> Round:
        request = {"do": "round", "min_runs": min_runs, "min_seconds": min_seconds}
        answer = self._clients[name].ask(request, timeout_s=self._timeout_s + min_seconds)
        return Round.of([us / 1e3 for us in answer["times_us"]], answer["peak_memory_mb"])


def missing_runtimes(runtimes: Mapping[str, str]) -> tuple[str, ...]:
    """What to do for the file suffixes that a machine with Python cannot run yet, a sentence each."""
    missing = [suffix for suffix in worker.RUNTIMES if suffix not in runtimes]
    return tuple(f"{suffix} files: pip install {worker.RUNTIMES[suffix][0][1]}" for suffix in missing)
