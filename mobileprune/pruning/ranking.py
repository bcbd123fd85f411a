"""Which blocks matter least: by the loss without them, by first-order Taylor, or by how little they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.blocks import Block, Ranking, rank_blocks, without
from mobileprune.pruning.importance import Batches, loss_of
from mobileprune.pruning.layers import Inputs, outline, outputs
from mobileprune.tensors import tensors_in

Criterion = Literal["loss", "taylor", "similarity"]


def rank(
    model: nn.Module, blocks: Sequence[Block], batches: Batches, *, by: Criterion = "loss", greedy: bool = False
) -> Ranking:
    """What each of ``blocks`` is worth on ``batches`` of (images, labels), in eval mode; the lowest goes first.

    loss: how much the mean cross-entropy grows without the block; one pass over the batches per block. taylor: the mean
    over the images of the first-order estimate of that change, |gradient x (what would be handed on - what is)| (arXiv
    1906.10771); one pass in all. similarity: the mean over the images of 1 - cosine of what the block gets and gives,
    1 - cosine of its output before and after where it is listed and its shape agrees; needs no labels, one pass.

    greedy: rank the remaining blocks anew, without those that are gone, after each removal; values are then places in
    that order. Raises UsageError for no batches, and for similarity where a block gives channels of its own.
    """
    if by not in get_args(Criterion):
        raise UsageError(f"by={by!r}: choose one of {', '.join(get_args(Criterion))}")
    kept = list(batches)
    if not kept:
        raise UsageError("no batches to rank the blocks on: give at least one of (images, labels)")
    if by == "loss":
        return rank_blocks(outline(model).eval(), blocks, lambda trial: _mean_loss(trial, kept), greedy=greedy)
    score = _taylor if by == "taylor" else _similarity
    if not greedy:
        return score(outline(model).eval(), blocks, kept)
    gone: list[Block] = []
    left = list(reversed(blocks))  # of equal ones the later goes first
    while left:
        scores = score(without(model, gone).eval(), left, kept)
        least = min(left, key=lambda block: scores[block.name])
        gone.append(least)
        left.remove(least)
    return {block.name: float(place) for place, block in enumerate(gone)}


def _mean_loss(model: nn.Module, batches: Sequence[tuple[Inputs, Tensor]]) -> float:
    with torch.no_grad():
        total = sum(float(loss_of(model, inputs, labels, "sum")) for inputs, labels in batches)
    return total / sum(len(labels) for _, labels in batches)


class _Ends:
    """What blocks get and give in one call, while hooked on."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        self.into: dict[str, Tensor] = {}
        self.out: dict[str, Tensor] = {}
        self._hooks = []
        for block in blocks:
            first, last = _first_and_last(model, block)
            self._hooks.append(first.register_forward_pre_hook(lambda _m, a, n=block.name: self._enter(n, a)))
            self._hooks.append(last.register_forward_hook(lambda _m, _a, out, n=block.name: self._leave(n, out)))

    def _enter(self, name: str, args: tuple[Tensor, ...]) -> None:
        self.into[name] = tensors_in(args)[0].detach().clone()  # what follows may overwrite it

    def _leave(self, name: str, output: Tensor) -> Tensor:
        self.out[name] = output
        if output.requires_grad:
            output.retain_grad()
            return output.clone()  # an operation in place on what is handed on must not touch what is kept
        self.out[name] = output.clone()
        return output

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _first_and_last(model: nn.Module, block: Block) -> tuple[nn.Module, nn.Module]:
    """The modules of ``block`` that run first and last, in the order of the module tree."""
    parts = [path for path, _ in model.named_modules() if path in block.parts]
    return model.get_submodule(parts[0]), model.get_submodule(parts[-1])


def _taylor(model: nn.Module, blocks: Sequence[Block], batches: Sequence[tuple[Inputs, Tensor]]) -> Ranking:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach()))
    ends = _Ends(model, blocks)
    totals = dict.fromkeys((block.name for block in blocks), 0.0)
    images = 0
    try:
        for inputs, labels in batches:
            loss_of(model, inputs, labels, "sum").backward()
            images += len(labels)
            for block in blocks:
                given, gradient = ends.out[block.name].detach(), ends.out[block.name].grad
                if gradient is None:
                    continue
                instead = torch.zeros_like(given) if block.listed else ends.into[block.name]
                change = (gradient * (instead - given)).flatten(1).sum(1)
                totals[block.name] += float(change.abs().sum())
    finally:
        ends.close()
    return {name: total / images for name, total in totals.items()}


def _similarity(model: nn.Module, blocks: Sequence[Block], batches: Sequence[tuple[Inputs, Tensor]]) -> Ranking:
    grown = [block.name for block in blocks if block.leaves]
    if grown:
        raise UsageError(
            f"{grown[0]} gives channels of its own, which are like none that it gets: rank by loss or taylor"
        )
    ends = _Ends(model, blocks)
    totals: Mapping[str, float] = dict.fromkeys((block.name for block in blocks), 0.0)
    images = 0
    try:
        for inputs, labels in batches:
            outputs(model, inputs)
            images += len(labels)
            totals = {block.name: totals[block.name] + _unlike(block, ends) for block in blocks}
    finally:
        ends.close()
    return {name: total / images for name, total in totals.items()}


def _unlike(block: Block, ends: _Ends) -> float:
    """Sum over the images of 1 - cosine; where a list's entry is added to what it gets: of that and the sum."""
    before, given = ends.into[block.name].flatten(1).double(), ends.out[block.name].flatten(1).double()
    after = before + given if block.listed else given
    return float((1.0 - nn.functional.cosine_similarity(before, after)).sum())
