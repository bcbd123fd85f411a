"""A phone that is real software: tools/test_phone.py, with the bundle that tools/build_bundle.py makes."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
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
    def posing_as(self, model: str) -> Iterator[None]:
        """It calls itself one of `test_phone.MODELS` for a while."""
        self.tell("properties", test_phone.properties(model))
        try:
            yield
        finally:
            self.tell("properties", test_phone.properties("test-phone"))

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


_TOOL = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
  for (int i = 1; i < count; i++) if (strcmp(words[i], "--use_gpu=true") == 0) for (;;) pause();
  const char *taker = "TfLiteXNNPackDelegate";
  for (int i = 1; i < count; i++) if (strcmp(words[i], "--use_nnapi=true") == 0) taker = "TfLiteNnapiDelegate";
  printf("INFO: Replacing 5 out of 6 node(s) with delegate (%s) node, yielding 2 partitions\n", taker);
  printf("INFO: Initialized session in 2.5ms.\n");
  printf("count=1 curr=9000\n");
  printf("INFO: Running benchmark for at least 3 iterations and at least 0.01 seconds\n");
  printf("count=3 first=1200 curr=1100 min=1000 max=1200 avg=1100 std=80 p5=1000 median=1100 p95=1200\n");
  printf("Inference timings in us: Init: 2500, First inference: 9000, Warmup (avg): 9000, Inference (avg): 1100\n");
  printf("Overall peak memory footprint (MB) via periodic monitoring: 12.5\n");
  return 0;
}
"""


def benchmark_tool(folder: Path) -> Path:
    """A program for the phone that prints what Google's benchmark_model does, and hangs when asked for the GPU."""
    source, tool = folder / "tool.c", folder / "my benchmark_model"
    source.write_text(_TOOL)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", build_bundle.TARGET, "-O2", "-s"]
    subprocess.run([*compiler, "-o", str(tool), str(source)], check=True)
    return tool


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
