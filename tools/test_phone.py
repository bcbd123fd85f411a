"""A phone to test with, made of real software: Debian's adbd for 64-bit ARM, run by qemu, spoken to by the real adb.

    python tools/test_phone.py fetch            # download what it is made of, into the cache
    python tools/test_phone.py exec CMD ...     # raise it, run a command beside it, take it down
    python tools/test_phone.py up               # raise it until Ctrl-C, and print how to reach it
    python tools/test_phone.py --as pixel-3a up # one that says it was a Pixel 3a, and not that it is emulated

The phone lives in namespaces of its own: its network has a loopback interface only, so that nothing outside can reach
the daemon, which asks nobody who they are; and with its first process everything in it ends. adb gets in through the
command in $MOBILEPRUNE_ADB. Needs Linux 6.7 or newer (binfmt_misc for each user namespace) and the programs adb,
unshare, nsenter, ip and apt; not root. How fast something runs on it says nothing about any phone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import debian_packages

_PHONE = ("adbd", "base-files", "dash", "coreutils", "findutils", "sed", "grep", "util-linux")
_QEMU = "usr/bin/qemu-aarch64"
_SERVER_PORT = 5137  # inside the phone's own network
_WAIT_S = 60.0
# Android's programs that are asked, as far as they are asked: each answers from a file that a test may rewrite.
_SCRIPTS = {
    "getprop": "exec cat /phone/properties",
    "dumpsys": 'exec cat "/phone/dumpsys/$1"',
    "settings": 'exec cat "/phone/settings/$2/$3"',
}
# What it may say of itself: the truth, or what a real phone says, to see that one being found and measured.
MODELS = {
    "test-phone": {
        "ro.product.manufacturer": "mobileprune",
        "ro.product.model": "Test phone",
        "ro.soc.model": "qemu",
        "ro.build.version.release": "16",
        "ro.product.cpu.abi": "arm64-v8a",
        "ro.product.cpu.abilist": "arm64-v8a",
        "ro.boot.qemu": "1",
    },
    "pixel-3a": {
        "ro.product.manufacturer": "Google",
        "ro.product.model": "Pixel 3a",
        "ro.soc.model": "SDM670",
        "ro.hardware": "sargo",
        "ro.build.version.release": "12",
        "ro.build.version.sdk": "32",
        "ro.product.cpu.abi": "arm64-v8a",
        "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a,armeabi",
    },
}
_FILES = {
    "phone/dumpsys/thermalservice": "IsStatusOverride: false\nThermalEventListeners:\nThermal Status: 0\n"
    "Cached temperatures:\n\tTemperature{mValue=31.5, mType=0, mName=CPU0, mStatus=0}\n",
    "phone/dumpsys/battery": "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n"
    "  level: 87\n  scale: 100\n  temperature: 281\n",
    "phone/settings/global/low_power": "0\n",
    "sys/devices/system/cpu/possible": "0-1\n",
    "sys/devices/system/cpu/present": "0-1\n",
    "sys/devices/system/cpu/online": "0-1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
}
# The first 20 bytes of a program for 64-bit ARM, and which of their bits count.
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# Runs as the first process inside the namespaces; ends, and everything with it, when its stdin does.
_INSIDE = r"""
set -e
ip link set lo up
mount -t tmpfs tmpfs "$PLACE"
mkdir "$PLACE/upper" "$PLACE/work" "$PLACE/root"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$PLACE/upper,workdir=$PLACE/work" "$PLACE/root"
cd "$PLACE/root"
mkdir -p proc dev/pts data/local/tmp
mount -t proc proc proc
for one in null zero full random urandom tty; do : > "dev/$one"; mount --bind "/dev/$one" "dev/$one"; done
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -sf pts/ptmx dev/ptmx
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' ":phone:M::$MAGIC:$MASK:$QEMU:F" > /proc/sys/fs/binfmt_misc/register
echo ready
exec cat
"""

# A phone that speaks adb's protocol (messages of six numbers: command, two arguments, length, checksum, magic) as far
# as its lock screen: it asks for a proof of who is there and accepts none; or it does not answer at all.
_CLOSED = r"""
import socket, struct, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    link, _ = listener.accept()
    while head := link.recv(24, socket.MSG_WAITALL):
        command, kind, _, length, _, _ = struct.unpack("<6I", head)
        link.recv(length, socket.MSG_WAITALL) if length else b""
        if sys.argv[2] == "unauthorized" and (command == 0x4E584E43 or (command == 0x48545541 and kind == 2)):
            token = b"x" * 20
            link.sendall(struct.pack("<6I", 0x48545541, 1, 0, 20, sum(token), 0x48545541 ^ 0xFFFFFFFF) + token)
