"""Weights on disk: safetensors, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn

from mobileprune.errors import MobilepruneError
from mobileprune.run import writing


def store(model: nn.Module, path: Path) -> None:
    """Write every parameter and buffer of ``model``. A shared tensor is written once for each of its names."""
    state = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    with writing(path) as temporary:
        temporary.write_bytes(save(state))


def load(model: nn.Module, path: Path) -> None:
    """Read what ``store`` wrote into ``model``. Raises MobilepruneError unless every name agrees."""
    loaded, state = load_file(path), model.state_dict()
    if differing := sorted(loaded.keys() ^ state.keys()):
        raise MobilepruneError(
            f"{path} is of another network: {differing[0]} is in only one of the two; make the run again"
        )
    state.update(loaded)  # the state dict itself carries versions that some networks ask for
    model.load_state_dict(state)
