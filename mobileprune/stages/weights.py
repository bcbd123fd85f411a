"""Weights on disk: safetensors, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn

from mobileprune.run import writing


def store(model: nn.Module, path: Path) -> None:
    """Write every parameter and buffer of ``model``. A shared tensor is written once for each of its names."""
    state = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    with writing(path) as temporary:
        temporary.write_bytes(save(state))


def load(model: nn.Module, path: Path) -> None:
    """Read what ``store`` wrote into ``model`` (strictly: every name and shape must agree)."""
    model.load_state_dict(load_file(path))
