"""A phone that is real software: tools/test_phone.py, with the bundle that tools/build_bundle.py makes."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from sshd import missing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import build_bundle
import test_phone

PORT = 6555
_OURS = "/data/local/tmp/mobileprune"
SERIAL = f"127.0.0.1:{PORT}"


class Phone(test_phone.Phone):
    """With what tests look at."""

    def runners(self) -> list[psutil.Process]:
        """The processes that run files on it."""
        found = []
        for one in psutil.process_iter(["cmdline"]):
            words = one.info["cmdline"] or []
            if any(word.startswith((f"{_OURS}/", f"--graph={_OURS}/")) for word in words) and (
                "--library-path" in words or any(word.startswith("--graph=") for word in words)
            ):
                found.append(one)
        pids = {one.pid for one in found}
        return [one for one in found if _parent(one) not in pids]  # without the runner's own helper

    def wait_for_runner(self, seconds: float = 60) -> psutil.Process:
        until = time.monotonic() + seconds
        while not (found := self.runners()):
            assert time.monotonic() < until, "no runner came up"
            time.sleep(0.02)
        return found[0]

    def wait_for_no_runner(self) -> None:
        """A runner ends a moment after its link."""
        until = time.monotonic() + 30
        while self.runners() and time.monotonic() < until:
            time.sleep(0.05)
        assert self.runners() == []

    @property
    def command(self) -> str:
        """What reaches it, for $MOBILEPRUNE_ADB."""
        return shlex.join(self.adb)

    def models(self) -> list[str]:
        """The model files that are on the phone now."""
        return [name for name in self.written() if name.endswith((".onnx", ".tflite", ".raw"))]

    def written(self) -> list[str]:
        """Every file that was written on the phone since it was raised, anywhere, but for what `tell` wrote."""
        upper = self.root.parent / "upper"
        found = (one.relative_to(upper) for one in upper.rglob("*") if not one.is_dir() or one.is_symlink())
        return sorted(str(one) for one in found if one.parts[0] not in ("dev", "phone"))

    def tell(self, name: str, text: str) -> None:
        """Change what it answers: phone/properties, phone/dumpsys/battery, ..."""
        (self.root / "phone" / name).write_text(text)

    @contextlib.contextmanager
    def telling(self, name: str, old: str, new: str) -> Iterator[None]:
        """It answers something else for a while."""
        before = (self.root / "phone" / name).read_text()
        assert old in before
        self.tell(name, before.replace(old, new))
        try:
            yield
        finally:
            self.tell(name, before)


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


@contextlib.contextmanager
def raised() -> Iterator[Phone]:
    """A phone at `SERIAL`, and the bundle in the cache."""
    try:
        build_bundle.build()
    except SystemExit as error:
        missing(f"the bundle for 64-bit ARM cannot be made: {error}")
    with contextlib.ExitStack() as stack:
        try:
            phone = stack.enter_context(test_phone.raised(Phone))
            phone.start(PORT)
        except test_phone.UnavailableError as error:
            missing(f"{error}: apt-get install adb")
        yield phone
