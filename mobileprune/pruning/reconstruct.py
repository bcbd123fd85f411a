"""Weights after channels went: the layers that read them make up for what is gone, by least squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.layers import Axis, axes_of, kept_groups
from mobileprune.pruning.moments import Moments, by_group, only_multiplies, unfit
from mobileprune.pruning.recipe import Recipe, relative


def reconstruct_weights(
    pruned: nn.Module, recipe: Recipe, model: nn.Module, moments: Mapping[str, Moments], before: Recipe | None = None
) -> dict[str, str]:
    """Change the weights of ``pruned`` in place so that its layers give what they gave with all their inputs.

    An input that went is predicted from those that stay, x_gone = A x_kept + c, by ridge regression. In y = W x + b the
    weights then become W_kept + W_gone A, at each place of a kernel, and the bias b + W_gone c. This is the
    reconstruction step of channel pruning (arXiv 1707.06168, 3.1), for all layers at once. A layer without a bias
    leaves c to the norm behind it, so the norms are to be estimated anew afterwards (``reestimate_norms``).

    pruned, recipe: what was cut from ``model``; before: the recipe of ``model``, where it was pruned itself. moments:
    of what the layers of ``model`` read, see ``input_moments``. Returns the layers that lost inputs and stay as they
    are, with the reason.
    """
    modules, smaller = dict(model.named_modules()), dict(pruned.named_modules())
    normed = any(isinstance(module, _NormBase) for module in modules.values())
    left = {}
    for axis, positions in recipe.kept.items():
        if axis.side != "in":
            continue
        whole, kept = modules[axis.layer], relative(positions, _of(before, axis))
        if len(kept) == axes_of(whole)["in"] or kept_groups(whole, kept) is not None:
            continue  # it lost them in an earlier step, or what it makes of them goes along
        if why := _reason(whole, moments.get(axis.layer)):
            left[axis.layer] = why
            continue
        out = Axis(axis.layer, "out")
        kept_out = relative(recipe.kept[out], _of(before, out)) if out in recipe.kept else None
        _rebuild(whole, smaller[axis.layer], kept, kept_out, moments[axis.layer], normed=normed)
    return left


def _of(recipe: Recipe | None, axis: Axis) -> tuple[int, ...] | None:
    return recipe.kept.get(axis) if recipe else None


def _reason(module: nn.Module, seen: Moments | None) -> str:
    """Why the layer stays as it is; empty where it need not."""
    if why := unfit(module):
        return why
    if seen is None or seen.first is None:
        return "no image goes through it"
    if not only_multiplies(module, seen.first):
        return f"a {type(module).__name__} does more with its weights than multiply"
    return ""


def _rebuild(
    whole: nn.Module,
    smaller: nn.Module,
    kept: Sequence[int],
    kept_out: Sequence[int] | None,
    seen: Moments,
    *,
    normed: bool,
) -> None:
    """Write the new weights of ``whole`` into ``smaller``, which has but the inputs ``kept`` and outputs ``kept_out``.

    normed: whether a norm makes up for the mean of what a layer without a bias gives.
    """
    weight, bias = by_group(whole), cast(Tensor | None, smaller.bias)
    stays = torch.zeros(weight.shape[2], dtype=torch.bool)
    stays[[i for i in kept if i < len(stays)]] = True  # every group keeps the same ones
    slopes, constant = seen.regression(stays, centred=bias is not None or normed)
    gone = weight[:, :, ~stays]
    rebuilt = (weight[:, :, stays] + torch.einsum("goip,gik->gokp", gone, slopes)).flatten(0, 1)
    shift = torch.einsum("goip,gix->go", gone, constant).flatten()
    if kept_out is not None:
        rebuilt, shift = rebuilt[list(kept_out)], shift[list(kept_out)]
    target = cast(Tensor, smaller.weight).data
    if isinstance(whole, _ConvNd) and whole.transposed:
        target = target.transpose(0, 1)
    target.copy_(rebuilt.reshape(target.shape))
    if bias is not None:
        bias.data += shift.to(bias)
