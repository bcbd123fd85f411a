"""Keeps the libraries' chatter off the screen and in a log file."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_one_at_a_time = threading.RLock()
_FAMILIES = ("torch", "onnxscript", "onnx_ir", "onnx", "onnxsim")


class _Diverted:
    """A stream that sends what one thread writes to `sink` and leaves other threads (a progress bar) alone."""

    def __init__(self, stream: Any, sink: io.StringIO) -> None:
        self._stream, self._sink, self._owner = stream, sink, threading.get_ident()

    def write(self, text: str) -> int:
        target = self._sink if threading.get_ident() == self._owner else self._stream
        return int(target.write(text))

    def close(self) -> None:
        """The screen is not ours to close."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _log_handlers() -> list[logging.StreamHandler[Any]]:
    """The libraries' handlers that write to the screen; they keep the stream they were made with."""
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    handlers = {h for logger in loggers if logger.name.split(".")[0] in _FAMILIES for h in logger.handlers}
    screen = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and any(h.stream is s for s in screen)]


@contextmanager
def chatter_to(log: Path, *, failures_only: bool = False) -> Iterator[None]:
    """Send this thread's prints, warnings and library log lines to the file `log`, with the traceback of a failure.

    The file is written when the block ends, and removed where there was nothing to say (or, with `failures_only`,
    nothing went wrong). One block at a time: the streams and the warning filters belong to the whole process.
    """
    with _one_at_a_time:
        yield from _chatter_to(log, failures_only)


def _chatter_to(log: Path, failures_only: bool) -> Iterator[None]:
    sink = io.StringIO()
    stdout, stderr = sys.stdout, sys.stderr
    handlers = [(handler, handler.stream) for handler in _log_handlers()]
    sys.stdout, sys.stderr = _Diverted(stdout, sink), _Diverted(stderr, sink)
    for handler, _ in handlers:
        handler.setStream(sys.stderr)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            finally:
                for warning in caught:
                    where = (warning.category, warning.filename, warning.lineno)
                    sink.write(warnings.formatwarning(warning.message, *where))
    except BaseException:
        sink.write(traceback.format_exc())
        try:
            write_log(log, sink.getvalue())
        except OSError as error:  # the failure itself is what the user must hear of
            stderr.write(f"the log {os.fspath(log)!r} could not be written: {error.strerror}\n")
        raise
    else:
        write_log(log, "" if failures_only else sink.getvalue())
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        for handler, stream in handlers:
            handler.setStream(stream)


def write_log(log: Path, text: str) -> None:
    """Write the log, or remove an old one where there is nothing to say."""
    if text:
        log.write_text(text, encoding="utf-8", errors="backslashreplace")
    else:
        log.unlink(missing_ok=True)


_IDLE_TALK = re.compile(rb"INFO: |\[cpuinfo_utils\.cpp|W\d{4} .*register_constant\(\) on Enum")


@contextmanager
def without_info_lines() -> Iterator[None]:
    """Drop what native code tells of itself on standard error during the block; let all other lines through.

    The file descriptor is shared by all threads, so keep the block short.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as capture:
        os.dup2(capture.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            capture.seek(0)
            for line in capture:
                if not _IDLE_TALK.match(line):
                    os.write(2, line)
