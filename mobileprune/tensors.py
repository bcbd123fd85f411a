"""What networks give back: logits alone, or logits among other tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors in a model's output, whatever containers (tuple, dict, data class) hold them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in tensors_in(value)]
    if isinstance(output, (list, tuple)):
        return [t for value in output for t in tensors_in(value)]
    return [t for value in vars(output).values() for t in tensors_in(value)] if hasattr(output, "__dict__") else []


def logits_in(output: Any) -> Tensor:
    """The first tensor in a model's output, in float32: what some networks give in training has auxiliary ones behind.

    (N, classes) of a classifier.
    """
    return tensors_in(output)[0].float()
