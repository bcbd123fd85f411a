"""A Linux board that is reached by `ssh`, such as a Raspberry Pi: worker.py runs there with the Python it has.

    ssh://user@host:port?python=/opt/venv/bin/python

The user's own ssh does the talking, with the user's keys and configuration; it asks nothing and trusts no host key that
is not known yet. The board is described, and asked how it is doing, without writing anything on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from device_profiles.devices.base import DeviceInfo, DeviceState, check_delegate
from device_profiles.devices.remote import LineFile, Remote, RemoteDevice, Request, Runner, RunningFile
from device_profiles.errors import DeviceError, ProfileError
from device_profiles.profile import DeviceProfile
from device_profiles.runners import worker
from device_profiles.runners.client import missing_runtimes

_FORM = "an ssh device is written ssh://user@host:port, with ?python=/path/to/python where it is not python3"
_OPTIONS = ("python", "folder", "config")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:%_-]*")
_AWAY = re.compile(r"Could not resolve|Connection refused|No route|timed out|unreachable")
_NO_PYTHON = 127
_KEEP_LINK_S = 30
_LONGEST_SOCKET = 85  # a socket's path has at most 107 bytes, of which ssh wants 18


@dataclass(frozen=True)
class Address:
    """Where a board is. python: its interpreter; folder: where we may write, ~/.cache/mobileprune unless given;
    config: a file for `ssh -F` instead of the user's own. user, port: ssh's own choice where they are None."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    folder: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ProfileError for what is no such address, and for parts that ssh could take for its options."""
        try:
            parts = urlsplit(text)
            host, user, port = parts.hostname or "", parts.username, parts.port
            given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
        except ValueError as error:
            raise ProfileError(f"{text!r} is no address: {error}; {_FORM}") from error
        if parts.scheme != "ssh" or parts.path.strip("/") or parts.password or parts.fragment:
            raise ProfileError(f"{text!r} is no address; {_FORM}; passwords are ssh's own business")
        # urlsplit writes the host in small letters, which an alias of ssh's configuration may not be.
        host = next((one for one in re.split(r"[@/?\[\]:]", text) if one.lower() == host), host)
        user = unquote(user) if user is not None else None
        if not _HOST.fullmatch(host) or (user is not None and not _NAME.fullmatch(user)):
            raise ProfileError(f"{text!r} has a strange host or user name; {_FORM}")
        options = dict(given)
        if unknown := [key for key in options if key not in _OPTIONS]:
            raise ProfileError(f"{text!r} has the unknown option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
        if bad := [key for key, value in options.items() if not value or not value.isprintable()]:
            raise ProfileError(f"{text!r} has an option {bad[0]!r} without a sensible value; {_FORM}")
        folder = options.get("folder")
        if folder is not None and not folder.startswith("/"):
            raise ProfileError(f"{text!r} has a folder that does not start with '/'; give the whole path on the board")
        return cls(host, user, port, **options)

    @property
    def destination(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def flags(self) -> list[str]:
        """What of the address becomes options of ssh."""
        return [*(["-F", self.config] if self.config else []), *(["-p", str(self.port)] if self.port else [])]


class SshRemote(Remote):
    """The way to a board, through the `ssh` program. All commands share one connection, which ssh opens with the first
    and closes when none has come for a while."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.label = f"the board {address.destination}"
        # A folder that only we may enter: who can open the socket in it is logged in.
        self._sockets = tempfile.TemporaryDirectory(prefix="mobileprune-")

    @cached_property
    def parent(self) -> str:  # type: ignore[override]
        if self.address.folder:
            return f"{self.address.folder.rstrip('/')}/mobileprune"
        script = 'printf %s "${XDG_CACHE_HOME:-$HOME/.cache}"'
        told = self._bare(script)
        if not told.startswith("/"):
            raise DeviceError(f"{self.label} has no home folder ({told!r}); name one with ?folder=/path")
        return f"{told}/mobileprune"

    def command(self, script: str) -> list[str]:
        # A user's login shell may be any; `sh` is what the scripts are written for.
        return [*self._ssh(), "--", self.address.destination, f"exec sh -c {shlex.quote(script)}"]

    def send(self, local: Path, remote: str, *, timeout_s: float) -> None:
        self.script(f"cat > {shlex.quote(remote)}", timeout_s=timeout_s, stdin=local.read_bytes(), check=True)

    def lost(self, stderr: str) -> str:
        host, port = self.address.host, self.address.port
        login = shlex.join(["ssh", *self.address.flags, self.address.destination])
        known = f"[{host}]:{port}" if port not in (None, 22) else host
        last = stderr.strip().splitlines()[-1].strip() if stderr.strip() else ""
        if "IDENTIFICATION HAS CHANGED" in stderr:
            return (
                f"{self.label} shows another host key than the known one: either it was set up anew, then forget the "
                f"old key with `ssh-keygen -R {shlex.quote(known)}` and connect with `{login}`, or someone else answers"
            )
        if re.search(r"host key is known for|Host key verification failed", stderr):
            return (
                f"{self.label} has a host key that is not known yet: connect once with `{login}`, compare the "
                "fingerprint with the board's (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there) and answer yes"
            )
        if "Permission denied" in last or "Too many authentication failures" in last:
            copy = shlex.join(["ssh-copy-id", *self.address.flags, self.address.destination])
            return (
                f"{self.label} refuses the login ({last}): set up a key with `{copy}`, so that `{login}` asks nothing"
            )
        if _AWAY.search(last) or re.search(r"refused|Bad configuration|Can't open", last):
            return f"{self.label} cannot be reached: {last}; check the address, the power and the network"
        said = f" ({last})" if last else ""
        return f"the ssh link to {self.address.destination} was lost{said}; check board and network, then run it again"

    def is_away(self, stderr: str) -> bool:
        return bool(_AWAY.search(stderr.strip().rpartition("\n")[2]))

    def disconnect(self) -> None:
        """Close the shared connection; the next command opens another."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            words = [*self._ssh(), "-O", "exit", "--", self.address.destination]
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": "15",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "6",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
        }
        socket = f"{self._sockets.name}/s"
        if len(socket) <= _LONGEST_SOCKET:
            options |= {"ControlMaster": "auto", "ControlPath": socket, "ControlPersist": f"{_KEEP_LINK_S}"}
        return ["ssh", *self.address.flags, *(f"-o{key}={value}" for key, value in options.items())]

    def _bare(self, script: str) -> str:
        return self.script(script, check=False).text


class _PythonRunner(Runner):
    """worker.py on the board's own Python."""

    def __init__(self, python: str) -> None:
        self._python = python

    def install(self, remote: Remote, folder: str) -> None:
        remote.push(Path(worker.__file__), f"{folder}/worker.py")

    def start(self, remote: Remote, folder: str, request: Request) -> RunningFile:
        # Runtimes keep caches of their own; they go with our folder.
        alone = ["env", f"OMP_NUM_THREADS={request.threads}", "OPENBLAS_NUM_THREADS=1", f"XDG_CACHE_HOME={folder}"]
        return LineFile(remote, [*alone, self._python, f"{folder}/worker.py"], request)


class SshDevice(RemoteDevice):
    """The board at the profile's address."""

    def __init__(self, profile: DeviceProfile) -> None:
        if profile.address is None:
            raise ProfileError(f"the profile {profile.name} is of the kind 'ssh' but has no address; {_FORM}")
        self.address = Address.parse(profile.address)
        self.remote: SshRemote
        super().__init__(profile, SshRemote(self.address))
        self._python = _PythonRunner(self.address.python)
        self._info: DeviceInfo | None = None

    def describe(self) -> DeviceInfo:
        told = self._ask("describe")
        self._info = DeviceInfo(
            name=self.profile.name,
            kind=self.profile.kind,
            title=told["title"],
            soc=told["soc"],
            cores=told["cores"],
            os=told["os"],
            runtimes=told["runtimes"],
            abi=told["abi"],
            hints=_hints(told["runtimes"], self.address),
        )
        return self._info

    def state(self) -> DeviceState:
        """Takes a quarter of a second on the board, in which it watches what other programs do."""
        return DeviceState.from_dict(self._ask("state"))

    def runner(self, suffix: str, delegate: str) -> Runner:
        info = self._info or self.describe()
        check_delegate(delegate, info)
        if suffix not in info.runtimes:
            raise DeviceError(f"{self.remote.label} has no runtime for {suffix!r} files; {'; '.join(info.hints)}")
        return self._python

    def clean_up(self) -> None:
        super().clean_up()
        self.remote.disconnect()

    def _ask(self, what: str) -> dict[str, Any]:
        """worker.py's answer to one request; it gets there as an argument, not as a file."""
        request = json.dumps({"do": what}).encode() + b"\n"
        done = self.remote.run([self.address.python, "-c", _worker_source()], stdin=request)
        if done.status:
            raise DeviceError(f"{self.remote.label} {_why_no_python(done.status, done.words, self.address.python)}")
        try:
            answer: dict[str, Any] = json.loads(done.text.splitlines()[-1])
        except (ValueError, IndexError):
            raise DeviceError(f"{self.remote.label} gave no sensible answer: {done.words!r}") from None
        if "error" in answer:
            raise DeviceError(f"{self.remote.label} cannot be asked: {answer['error']}")
        return answer


def _worker_source() -> str:
    return Path(worker.__file__).read_text(encoding="utf-8")


def _hints(runtimes: Mapping[str, str], address: Address) -> tuple[str, ...]:
    """What to install on the board, for its own Python."""
    pip = f"{shlex.quote(address.python)} -m pip install"
    found = [one.replace("pip install", f"on the board, {pip}") for one in missing_runtimes(runtimes)]
    return tuple(f"{one} (or tflite-runtime on older boards)" if "litert" in one else one for one in found)


def _why_no_python(status: int, words: str, python: str) -> str:
    if status in (126, _NO_PYTHON):
        return f"has no {python} that can be run ({words}): install python3 there, or name it with ?python=/path"
    if "future feature annotations" in words:
        return f"has a {python} that is too old: Python 3.7 or newer is needed; name another with ?python=/path"
    return f"cannot run our worker with {python}: {words}"


def profile_of(text: str) -> DeviceProfile:
    """The profile of a board that is asked what it is: `text` is its address. Raises DeviceError.

    It runs .tflite files where it can, as phones do, and else .onnx files. Nothing in it is measured yet.
    """
    address = Address.parse(text)
    name = re.sub(r"[^a-z0-9._-]+", "-", address.host.lower()).strip("-._") or "board"
    draft = DeviceProfile(
        name=name[:64],
        title=address.destination,
        kind="ssh",
        runtime="litert",
        format="tflite",
        precision="float32",
        threads=1,
        channel_step=8,
        provenance="Asked of the board itself. Channel step 8 is assumed: `mobileprune profile` measures it.",
        address=text,
    )
    info = SshDevice(draft).describe()
    runtime, suffix = ("litert", "tflite") if ".tflite" in info.runtimes else ("onnxruntime", "onnx")
    return replace(draft, title=info.title, soc=info.soc, cores=info.cores, runtime=runtime, format=suffix)


def known_hosts() -> list[str]:
    """The addresses that the user named in MOBILEPRUNE_SSH, separated by blanks."""
    return os.environ.get("MOBILEPRUNE_SSH", "").split()
