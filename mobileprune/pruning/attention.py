"""Transformers are recognised, to be refused in words: what this package cuts are convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from mobileprune.errors import UsageError
from mobileprune.pruning.layers import Inputs, outputs


class _Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def refuse_transformer(model: nn.Module, example_input: Inputs, layers: Sequence[str]) -> None:
    """Raise UsageError where ``model`` computes more attentions than convolutions; a hybrid with few of them passes.

    An attention is one fused operation, or two products of batches of matrices (scores, and values weighted by them).
    layers: the convolutions and linear layers that run, see ``Trace``; every attention has one or more of its own.
    """
    convolutions = sum(isinstance(model.get_submodule(name), _ConvNd) for name in layers)
    if 2 * convolutions >= len(layers):
        return
    operations = _Operations()
    with operations:
        outputs(model, example_input)
    fused = sum(n for name, n in operations.count.items() if "attention" in name)
    attentions = fused + (operations.count.get("bmm", 0) + operations.count.get("baddbmm", 0)) // 2
    if attentions > convolutions:
        raise UsageError(
            f"this network is a transformer ({attentions} attentions, {convolutions} convolutions) and only "
            "convolutional networks can be pruned: choose a CNN such as timm:mobilenetv3_large_100"
        )
