"""What layers read: means and second moments of their inputs over images, and what these say of single inputs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mobileprune.errors import UsageError
from mobileprune.pruning.blocks import remove_blocks
from mobileprune.pruning.layers import Inputs, axes_of, image_of, is_depthwise, outline, outputs
from mobileprune.tensors import tensors_in

_PIXELS = 16  # of an image that count at each layer: neighbours say much the same
_MOST_INPUTS = 4096  # of a group of a layer: their moments are as many squared
RIDGE = 0.1  # of the mean second moment of an input: results/reconstruction.csv

Size = tuple[int, int]


class Moments:
    """Sums over what one layer gets: per group of its channels, of the inputs and of their products by pairs.

    first: the first image of it. count: how many places of images were seen.
    """

    def __init__(self, module: nn.Module) -> None:
        self.groups = module.groups if isinstance(module, _ConvNd) else 1
        self.first: Tensor | None = None
        self.count = 0
        self._total, self._products = torch.zeros(()), torch.zeros(())

    def __call__(self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any] | None = None) -> None:
        """Add what ``module`` is about to read, its first tensor; a forward pre-hook."""
        x = tensors_in([*args, *(named or {}).values()])[0]
        if self.first is None:
            self.first = x[:1].detach()
        rows = _rows(module, x).unflatten(1, (self.groups, -1)).transpose(0, 1)  # (groups, rows, inputs)
        self.count += rows.shape[1]
        self._total = self._total + rows.sum(1).double().cpu()
        self._products = self._products + (rows.mT @ rows).double().cpu()

    def mean(self) -> Tensor:
        """(groups, inputs, 1)."""
        return self._total[..., None] / self.count

    def second(self, *, centred: bool) -> Tensor:
        """(groups, inputs, inputs): covariances, or the plain means of products where not centred."""
        mean = self.mean()
        return self._products / self.count - mean @ mean.mT * float(centred)

    def regression(self, kept: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
        """The ridge regression x_gone = A x_kept + c of every group on the inputs that ``kept``, a mask, leaves.

        A is (groups, gone, kept), c is (groups, gone, 1), and 0 where not centred.
        """
        second, mean = self.second(centred=centred), self.mean() * float(centred)
        slopes = torch.linalg.solve(_ridged(second[:, kept][:, :, kept]), second[:, kept][:, :, ~kept]).mT
        return slopes, mean[:, ~kept] - slopes @ mean[:, kept]

    def own_shares(self, weight: Tensor) -> NDArray[np.float64]:
        """For each input (groups x inputs), what no other input can make up for, as a share of the layer's output.

        weight: (groups, outputs, inputs, places of the kernel). Without input i, and with the best weights for all
        others of its group, the squared output changes by w_i^2 / (C^-1)_ii (optimal brain surgeon, layer by layer:
        arXiv 1705.07565 eq. 6; C: the covariance of the inputs), which is summed over outputs and places.
        """
        second = self.second(centred=True)
        power = weight.square().sum((1, 3))  # (groups, inputs)
        alone = power / torch.linalg.inv(_ridged(second)).diagonal(dim1=1, dim2=2)
        whole = (power * second.diagonal(dim1=1, dim2=2)).sum().clamp(min=1e-30)
        return np.asarray((alone / whole).flatten())


def _ridged(second: Tensor) -> Tensor:
    ridge = RIDGE * second.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    return second + ridge[:, None, None] * torch.eye(second.shape[1], dtype=second.dtype)


def by_group(module: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer as (groups, outputs, inputs, places of the kernel), in float64."""
    weight = cast(Tensor, module.weight).detach().double().cpu()
    conv = module if isinstance(module, _ConvNd) else None
    weight = weight.transpose(0, 1) if conv and conv.transposed else weight
    return weight.reshape(conv.groups if conv else 1, -1, weight.shape[1], weight[0, 0].numel())


def unfit(module: nn.Module) -> str:
    """Why no moments are taken of what the layer reads; empty where they can be."""
    if isinstance(module, _ConvNd) and is_depthwise(module):
        return "each of its channels reads one alone"
    if isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
        return "it is transposed and grouped"
    groups = module.groups if isinstance(module, _ConvNd) else 1
    if axes_of(module)["in"] > _MOST_INPUTS * groups:
        return f"it has more than {_MOST_INPUTS} inputs"
    return ""


def input_moments(
    model: nn.Module, layers: Iterable[str], without: Sequence[str], batches: Iterable[Inputs], size: Size
) -> dict[str, Moments]:
    """The moments of what the named ``layers`` read in ``model``, in eval mode, without the blocks ``without``.

    batches: (N, C, H, W), normalised; images of another size than ``size`` (h, w) are resized to it, and a copy of the
    network runs where they are. Norms normalise with the batch at hand, as their statistics are of another size and of
    all blocks. ``model`` stays as it is. Raises UsageError where there are no batches.
    """
    coming = iter(batches)
    first = next(coming, None)
    if first is None:
        raise UsageError("no batches to see what the layers read: give at least one batch of images")
    reference = _reference(model, without, image_of(first).device)
    modules = dict(reference.named_modules())
    there = [name for name in layers if name in modules and "in" in axes_of(modules[name])]  # in no block that went
    found = {name: Moments(modules[name]) for name in there if not unfit(modules[name])}
    hooks = [modules[name].register_forward_pre_hook(moments, with_kwargs=True) for name, moments in found.items()]
    try:
        for batch in itertools.chain([first], coming):
            outputs(reference, _at(batch, size))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _reference(model: nn.Module, without: Sequence[str], device: torch.device) -> nn.Module:
    """``model`` in eval mode on ``device``, without some blocks and without the statistics of its norms."""
    reference = outline(model).eval()
    remove_blocks(reference, without)
    for module in reference.modules():
        if isinstance(module, _NormBase):
            for name in module._buffers:
                module._buffers[name] = None
    there = next((p.device for p in reference.parameters()), device)
    return reference if there == device else copy.deepcopy(reference).to(device)


def _at(batch: Inputs, size: Size) -> Inputs:
    def one(images: Tensor) -> Tensor:
        if images.dim() != 4 or tuple(images.shape[2:]) == size:
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)

    return tuple(map(one, batch)) if isinstance(batch, tuple) else one(batch)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """What the layer gets as (rows, inputs): a row is a place of an image, of which a few are taken."""
    x = x.detach().float()
    by_place = x.flatten(2).mT if isinstance(module, _ConvNd) else x.reshape(len(x), -1, x.shape[-1])
    places = torch.randperm(by_place.shape[1], generator=torch.Generator().manual_seed(0))[:_PIXELS]
    return by_place[:, places.to(x.device)].flatten(0, 1)


def only_multiplies(module: nn.Module, x: Tensor) -> bool:
    """Whether twice the weights give twice the output; of a convolution that standardises them they do not."""
    if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear):
        return True
    x = x.to(cast(Tensor, module.weight).device)
    once, twice = outline(module), outline(module)
    for layer, factor in ((once, 1.0), (twice, 2.0)):
        layer._parameters["weight"] = nn.Parameter(factor * cast(Tensor, module.weight).detach())
        layer._parameters["bias"] = None
    (a,), (b,) = outputs(once, x[:1]), outputs(twice, x[:1])
    return torch.allclose(2.0 * a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
