"""Which channels matter: scores per channel of a group, from the weights, the norms, the data or chance."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mobileprune.errors import UsageError
from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.layers import Axis, Inputs, outline
from mobileprune.pruning.moments import Moments, by_group
from mobileprune.tensors import tensors_in

Criterion = Literal["l2", "bn", "taylor", "reconstruction", "random"]
Batches = Iterable[tuple[Inputs, Tensor]]
"""Batches of (images, labels): (N, C, H, W) normalised at the size of the model, and (N,) class numbers."""


@dataclass(frozen=True)
class Importance:
    """How the channels of ``model`` are scored. Make one with ``Importance.of``.

    l2: group L2, the mean, over the layers that make, scale or read the channel, of the sum of its squared weights
    there: the group importance of DepGraph (arXiv 2301.12900, with p = 2) as torch-pruning computes it. bn: the mean of
    the absolute scales of its batch norms (network slimming, arXiv 1708.06519); l2 for a group without one. taylor: the
    mean over those layers of |sum of weight x gradient|, the first-order change of the loss when it is zeroed (arXiv
    1906.10771). reconstruction: the mean over the layers that read it of what no other channel can make up for there
    (``Moments.own_shares``); l2 for a group that none of them reads. random: uniform noise, the same for the same seed.
    """

    criterion: Criterion
    model: nn.Module
    gradients: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    own_shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    seed: int = 0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        criterion: Criterion = "l2",
        batches: Batches | None = None,
        seed: int = 0,
        moments: Mapping[str, Moments] | None = None,
    ) -> Importance:
        """batches: what ``taylor`` takes its gradients from. moments: of what the layers read, for ``reconstruction``.

        Raises UsageError where the batches are missing.
        """
        if criterion not in get_args(Criterion):
            raise UsageError(f"importance={criterion!r}: choose one of {', '.join(get_args(Criterion))}")
        if criterion == "reconstruction":
            seen = {name: found for name, found in (moments or {}).items() if found.count}
            shares = {name: found.own_shares(by_group(model.get_submodule(name))) for name, found in seen.items()}
            return cls(criterion, model, own_shares=shares)
        if criterion != "taylor":
            return cls(criterion, model, seed=seed)
        if batches is None:
            raise UsageError("importance='taylor' needs labelled images: pass batches=[(images, labels), ...]")
        return cls(criterion, model, gradients_of(model, batches), seed=seed)

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules(remove_duplicate=False))

    def of_channels(
        self, group: ChannelGroup, alive: NDArray[np.int64], kept: Mapping[Axis, Sequence[int]]
    ) -> NDArray[np.float64]:
        """One score per channel in ``alive`` (rows of ``group``); 0 where its layers are gone.

        kept: the base positions that an axis of the model still has, where it was pruned before.
        """
        if self.criterion == "random":
            noise = np.random.default_rng([self.seed, zlib.crc32(group.name.encode())])
            return noise.random(group.count)[alive]
        scores = []
        for axis, members in group.members.items():
            points = self._points(axis)
            if points is None:
                continue
            at = members[alive]
            if axis in kept:
                at = np.searchsorted(np.asarray(kept[axis]), at)
            scores.append(points[at].sum(axis=1))
        if not scores and self.criterion in ("bn", "reconstruction"):
            return Importance("l2", self.model).of_channels(group, alive, kept)
        return np.mean(scores, axis=0) if scores else np.zeros(len(alive))

    def _points(self, axis: Axis) -> NDArray[np.float64] | None:
        """The score of each position of ``axis``; None where it has none or its layer is gone."""
        module = self._modules.get(axis.layer)
        if module is None:
            return None  # inside a removed block, or a bare parameter
        if self.criterion == "reconstruction":
            return self.own_shares.get(axis.layer) if axis.side == "in" else None
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or isinstance(module, nn.PReLU | nn.GroupNorm):
            return None
        if self.criterion == "bn":
            return np.asarray(weight.detach().abs().double().cpu()) if isinstance(module, _NormBase) else None
        if self.criterion == "l2":
            return _per_position(module, weight.detach(), weight.detach(), axis)
        gradient = self.gradients.get(f"{axis.layer}.weight")
        if gradient is None:
            return None
        change = _per_position(module, weight.detach(), gradient, axis)
        return None if change is None else np.abs(change)


def gradients_of(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy over ``batches``, in eval mode, by parameter; ``model`` stays as it is."""
    trial = outline(model).eval()
    for module in trial.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach()))  # the same storage, and a gradient of its own
    seen = 0
    for inputs, labels in batches:
        loss_of(trial, inputs, labels, reduction="sum").backward()
        seen += len(labels)
    if not seen:
        raise UsageError("no batches to take gradients from: give at least one of (images, labels)")
    return {name: p.grad / seen for name, p in trial.named_parameters() if p.grad is not None}


def loss_of(model: nn.Module, inputs: Inputs, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the model's first output."""
    given = model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return nn.functional.cross_entropy(tensors_in(given)[0], labels, reduction=reduction)


def _per_position(module: nn.Module, one: Tensor, other: Tensor, axis: Axis) -> NDArray[np.float64] | None:
    """``one * other``, both shaped like the layer's weight, summed per position of ``axis``.

    A depthwise input counts once. The product is never held: it would be a second set of weights.
    """
    a, b = (np.asarray(t.float().cpu()) for t in (one, other))
    if isinstance(module, _NormBase | nn.LayerNorm):
        return np.asarray(a * b, dtype=np.float64)
    first = (axis.side == "out") != bool(getattr(module, "transposed", False))
    if isinstance(module, _ConvNd) and module.groups > 1 and not first:
        if module.in_channels == module.groups:
            return None
        groups, kernel = module.groups, math.prod(a.shape[2:])
        shape = (groups, len(a) // groups, a.shape[1], kernel)  # (groups, first of each, second, kernel)
        return _summed("gfsk,gfsk->gs", a.reshape(shape), b.reshape(shape)).ravel()
    if first:
        return _summed("fs,fs->f", a.reshape(len(a), -1), b.reshape(len(a), -1))
    return _summed("fsk,fsk->s", a.reshape(*a.shape[:2], -1), b.reshape(*a.shape[:2], -1))


def _summed(how: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.einsum(how, a, b), dtype=np.float64)


def best(scores: NDArray[np.float64], alive: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The ``count`` channels of ``alive`` with the highest scores, ascending; of equal ones the first."""
    order = np.argsort(-scores, kind="stable")
    return np.sort(alive[order[:count]])


def spread_globally(
    scores: Sequence[NDArray[np.float64]], total: int, units: Sequence[int], floors: Sequence[int]
) -> tuple[int, ...]:
    """``total`` channels in all, where the scores are highest across the groups: how many each group keeps.

    scores: of the channels that each group still has, divided here by the group's mean, as torch-pruning does. Channels
    come and go by the unit of their group. No group falls below ``floors``, whatever its scores: a network whose
    narrowest layer collapses is lost. At most one unit of channels less than ``total`` is kept.
    """
    kept = list(floors)
    offers = []
    for number, values in enumerate(scores):
        ranked = np.sort(values / max(float(values.mean()) if len(values) else 0.0, 1e-30))[::-1]
        starts = range(floors[number], len(ranked), units[number])
        offers += [(-float(ranked[at : at + units[number]].mean()), number, at) for at in starts]
    left = total - sum(floors)
    stopped: set[int] = set()
    for _, number, at in sorted(offers):
        size = min(units[number], len(scores[number]) - at)
        if number in stopped or size > left:
            stopped.add(number)  # a group keeps its best channels without a gap
            continue
        kept[number] += size
        left -= size
    return tuple(kept)
