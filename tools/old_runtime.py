"""Make the environment of tflite-runtime 2.14.0, in which exported files are checked for old devices.

python tools/old_runtime.py [--python python3.11]

It needs numpy 1, so it cannot share mobileprune's environment; it goes to ~/.cache/mobileprune (or XDG_CACHE_HOME).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exporters.old import VERSION, interpreter

_PACKAGES = (f"tflite-runtime=={VERSION}", "numpy==1.26.4")
_WORKS = "import numpy; from tflite_runtime.interpreter import Interpreter; assert numpy.__version__ < '2'"


def works(python: Path) -> bool:
    """Whether the environment is there and whole."""
    return python.is_file() and subprocess.run([python, "-I", "-c", _WORKS], capture_output=True).returncode == 0


def make(python: Path, base: str) -> None:
    """Build the environment beside its place and rename it: a stopped run leaves nothing that looks finished."""
    home = python.parent.parent
    part = home.with_name(f"{home.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([base, "-m", "venv", part], check=True)
    command: list[str | Path] = [
        part / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *_PACKAGES,
    ]
    subprocess.run(command, check=True)
    shutil.rmtree(home, ignore_errors=True)
    part.rename(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.11", help="a Python 3.8 to 3.11; there are no later wheels")
    python = interpreter()
    base = parser.parse_args().python
    if not works(python):
        make(python, base)
        if not works(python):
            raise SystemExit(f"{python} was made but does not import tflite-runtime; try another --python")
    print(python)


if __name__ == "__main__":
    main()
