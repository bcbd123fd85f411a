"""Prunes widths with NNI 3.0, as its documentation does it; runs in NNI's own environment (tools/nni_rival.py).

    python nni_prune.py request.json

The request: ``model``, FILE.py:FUNCTION or timm:NAME of a network, and its ``arguments``; ``weights``, an .npz of its
state; ``side`` of its input in pixels; ``ratios``, the shares of channels to take; ``folder``, where for each ratio the
state of the cut network is left as 0.50.npz, with the ``groups`` of every convolution. A ratio that fails leaves
0.50.txt, with the reason.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import auto_set_denpendency_group_ids
from torch import nn


def network(source: str, arguments: dict[str, Any], weights: Path) -> nn.Module:
    """The user's network with these weights; a linear layer of another size in them takes the place of its own."""
    model = _made(source, arguments)
    state = {name: torch.from_numpy(value) for name, value in np.load(weights).items()}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer.weight.shape != state[f"{name}.weight"].shape:
            outputs, inputs = state[f"{name}.weight"].shape
            _put(model, name, nn.Linear(inputs, outputs))
    model.load_state_dict(state)
    return model.eval()


def _made(source: str, arguments: dict[str, Any]) -> nn.Module:
    library, _, name = source.rpartition(":")
    if library == "timm":
        import timm

        make = partial(timm.create_model, name)
    else:
        spec = importlib.util.spec_from_file_location("model", library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        make = getattr(module, name)
    model: nn.Module = make(**arguments)
    return model


def plain(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """The same network with nn.Conv2d and nn.BatchNorm2d in place of their subclasses, which NNI does not know.

    Convolutions are taken to pad as TensorFlow's SAME does, one pixel more at the end where it is uneven: a kernel with
    as many zeros before it computes that with even padding. A norm is taken to apply the modules in it afterwards, as
    timm's does. ValueError where the network then computes something else.
    """
    sizes: dict[str, torch.Size] = {}
    others = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d}
    hooks = [
        layer.register_forward_pre_hook(lambda _, taken, name=name: sizes.update({name: taken[0].shape[2:]}))
        for name, layer in others.items()
    ]
    with torch.no_grad():
        wanted = model(images)
        for hook in hooks:
            hook.remove()
        for name, layer in others.items():
            _put(model, name, _evenly_padded(layer, sizes[name]))
        for name, norm in list(model.named_modules()):
            if isinstance(norm, nn.BatchNorm2d) and type(norm) is not nn.BatchNorm2d:
                _put(model, name, Activated(norm))
        if not torch.allclose(model(images), wanted, atol=1e-4):
            raise ValueError("its convolutions or norms are not torch's, and do not compute what was taken for it")
    return model


class Activated(nn.Sequential):
    """A norm of torch, and after it what the norm ``of`` has in it (an activation)."""

    def __init__(self, of: nn.BatchNorm2d) -> None:
        norm = nn.BatchNorm2d(of.num_features, of.eps, of.momentum, of.affine, of.track_running_stats)
        norm.load_state_dict({name: of.state_dict()[name] for name in norm.state_dict()})
        super().__init__(OrderedDict(norm=norm.train(of.training), **dict(of.named_children())))


def _evenly_padded(layer: nn.Conv2d, size: torch.Size) -> nn.Conv2d:
    kernel, stride = layer.kernel_size, layer.stride
    totals = [max((-(-size[i] // stride[i]) - 1) * stride[i] + kernel[i] - size[i], 0) for i in (0, 1)]
    ends, grown = [total - total // 2 for total in totals], [total % 2 for total in totals]
    found = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (kernel[0] + grown[0], kernel[1] + grown[1]),
        (stride[0], stride[1]),
        (ends[0], ends[1]),
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    found.weight.zero_()
    found.weight[:, :, grown[0] :, grown[1] :] = layer.weight
    if layer.bias is not None and found.bias is not None:
        found.bias.copy_(layer.bias)
    return found


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def cut(model: nn.Module, images: torch.Tensor, ratio: float) -> nn.Module:
    """A copy without ``ratio`` of the channels of every convolution: those of the smallest L1 norm.

    Layers whose channels depend on each other lose the same ones (a depthwise convolution and what feeds it).
    """
    pruned = copy.deepcopy(model)
    layers = [name for name, layer in pruned.named_modules() if type(layer) is nn.Conv2d]
    config = auto_set_denpendency_group_ids(pruned, [{"op_names": layers, "sparse_ratio": ratio}], images)
    pruner = L1NormPruner(pruned, config)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    speedup: nn.Module = ModelSpeedup(pruned, images, masks).speedup_model()
    return speedup


def state_of(model: nn.Module) -> dict[str, Any]:
    """Its tensors under the names that the user's network has for them, and the groups of every convolution."""
    inside = {name for name, layer in model.named_modules() if isinstance(layer, Activated)}
    state = {}
    for name, value in model.state_dict().items():
        norm, _, tensor = name.rpartition(".norm.")
        state[f"{norm}.{tensor}" if norm in inside else name] = value.numpy()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            state[f"{name}.groups"] = np.array(layer.groups)
    return state


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randn(2, 3, request["side"], request["side"])
    model = plain(network(request["model"], request["arguments"], Path(request["weights"])), images)
    for ratio in request["ratios"]:
        path = Path(request["folder"], f"{ratio:.2f}.npz")
        try:
            np.savez(path, **state_of(cut(model, images, ratio)))
        except Exception as error:
            path.with_suffix(".txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
