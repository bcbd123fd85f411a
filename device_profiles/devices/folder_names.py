"""Names of our folders on devices, such as 5c0e13af-4711-9d0b2c66: machine, process and a random number.

They tell whose a folder is, so that it can be removed once its program has ended.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
from pathlib import Path

import psutil

_NAME = re.compile(r"([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}")


def new() -> str:
    """A name that no other folder has, for one of this process."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_orphan(name: str) -> bool:
    """Whether it is a folder of a process of this machine that has ended; of other machines nothing is known."""
    found = _NAME.fullmatch(name)
    return found is not None and found[1] == _machine() and not psutil.pid_exists(int(found[2]))


@functools.cache
def _machine() -> str:
    """Where and since when a process number means the process that it means here: 8 hexadecimal digits.

    A machine that was started anew and a container count the processes from the beginning.
    """
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]
