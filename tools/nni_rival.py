"""Make the environment of NNI 3.0, Microsoft's toolkit, a rival in tools/compare_methods.py.

    python tools/nni_rival.py [--python python3.11]

Its ModelSpeedup, which makes a masked network smaller, fails with the torch that is pinned here. It gets an environment
of its own with torch 2.0 (4 GB), in mobileprune's cache folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import Environment
from numpy.typing import NDArray
from torch import nn

from mobileprune.data.cache import folder as cache_folder

ENVIRONMENT = Environment(
    cache_folder() / "nni-3.0" / "bin" / "python",
    (
        *("nni==3.0", "torch==2.0.1", "torchvision==0.15.2", "timm==1.0.31"),
        *("numpy==1.26.4", "tensorboard==2.21.0", "setuptools==65.5.0"),
    ),
    "import timm; from nni.compression import pruning, speedup, utils; utils.auto_set_denpendency_group_ids",
)


def prune(base: nn.Module, asked: Mapping[str, Any], side: int, ratios: Sequence[float], folder: Path) -> None:
    """Leave for every ratio the state of the network that NNI makes of ``base``, or why it makes none, in ``folder``.

    asked: the run's ``model``, which NNI's process reads from its file. What is there already is not made again.
    ValueError where the model is neither in a file nor timm's, or NNI's process fails.
    """
    if asked["library"] != "timm" and not asked["library"].endswith(".py"):
        raise ValueError(f"NNI's environment has no {asked['library']}")
    lacking = [r for r in ratios if not any(state_at(folder, r).with_suffix(s).exists() for s in (".npz", ".txt"))]
    if not lacking:
        return
    weights = folder / "base-state.npz"
    np.savez(weights, **{name: value.cpu().numpy() for name, value in base.state_dict().items()})
    request = {
        "model": f"{asked['library']}:{asked['name']}",
        "arguments": asked["arguments"],
        "weights": str(weights.resolve()),
        "side": side,
        "ratios": lacking,
        "folder": str(folder.resolve()),
    }
    (folder / "request.json").write_text(json.dumps(request))
    script = Path(__file__).with_name("nni_prune.py")
    command: list[str | Path] = [ENVIRONMENT.python, "-I", script, folder / "request.json"]
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise ValueError((folder / "log.txt").read_text().strip().rpartition("\n")[2])


def state_at(folder: Path, ratio: float) -> Path:
    return folder / f"{ratio:.2f}.npz"


def rebuilt(base: nn.Module, folder: Path, ratio: float) -> nn.Module:
    """``base`` with the channels that NNI left it. ValueError, with NNI's reason, where it made no network."""
    reason = state_at(folder, ratio).with_suffix(".txt")
    if reason.exists():
        raise ValueError(reason.read_text())
    model = copy.deepcopy(base)
    state: dict[str, NDArray[Any]] = dict(np.load(state_at(folder, ratio)))
    for name, layer in model.named_modules():
        for part in [*layer._parameters, *layer._buffers]:
            key = f"{name}.{part}" if name else part
            if key in state:
                _shrink(layer, part, torch.from_numpy(state[key]))
        if isinstance(layer, nn.Conv2d):
            layer.groups = int(state[f"{name}.groups"])
            layer.in_channels = layer.weight.shape[1] * layer.groups
    return model


def _shrink(layer: nn.Module, part: str, value: torch.Tensor) -> None:
    """Give ``layer`` a smaller parameter or buffer, and the sizes that go with it."""
    if isinstance(layer, nn.Conv2d) and part == "weight":
        height, width = layer.kernel_size
        value = value[:, :, -height:, -width:].contiguous()  # without the zeros that stood for uneven padding
        layer.out_channels = len(value)
    if isinstance(layer, nn.Linear) and part == "weight":
        layer.out_features, layer.in_features = value.shape
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(value) if value.ndim else layer.num_features
    if part in layer._parameters:
        setattr(layer, part, nn.Parameter(value))
    else:
        setattr(layer, part, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.11", help="a Python 3.8 to 3.11; torch 2.0 has no later wheels")
    ENVIRONMENT.make(parser.parse_args().python)
    print(ENVIRONMENT.python)


if __name__ == "__main__":
    main()
