"""Depth: the residual blocks that can be taken out, found by following tensors, and the order in which to do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobileprune.pruning.layers import Axis, Inputs, outline, outputs, quickly, slice_model

Ranking = dict[str, float]
"""Loss increase when a block is skipped, by block name: the block with the lowest goes first. JSON as it is."""

_INFINITE = 1e30  # a skipped block that makes the loss infinite or undefined; JSON has no infinity

# Operations that hand an identity path on: element-wise functions of one tensor, copies and views.
_PASSING = {
    "relu", "relu6", "hardtanh", "hardswish", "silu", "gelu", "leaky_relu", "elu", "mish", "celu", "selu",
    "_prelu_kernel", "prelu", "clamp", "clamp_min", "clamp_max", "clone", "detach", "alias", "_to_copy", "view",
    "_unsafe_view", "contiguous", "dropout", "native_dropout", "lift_fresh",
}  # fmt: skip


_LAYERS = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear}


@dataclass(frozen=True)
class Block:
    """A part of the network that can be taken out: a residual branch, a plain layer, an entry of a list."""

    name: str
    shape: tuple[int, ...]
    """(C, H, W) of what it gives; unless it is listed that is also the shape of what it gets."""
    parameters: int
    also: tuple[str, ...] = ()
    """Modules that go with it: the norm and the activation of a bare convolution."""
    listed: bool = False
    """It is taken out of the list that its parent loops over; otherwise ``nn.Identity`` takes its place."""
    leaves: Mapping[Axis, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    """The positions that other layers keep where the channels that it gives go with it (DenseNet's)."""

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.name, *self.also)


def find_blocks(model: nn.Module, example_input: Inputs, *, verify: bool = True) -> tuple[list[Block], list[str]]:
    """The removable blocks of ``model``, in execution order, and notes on those that looked so and are not.

    A block is the innermost module, called once with one tensor, that returns a tensor of the same shape into which
    its input is added unchanged (an activation before or after the addition may stand on that path), and that holds a
    convolution or linear layer. No class name is looked at. verify: False leaves untried whether each can really go.
    """
    names = {module: name for name, module in model.named_modules() if name and _may_add(module)}
    holders = Holders(model)
    tracer = _Tracer()
    with _hooked(names, tracer), tracer:
        shapes = [t.shape for t in outputs(model, example_input)]
    found = {
        id(call.module): call
        for call in tracer.finished
        if call.residual and not call.extra and tracer.count[id(call.module)] == 1
        if holders.owns(names[call.module], call.module)
    }
    innermost = [call for call in found.values() if not any(id(m) in found for m in _below(call.module))]
    blocks = [
        Block(names[call.module], tuple(call.shape[1:]), sum(p.numel() for p in call.module.parameters()))
        for call in sorted(innermost, key=lambda call: call.started)
    ]
    return verified(model, blocks, example_input, shapes) if verify else (blocks, [])


def _may_add(module: nn.Module) -> bool:
    """Whether ``module`` holds a convolution or linear layer, and is more than one."""
    return type(module) not in _LAYERS and has_weights(module)


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if m is not module)


def has_weights(module: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.conv._ConvNd | nn.Linear) for m in module.modules())


class Holders:
    """Where each module and parameter of ``model`` is found, to say whether a block has its own."""

    def __init__(self, model: nn.Module) -> None:
        self.paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            for part in (module, *module.parameters(recurse=False)):
                self.paths.setdefault(id(part), []).append(path)

    def owns(self, name: str, block: nn.Module) -> bool:
        """Neither a module nor a parameter of the block at ``name`` is also found outside of it."""
        parts = (part for module in block.modules() for part in (module, *module.parameters(recurse=False)))
        paths = (path for part in parts for path in self.paths[id(part)])
        return all(path == name or path.startswith(name + ".") for path in paths)


def verified(
    model: nn.Module, blocks: list[Block], example_input: Inputs, shapes: Sequence[torch.Size]
) -> tuple[list[Block], list[str]]:
    """Keep the blocks that can really be taken out, tried together and, where that fails, one by one.

    shapes: of what the whole model gives.
    """

    def works(some: Sequence[Block]) -> bool:
        trial = outline(model)
        called: list[str] = []
        for block in some:
            for part in block.parts:
                trial.get_submodule(part).register_forward_hook(lambda *_a, n=part: called.append(n))
        take_out(trial, some)
        try:
            return [t.shape for t in outputs(trial, example_input)] == list(shapes) and not called
        except (RuntimeError, ValueError, AttributeError, TypeError, IndexError, KeyError):
            return False

    if not blocks or works(blocks):
        return blocks, []
    good: list[Block] = []
    notes = []
    for block in blocks:
        if works([*good, block]):
            good.append(block)
        else:
            what = "adds its input" if not block.also else "keeps the shape"
            notes.append(f"depth: {block.name} {what}, but the network fails without it; it stays")
    return good, notes


def remove_blocks(model: nn.Module, names: Sequence[str], listed: Sequence[str] = ()) -> None:
    """Put ``nn.Identity`` in the place of each named block of ``model``; those ``listed`` leave their parent's list.

    Other names stay as they are.
    """
    for name in names:
        if name in listed:
            owner, _, key = name.rpartition(".")
            del model.get_submodule(owner)._modules[key]
        else:
            model.set_submodule(name, nn.Identity())


