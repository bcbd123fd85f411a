"""Make the environment of tflite-runtime 2.14.0, in which exported files are checked for old devices.

python tools/old_runtime.py [--python python3.11]

It needs numpy 1, so it cannot share mobileprune's environment; it goes to ~/.cache/mobileprune (or XDG_CACHE_HOME).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from environments import Environment

from exporters.old import VERSION, interpreter

_PACKAGES = (f"tflite-runtime=={VERSION}", "numpy==1.26.4")
_WORKS = "import numpy; from tflite_runtime.interpreter import Interpreter; assert numpy.__version__ < '2'"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.11", help="a Python 3.8 to 3.11; there are no later wheels")
    environment = Environment(interpreter(), _PACKAGES, _WORKS)
    environment.make(parser.parse_args().python)
    print(environment.python)


if __name__ == "__main__":
    main()
