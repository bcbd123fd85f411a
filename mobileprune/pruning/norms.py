"""Batch-norm statistics, estimated anew: those of the base do not fit a pruned network or another input size."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mobileprune.errors import UsageError
from mobileprune.pruning.layers import Inputs, image_of, outputs


def reestimate_norms(model: nn.Module, batches: Iterable[Inputs]) -> int:
    """Replace the running mean and variance of every norm of ``model`` by those over ``batches``; in place.

    The mean over all images of the batch statistics (a batch counts by its size), each norm normalising with its own
    batch as in training, and every other module as in evaluation (no dropout, no stochastic depth). Weights, modes,
    momenta and gradients stay as they were. A norm that no batch goes through keeps its statistics.

    batches: (N, C, H, W), normalised, at the network's new size; training images, a few hundred of them. Returns the
    number of images; 0, and nothing read, where the model has no such norm. Raises UsageError where there are no
    batches or a norm sees a single value per channel; the model is then as before.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [{name: b.clone() for name, b in norm.named_buffers(recurse=False)} for norm in norms]
    called: set[nn.Module] = set()
    hooks = [norm.register_forward_hook(lambda module, *_: called.add(module)) for norm in norms]
    seen = 0
    finished = False
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        for batch in batches:
            images = image_of(batch)
            seen += len(images)
            _step(model, norms, batch, len(images) / seen)
        if not seen:
            raise UsageError("no batches to estimate the norm statistics on: give at least one batch of images")
        finished = True
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum, old in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not finished or norm not in called:
                for name, buffer in old.items():
                    getattr(norm, name).copy_(buffer)
        for module, mode in modes.items():
            module.training = mode
    return seen


def _step(model: nn.Module, norms: list[_NormBase], batch: Inputs, share: float) -> None:
    """One batch, which takes ``share`` of the running mean over images (all of it the first time)."""
    for norm in norms:
        norm.momentum = share
    with torch.no_grad():
        device = next((b.device for b in norms[0].buffers()), image_of(batch).device)
        try:
            outputs(model, tuple(t.to(device) for t in batch) if isinstance(batch, tuple) else batch.to(device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"a batch of shape {tuple(image_of(batch).shape)} leaves a norm one value per channel, which has no "
                "variance: give batches of at least 2 images"
            ) from error