def take_out(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Take ``blocks`` out of ``model`` in place, with the channels that go with them."""
    leaves: dict[Axis, tuple[int, ...]] = {}
    for block in blocks:
        for axis, positions in block.leaves.items():
            there = set(leaves.get(axis, positions))
            leaves[axis] = tuple(i for i in positions if i in there)
    slice_model(model, leaves)
    names = [part for block in blocks for part in block.parts]
    remove_blocks(model, names, [block.name for block in blocks if block.listed])


def without(model: nn.Module, blocks: Sequence[Block]) -> nn.Module:
    """``model`` without ``blocks``: another module tree over the same tensors, so that ``model`` stays as it is."""
    trial = outline(model)
    take_out(trial, blocks)
    return trial


def rank_blocks(
    model: nn.Module, blocks: Sequence[Block], loss: Callable[[nn.Module], float], *, greedy: bool = False
) -> Ranking:
    """How much ``loss(model)`` grows when each block is skipped alone. Smaller is better to remove.

    greedy: after each removal the blocks that are left are ranked anew without it, in quadratic time. A block's value
    is then its place in that order: 0 for the first to go.
    """
    if greedy:
        return _rank_greedily(model, blocks, loss)
    base = loss(model)
    return {block.name: _finite(float(loss(without(model, [block]))) - float(base)) for block in blocks}


def _rank_greedily(model: nn.Module, blocks: Sequence[Block], loss: Callable[[nn.Module], float]) -> Ranking:
    gone: list[Block] = []
    left = list(reversed(blocks))  # of equal ones the later goes first
    while left:
        losses = {block.name: _finite(float(loss(without(model, [*gone, block])))) for block in left}
        least = min(left, key=lambda block: losses[block.name])
        gone.append(least)
        left.remove(least)
    return {block.name: float(place) for place, block in enumerate(gone)}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _INFINITE


def removal_order(blocks: Sequence[Block], ranking: Mapping[str, float] | None) -> list[str]:
    """Names of ``blocks`` in the order of removal, lowest ranked first; equal ones later in the network first.

    Without a ranking blocks go from the stage (blocks of one shape) that has lost the smallest share of its own, the
    later stage first, its last block first: evenly spread, and a function of the network alone. Raises ValueError
    where the ranking lacks a block.
    """
    if ranking is None:
        stages: dict[tuple[int, ...], list[str]] = {}
        for block in blocks:
            stages.setdefault(block.shape, []).append(block.name)
        place = {}
        for number, names in enumerate(stages.values()):
            for gone, name in enumerate(reversed(names), 1):
                place[name] = (gone / (len(names) + 1), -number)
        return sorted(place, key=lambda name: place[name])
    missing = [block.name for block in blocks if block.name not in ranking]
    if missing:
        raise ValueError(f"the ranking has no value for block {missing[0]}: rank the blocks of this network again")
    later_first = list(reversed(blocks))
    return [b.name for b in sorted(later_first, key=lambda b: ranking[b.name])]


@dataclass
class _Call:
    """One call of a module: its input, and whether that input was found added into the output."""

    module: nn.Module
    started: int
    shape: torch.Size
    extra: bool  # further tensors went in
    residual: bool = False


class _Tracer(TorchDispatchMode):
    """Follows each open call's input through the operations that keep it: ``paths[id(tensor)][call] = added``."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[int, dict[int, bool]] = {}
        self.alive: list[Tensor] = []
        self.open: list[_Call | None] = []
        self.finished: list[_Call] = []
        self.started = 0
        self.count: dict[int, int] = {}

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.count[id(module)] = self.count.get(id(module), 0) + 1
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if not args or not isinstance(args[0], Tensor):
            self.open.append(None)
            return
        self.started += 1
        call = _Call(module, self.started, args[0].shape, extra=len(tensors) > 1)
        self.open.append(call)
        self._mark(args[0], {id(call): False})

    def leave(self, output: Any) -> None:
        call = self.open.pop()
        if call is None:
            return
        same = isinstance(output, Tensor) and output.shape == call.shape
        call.residual = same and self.paths.get(id(output), {}).get(id(call), False)
        self.finished.append(call)

    def _mark(self, tensor: Tensor, calls: Mapping[int, bool]) -> None:
        if calls:
            self.paths.setdefault(id(tensor), {}).update(calls)
            self.alive.append(tensor)  # an id is unique only while its tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = quickly(func, args, kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        inplace = name.endswith("_") and not name.endswith("__")
        name = name.removesuffix("_") if inplace else name
        calls: dict[int, bool] = {}
        operands = [a for a in args if isinstance(a, Tensor)]
        if name == "add" and len(operands) == 2 and (kwargs or {}).get("alpha", 1) == 1:
            for operand in (o for o in operands if o.shape == result.shape):
                calls.update(dict.fromkeys(self.paths.get(id(operand), {}), True))
        elif name in _PASSING and operands and isinstance(result, Tensor) and result.shape == operands[0].shape:
            calls = self.paths.get(id(operands[0]), {})
        if inplace and operands:
            self.paths[id(operands[0])] = {}  # overwritten: what it carried is what the operation leaves
        if isinstance(result, Tensor):
            self._mark(result, dict(calls))
        return result


@contextmanager
def _hooked(names: Mapping[nn.Module, str], tracer: _Tracer) -> Iterator[None]:
    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(tracer.enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(lambda _m, _a, output: tracer.leave(output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
