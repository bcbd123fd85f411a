"""Several processes that train one network together: begun, listened to, and ended together.

Each is a new interpreter (CUDA cannot be forked) with the environment by which accelerate connects them, and a pipe on
which it gets its order and tells what happens. None outlives the others, or the process that began them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from mobileprune.errors import MobilepruneError

_HOST = "127.0.0.1"
_GRACE_S = 0.3  # until the end of a process that was killed can be seen; the others may fail before


@dataclass
class _Member:
    process: subprocess.Popen[bytes]
    link: Connection


class Team:
    """``count`` processes of ``python -m module``, each given ``order``; what they print goes to the file ``log``."""

    def __init__(self, module: str, count: int, order: Any, log: Path) -> None:
        self.log = log
        port = _free_port()
        self.members: list[_Member] = []
        with log.open("wb") as output:
            for rank in range(count):
                ours, theirs = Pipe()
                process = subprocess.Popen(
                    [sys.executable, "-m", module, str(theirs.fileno())],
                    env=_environment(rank, count, port),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for this process, which then ends them
                )
                theirs.close()
                self.members.append(_Member(process, ours))
        for member in self.members:
            with suppress(OSError):  # one that has ended already is found by ``events``
                member.link.send(order)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for member in self.members:
            member.process.kill()
            member.process.wait()
            member.link.close()

    def events(self) -> Iterator[Any]:
        """What the processes send, until all have ended. Raises MobilepruneError where one ends before its time."""
        left = {member.link: member for member in self.members}
        while left:
            for link in wait(list(left)):
                assert isinstance(link, Connection)
                try:
                    event = link.recv()
                except (EOFError, ConnectionError):
                    if left.pop(link).process.wait() != 0:
                        raise self.lost("ended") from None
                else:
                    yield event

    def lost(self, how: str) -> MobilepruneError:
        """One of the processes failed, as ``how`` says: perhaps only because another was killed."""
        time.sleep(_GRACE_S)
        codes = [member.process.poll() or 0 for member in self.members]
        if min(codes) < 0:
            how = f"was ended by {signal.Signals(-min(codes)).name}"
        return MobilepruneError(
            f"one of {len(codes)} processes that trained together {how} (see {self.log}); finished epochs are kept: "
            "give the same command again"
        )


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """As torchrun sets it; packages are found where this process finds them."""
    threads = max(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // count, 1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    place = {"MASTER_ADDR": _HOST, "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    path = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return {**os.environ, **{name: str(value) for name, value in (ranks | place).items()}, **path}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def ordered() -> tuple[Any, Connection]:
    """In one of the processes: its order, and the pipe to tell on. It ends when the one that began it does."""
    link = Connection(int(sys.argv[1]))
    order = link.recv()

    def watch() -> None:
        try:
            link.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return order, link
