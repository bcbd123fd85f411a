from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from mobileprune._torchvision import import_timm, import_torchvision

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"

sys.path.insert(0, str(Path(__file__).parent))  # nets.py, whichever way pytest imports the tests


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def shared_module(name: str) -> ModuleType:
    """A model file of the shared folder; the test is skipped where there is none."""
    path = SHARED / f"{name}.py"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(name: str) -> nn.Module:
    """A zoo network with random weights: "torchvision:x", "timm:x" or "shared:file:factory"."""
    kind, _, rest = name.partition(":")
    if kind == "torchvision":
        return import_torchvision().models.get_model(rest, weights=None).eval()
    if kind == "timm":
        return import_timm().create_model(rest, pretrained=False).eval()
    file, _, factory = rest.partition(":")
    return getattr(shared_module(file), factory)().eval()