"""


def properties(model: str) -> str:
    """What `getprop` answers on a phone that is one of `MODELS`."""
    return "".join(f"[{key}]: [{value}]\n" for key, value in MODELS[model].items())


class UnavailableError(Exception):
    """The phone cannot be raised here; the message says what is missing."""


class Phone:
    """A raised phone, to be used with `with raised(Phone) as phone`. adb: the command, as words, that reaches it."""

    def __init__(self, place: Path, model: str) -> None:
        self._place = place
        lower, qemu = fetch()
        environment = {
            **os.environ, "PLACE": str(place), "LOWER": f"{self._extras(place, model)}:{lower}",
            "QEMU": str(qemu), "MAGIC": _MAGIC, "MASK": _MASK,
        }  # fmt: skip
        spaces = ["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", _INSIDE],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if self._process.stdout.readline() != "ready\n":
            said = self._process.stderr.read().strip().splitlines()
            self.down()
            raise UnavailableError(
                f"the namespaces of the phone cannot be made: {said[-1] if said else 'no reason given'}"
            )
        self._first = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0])
        self._home = place.with_name("home")
        self._home.mkdir()
        self.adb = [
            "env", f"HOME={self._home}", f"ANDROID_ADB_SERVER_PORT={_SERVER_PORT}",
            "nsenter", "--target", str(self._first), "--user", "--net", "--preserve-credentials", "adb",
        ]  # fmt: skip
        self._daemons: dict[int, subprocess.Popen[Any]] = {}
        self._serve()

    @property
    def root(self) -> Path:
        """The phone's file system, seen from outside."""
        return Path(f"/proc/{self._first}/root{self._place}/root")

    def enter(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a program of this machine in all of the phone's namespaces."""
        inside = ["nsenter", "--target", str(self._first), "--user", "--net", "--mount", "--pid"]
        return subprocess.Popen([*inside, "--preserve-credentials", *command], **options)

    def mount(self, folder: str, *, megabytes: int) -> None:
        """A small file system of its own at a folder of the phone; `unmount` takes it away."""
        where = f"{self._place}/root{folder}"
        self._wait_for(self.enter("mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "tmpfs", where))

    def unmount(self, folder: str) -> None:
        self._wait_for(self.enter("umount", "--lazy", f"{self._place}/root{folder}"))

    def start(self, port: int) -> str:
        """Start an adbd on that port, connect adb to it, and give the serial."""
        options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {"ADBD_PORT": str(port), "PATH": "/usr/bin:/usr/sbin", "HOME": "/data", "LC_ALL": "C"}
        command = ["env", "-i", *(f"{key}={value}" for key, value in environment.items())]
        self._daemons[port] = self.enter("chroot", f"{self._place}/root", *command, "/usr/sbin/adbd", **options)
        return self.connect(port)

    def stop(self, port: int) -> None:
        """Kill the adbd on that port at once, as when the cable is pulled, and what it runs."""
        outer = self._daemons.pop(port)
        _kill_tree(outer.pid)
        outer.wait()
        if outer.stdout is not None:
            outer.stdout.close()
        self.call("disconnect", f"127.0.0.1:{port}")

    def connect(self, port: int) -> str:
        """Connect adb to that port and wait until it calls it a device."""
        serial = f"127.0.0.1:{port}"
        end = time.monotonic() + _WAIT_S
        while time.monotonic() < end:
            self.call("connect", serial)
            if f"{serial}\tdevice" in self.call("devices"):
                return serial
            time.sleep(0.2)
        raise UnavailableError(f"adb does not reach the phone at {serial}: {self.call('devices')}")

    def start_closed(self, port: int, *, state: str) -> str:
        """Start something on that port that adb calls "unauthorized" or "offline", connect to it; gives the serial."""
        command = [sys.executable, "-c", _CLOSED, str(port), state]
        self._daemons[port] = self.enter(*command, stdout=subprocess.PIPE, text=True)
        self._daemons[port].stdout.readline()  # type: ignore[union-attr]
        serial = f"127.0.0.1:{port}"
        end = time.monotonic() + _WAIT_S
        connecting = subprocess.Popen([*self.adb, "connect", serial], stdout=subprocess.DEVNULL)
        while f"{serial}\t{state}" not in self.call("devices"):
            if time.monotonic() > end:
                raise UnavailableError(f"adb does not call {serial} {state}: {self.call('devices')}")
            time.sleep(0.1)
        connecting.wait(timeout=_WAIT_S)
        return serial

    def call(self, *arguments: str) -> str:
        done = subprocess.run([*self.adb, *arguments], capture_output=True, text=True, timeout=_WAIT_S)
        return done.stdout + done.stderr

    def down(self) -> None:
        """End everything in it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _serve(self) -> None:
        """The adb server, inside, so that it ends with the phone."""
        self._server = self.enter(
            "env", f"HOME={self._home}", "adb", "-L", f"tcp:localhost:{_SERVER_PORT}", "nodaemon", "server",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + _WAIT_S
        while subprocess.run([*self._knock(), "true"], capture_output=True).returncode:
            if time.monotonic() > end:
                raise UnavailableError("the adb server does not start")
            time.sleep(0.1)

    def _knock(self) -> list[str]:
        inside = ["nsenter", "--target", str(self._first), "--user", "--net", "--preserve-credentials"]
        code = f"import socket; socket.create_connection(('127.0.0.1', {_SERVER_PORT})).close()"
        return [*inside, sys.executable, "-c", code]

    @staticmethod
    def _extras(place: Path, model: str) -> Path:
        """A layer above Debian's files with what makes a phone of them."""
        extras = place.with_name("extras")
        for name, text in {**_FILES, "phone/properties": properties(model)}.items():
            (extras / name).parent.mkdir(parents=True, exist_ok=True)
            (extras / name).write_text(text)
        for name, line in _SCRIPTS.items():
            path = extras / "usr" / "bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(0o755)
        return extras

    @staticmethod
    def _wait_for(process: subprocess.Popen[Any]) -> None:
        if process.wait(timeout=_WAIT_S):
            raise UnavailableError(f"a command inside the phone failed: {process.args!r}")


def fetch() -> tuple[Path, Path]:
    """(the phone's files, qemu), downloaded unless they are in the cache; raises UnavailableError."""
    missing = [program for program in ("adb", "unshare", "nsenter", "ip") if shutil.which(program) is None]
    if missing:
        raise UnavailableError(f"the test phone needs the program {missing[0]}")
    try:
        lower = debian_packages.unpacked("phone", [f"{name}:arm64" for name in _PHONE], dependencies=True)
        qemu = debian_packages.unpacked("qemu", ["qemu-user:amd64"], dependencies=False, keep=[_QEMU])
    except SystemExit as error:
        raise UnavailableError(f"the test phone cannot be downloaded: {error}") from error
    return lower, qemu / _QEMU


_AnyPhone = TypeVar("_AnyPhone", bound=Phone)


@contextlib.contextmanager
def raised(kind: type[_AnyPhone], model: str = "test-phone") -> Iterator[_AnyPhone]:
    """A phone without any adbd yet: see `Phone.start`. kind: Phone or more. model: one of `MODELS`.

    Raises UnavailableError.
    """
    with tempfile.TemporaryDirectory(prefix="mobileprune-phone-") as folder:
        place = Path(folder) / "phone"
        place.mkdir()
        phone = kind(place, model)
        try:
            yield phone
        finally:
            phone.down()


def _kill_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            _kill_tree(int(child))
        os.kill(pid, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--as", dest="model", choices=[*MODELS], default="test-phone", help="what it calls itself")
    parser.add_argument("what", choices=["fetch", "exec", "up"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    try:
        if asked.what == "fetch":
            fetch()
            return
        with raised(Phone, asked.model) as phone:
            phone.start(6555)
            environment = {**os.environ, "MOBILEPRUNE_ADB": shlex.join(phone.adb)}
            if asked.what == "exec":
                raise SystemExit(subprocess.run(asked.command, env=environment).returncode)
            print(f"export MOBILEPRUNE_ADB={shlex.quote(shlex.join(phone.adb))}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    except UnavailableError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
