"""The import of torchvision and timm, each in a fresh interpreter as a user's command does it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = "from mobileprune._torchvision import import_timm, import_torchvision\n"


def fresh(code: str) -> str:
    """Run code in a new interpreter that shows every warning; nothing may come on standard error."""
    command = [sys.executable, "-W", "always::UserWarning", "-c", PRELUDE + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_torchvision_models_run() -> None:
    code = """
import torch
torchvision = import_torchvision()
assert import_torchvision() is torchvision
import torchvision.io, torchvision.transforms.v2
with torch.inference_mode():
    print(tuple(torchvision.models.resnet18(num_classes=7).eval()(torch.zeros(1, 3, 32, 32)).shape))
"""
    assert fresh(code) == "(1, 7)\n"


def test_timm_models_run() -> None:
    code = """
import torch
timm = import_timm()
assert import_timm() is timm
with torch.inference_mode():
    print(tuple(timm.create_model("mobilenetv3_small_050", num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape))
"""
    assert fresh(code) == "(1, 3)\n"


def test_after_a_user_file_already_failed_to_import_it() -> None:
    code = """
try:
    import torchvision
except RuntimeError:
    pass
print(import_torchvision().__name__)
"""
    assert fresh(code) == "torchvision\n"


def test_threads_import_it_once() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    print(len({id(module) for module in pool.map(lambda _: import_torchvision(), range(8))}))
"""
    assert fresh(code) == "1\n"


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_not_installed(name: str) -> None:
    code = f"""
import sys
from mobileprune.errors import MobilepruneError
sys.modules[{name!r}] = None
try:
    import_{name}()
except MobilepruneError as error:
    print(error)
"""
    assert fresh(code) == f"{name} is not installed; run: pip install {name}\n"


def test_another_failure_is_not_hidden() -> None:
    code = """
import mobileprune._torchvision as shim
def broken(name):
    raise RuntimeError("something else")
shim._import = broken
try:
    import_torchvision()
except RuntimeError as error:
    print(error, shim._library)
"""
    assert fresh(code) == "something else None\n"
