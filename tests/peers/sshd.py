"""A board that is real software: an OpenSSH server of our own on the loopback, with its own keys and folders."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
_SERVER = """
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
AuthorizedKeysFile {home}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv XDG_CACHE_HOME={home}/cache
MaxStartups 100
LogLevel ERROR
"""
_CLIENT = """
Host *
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {home}/login_key
  IdentitiesOnly yes
  UserKnownHostsFile {home}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


@dataclass(frozen=True)
class Board:
    """A running server. home: its folder, with `cache` where devices may write. python: what ?python= names."""

    home: Path
    port: int
    server: subprocess.Popen[bytes]
    python: str = sys.executable
    folder: str | None = None

    @property
    def address(self) -> str:
        options = {"python": self.python, "config": str(self.home / "ssh_config")}
        if self.folder:
            options["folder"] = self.folder
        return "ssh://board?" + "&".join(f"{key}={quote(value, safe='')}" for key, value in options.items())

    def with_python(self, lines: str, name: str = "python") -> Board:
        """The same board with a shell script for its Python."""
        script = self.home / name
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        return replace(self, python=str(script))

    def workers(self) -> list[psutil.Process]:
        """The processes of worker.py that logins hold."""
        found = []
        for one in psutil.Process(self.server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = one.cmdline()
                if any(word.endswith("worker.py") for word in words) and words[0] not in ("sh", "bash", "/bin/sh"):
                    found.append(one)
        return found

    def wait_for_worker(self) -> psutil.Process:
        until = time.monotonic() + 30
        while not (found := self.workers()):
            assert time.monotonic() < until, "no worker came up"
            time.sleep(0.02)
        return found[0]

    def drop(self) -> None:
        """Cut every open link, as a network that fails does; the server itself stays."""
        logins = psutil.Process(self.server.pid).children()
        for one in logins:
            for process in [*one.children(), one]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name().startswith("sshd"):
                        process.kill()

    def leftovers(self) -> list[str]:
        """What devices left in the folder that they may write."""
        return sorted(str(one.relative_to(self.home)) for one in (self.home / "cache").rglob("*"))


def missing(reason: str) -> None:
    """A peer that is not there: a skip, or a failure where peers are required."""
    (pytest.fail if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS") else pytest.skip)(reason)


@contextlib.contextmanager
def running(home: Path) -> Iterator[Board]:
    """A server whose files are in `home`."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        missing("needs the programs ssh and sshd: apt-get install openssh-client openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks up its unprivileged half
    for name in ("host_key", "login_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    shutil.copy(home / "login_key.pub", home / "authorized_keys")
    (home / "cache").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host_key = (home / "host_key.pub").read_text().split(" ")[:2]
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (home / "sshd_config").write_text(_SERVER.format(port=port, home=home))
    (home / "ssh_config").write_text(_CLIENT.format(port=port, home=home, user=getpass.getuser()))
    log = (home / "log").open("wb")
    server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(home / "sshd_config")], stderr=log)
    try:
        _wait_until_it_answers(port, server, home / "log")
        yield Board(home, port, server)
    finally:
        for process in psutil.Process(server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.terminate()
        server.wait()
        log.close()


def _wait_until_it_answers(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if server.poll() is not None or time.monotonic() > until:
            missing(f"sshd does not start here: {log.read_text().strip()}")
        time.sleep(0.05)
