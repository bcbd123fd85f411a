"""Whether an old runtime agrees: tflite-runtime 2.14.0, the last of its name, as many boards still run it.

It needs numpy 1 and so an environment of its own, which `tools/old_runtime.py` makes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.runtimes import Array, LiteRuntime, open_runtime

VERSION = "2.14.0"
NAME = f"tflite-runtime {VERSION}"
_PLACE = "MOBILEPRUNE_OLD_RUNTIME"  # the environment variable that names another interpreter
# What another version's kernels may differ by, as a share of the largest logit: rounding of float kernels, and one or
# two steps of the output's scale for integer ones.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
_INTEGER_TOLERANCE = 0.05

_STARTED = "started"  # what it says once the runtime is imported: a failure before that says nothing of the file

_SCRIPT = f"""
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter
print({_STARTED!r}, flush=True)
interpreter = Interpreter(model_content=open(sys.argv[1], "rb").read(), num_threads=1)
interpreter.allocate_tensors()
taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
results = []
for image in np.load(sys.argv[2]):
    interpreter.set_tensor(taken["index"], image[None])
    interpreter.invoke()
    results.append(interpreter.get_tensor(given["index"])[0])
np.save(sys.argv[3], np.stack(results))
"""


@dataclass(frozen=True)
class OtherRuntime:
    """What another runtime made of a file.

    agrees: False marks the file "not for" that runtime and, where it is an old one, for any older than ours; None where
    it was not asked, or does not work itself.
    difference: largest absolute difference of logits.  reason: why it does not agree, or was not compared.
    """

    runtime: str
    agrees: bool | None
    difference: float | None = None
    reason: str | None = None

    @property
    def mark(self) -> str | None:
        """The line for the manifest; None where there is nothing to warn of."""
        if self.agrees is not False:
            return None
        whom = f"runtimes older than {LiteRuntime.label()}" if self.runtime == NAME else self.runtime
        return f"not for {whom}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mark": self.mark}


def interpreter() -> Path:
    """Where the old runtime's Python is, or would be."""
    place = os.environ.get(_PLACE)
    if place:
        return Path(place)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mobileprune" / f"tflite-runtime-{VERSION}" / "bin" / "python"


def check_old(path: Path, images: Array, precision: str = "float32", timeout_s: float = 300.0) -> OtherRuntime:
    """Run a .tflite file on normalised images (N, C, H, W) in the old runtime and in ours, and compare.

    Raises ExportError where our own runtime cannot run the file.
    """
    python = interpreter()
    if not python.is_file():
        return OtherRuntime(NAME, None, reason="not installed here; run: python tools/old_runtime.py")
    ours = open_runtime(path)
    wanted = ours(images)
    fed = ours.taken.from_real(np.ascontiguousarray(images.transpose(0, 2, 3, 1), dtype=np.float32))
    try:
        got = _outputs(python, path, fed, timeout_s)
    except subprocess.TimeoutExpired:
        return OtherRuntime(NAME, None, reason=f"not compared: it took more than {timeout_s:g} s")
    except (OSError, EOFError, ValueError) as error:  # the last two of results that numpy cannot read
        reason = f"not compared: {python} does not work: {error}; run: python tools/old_runtime.py"
        return OtherRuntime(NAME, None, reason=reason)
    if isinstance(got, str):
        return OtherRuntime(NAME, False, reason=f"{NAME} cannot run it: {got}")
    return compare(NAME, ours.given.to_real(got), wanted, precision)


def _outputs(python: Path, path: Path, fed: NDArray[Any], timeout_s: float) -> NDArray[Any] | str:
    """What the file gives (N, classes) for inputs (N, H, W, C), as it holds them; else why the runtime cannot run it.

    Raises OSError, EOFError, ValueError and TimeoutExpired where the runtime itself does not work.
    """
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
        taken, given = Path(folder, "images.npy"), Path(folder, "results.npy")
        np.save(taken, fed)
        command = [os.fspath(python), "-I", "-c", _SCRIPT, os.fspath(path.resolve()), str(taken), str(given)]
        done = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", timeout=timeout_s)
        if done.returncode == 0:
            results: NDArray[Any] = np.load(given)
            return results
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = lines[-1] if lines else f"status {done.returncode}"
    if _STARTED not in done.stdout.splitlines():
        raise OSError(said)
    return said


def compare(runtime: str, got: Array, wanted: Array, precision: str = "float32") -> OtherRuntime:
    """Whether the logits (N, classes) of another runtime or device agree with those of this machine's runtime."""
    if got.shape != wanted.shape:
        return OtherRuntime(runtime, False, reason=f"{runtime} gives logits of shape {got.shape}, not {wanted.shape}")
    difference = float(np.abs(got.astype(np.float64) - wanted).max())
    scale = max(float(np.abs(wanted).max()), 1e-6)
    allowed = TOLERANCE.get(precision, _INTEGER_TOLERANCE) * scale
    if difference <= allowed:  # false for NaN
        return OtherRuntime(runtime, True, difference)
    reason = f"{runtime} gives logits that differ by up to {difference:.3g} (allowed {allowed:.3g})"
    return OtherRuntime(runtime, False, difference if np.isfinite(difference) else None, reason)
