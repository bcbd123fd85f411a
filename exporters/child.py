"""Runs converters in a process of their own: they are native code that can crash, hang or grow.

The child (`exporters.worker`) imports its libraries once (6 s for litert-torch), does one job after the other, and
stays until this process ends. One that dies or is stopped is replaced when the next job comes.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from exporters.errors import ExportError


class ChildError(ExportError):
    """The child failed, died or took too long; the message is the reason alone."""


def worker_command() -> list[str]:
    """The command that starts the child; -P keeps the current folder off its module path."""
    return [sys.executable, "-P", "-m", "exporters.worker"]


class Child:
    """One process, one job at a time, started when the first job comes; usable as a context manager.

    The child's standard input is a pipe: it closes when this process dies, even by SIGKILL, and the child stops too.
    Signals for the group of this process, such as Ctrl-C, do not reach the child.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; the next job starts another."""
        if self._process is not None:
            self._process.kill()
            with self._process:  # closes the pipes and waits
                self._process = None

    def call(self, function: str, *, log: Path, timeout_s: float = 900.0, **arguments: Any) -> Any:
        """The result of `function` ("package.module:name"), called in the child with `arguments` (JSON values).

        What the function and its libraries print is appended to the file `log`. Raises ChildError.
        """
        with self._lock:
            try:
                if self._process is not None and self._process.poll() is not None:
                    self.close()  # it died while it had nothing to do
                if self._process is None:
                    self._process = _start(log)
                job = {"function": function, "arguments": arguments, "log": os.fspath(log)}
                reply = _exchange(self._process, job, timeout_s)
            except BaseException:  # an interrupted job must not answer the next one
                self.close()
                raise
            if reply is None:
                status = self._process.wait()
                self.close()
                raise ChildError(_death(status, log))
        if "reason" in reply:
            raise ChildError(str(reply["reason"]))
        return reply["result"]


def _start(log: Path) -> subprocess.Popen[bytes]:
    home = str(Path(__file__).resolve().parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with log.open("ab") as noise:
        # A session of its own: Ctrl-C reaches this process alone, which ends the child where a job is interrupted.
        return subprocess.Popen(
            worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=environment,
            start_new_session=True,
        )


def _exchange(process: subprocess.Popen[bytes], job: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
    """Send a job and wait for its reply; None where the child died. Raises ChildError after `timeout_s` seconds."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + timeout_s
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    received = b""
    while not received.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise ChildError(f"the converter did not finish within {timeout_s:g} s and was stopped")
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            return None
        received += chunk
    reply: dict[str, Any] = json.loads(received)
    return reply


def _death(status: int, log: Path) -> str:
    if status < 0:
        return f"the converter was killed by {signal.Signals(-status).name}"
    lines = log.read_text(encoding="utf-8", errors="backslashreplace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"the converter ended with status {status}: {said}"


_shared = Child()
atexit.register(_shared.close)


def shared_child() -> Child:
    """The child of this process."""
    return _shared
