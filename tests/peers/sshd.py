"""A board that is real software: an OpenSSH server of our own on the loopback, with its own keys and folders."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
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


class Server:
    """An sshd that can be stopped and started again, with the same port and keys. home: where its files are."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.start()

    def start(self) -> None:
        with (self.home / "log").open("wb") as log:
            self.process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(self.home / "sshd_config")], stderr=log)
        _wait_until_it_answers(self.port, self.process, self.home / "log")

    def drop(self) -> None:
        """Cut every open link, as a network that fails does; the server itself stays."""
        logins = psutil.Process(self.process.pid).children()
        for one in logins:
            for process in [*one.children(), one]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name().startswith("sshd"):
                        process.kill()

    def stop(self) -> None:
        """Cut every link and answer no more; what runs on the board is not touched."""
        self.process.send_signal(signal.SIGSTOP)  # or a client that tries again is let in meanwhile
        self.drop()
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End it with everything that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.terminate()
        self.process.wait()


@dataclass(frozen=True)
class Board:
    """A running server. home: its folder, with `cache` where devices may write. python: what ?python= names."""

    home: Path
    server: Server
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

    @property
    def port(self) -> int:
        return self.server.port

    def with_packages(self, *names: str) -> Board:
        """The same board with a Python that has nothing installed but these packages."""
        site = self.home / "site"
        site.mkdir()
        for installed in Path(sysconfig.get_path("purelib")).iterdir():
            if re.split(r"-\d|\.libs", installed.name)[0] in names:
                (site / installed.name).symlink_to(installed)
        return self.with_python(f'PYTHONPATH={shlex.quote(str(site))} exec {sys.executable} -S "$@"')

    def workers(self) -> list[psutil.Process]:
        """The processes of worker.py on the board, whether their login is still there or not."""
        found = []
        for one in psutil.process_iter(["cmdline"]):
            words = one.info["cmdline"] or [""]
            pushed = any(word.startswith(str(self.home)) and word.endswith("worker.py") for word in words)
            if pushed and words[0] not in ("sh", "bash", "/bin/sh"):
                found.append(one)
        return found

    def wait_for_worker(self, seconds: float = 30) -> psutil.Process:
        until = time.monotonic() + seconds
        while not (found := self.workers()):
            assert time.monotonic() < until, "no worker came up"
            time.sleep(0.02)
        return found[0]

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
    server = Server(home, port)
    try:
        yield Board(home, server)
    finally:
        server.end()


def _wait_until_it_answers(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if server.poll() is not None or time.monotonic() > until:
            missing(f"sshd does not start here: {log.read_text().strip()}")
        time.sleep(0.05)
