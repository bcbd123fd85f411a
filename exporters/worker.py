"""The child process of `exporters.child`: one JSON job per line on standard input, one JSON reply per line back.

python -m exporters.worker
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from importlib import import_module
from typing import Any

from exporters.errors import ExportError


def _jobs() -> queue.SimpleQueue[str]:
    """Jobs as they arrive; the end of standard input is the parent's end, and then this process ends at once."""
    arrived: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            arrived.put(line)
        os._exit(3)

    threading.Thread(target=read, daemon=True).start()
    return arrived


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job, its noise in its log: {"result": ...} or {"reason": one line}."""
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    try:
        module, name = job["function"].split(":")
        return {"result": getattr(import_module(module), name)(**job["arguments"])}
    except ExportError as error:
        return {"reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"reason": lines[0].rstrip(".") if lines else type(error).__name__}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the libraries' prints must not look like replies
    arrived = _jobs()
    while True:
        reply = run(json.loads(arrived.get()))
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
