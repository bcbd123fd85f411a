"""Depth of plain networks: whole layers (convolution, norm, activation) that hand on a tensor of the shape they get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from mobileprune.pruning.blocks import Block, Holders, verified
from mobileprune.pruning.layers import Inputs, axes_of, is_depthwise, outputs
from mobileprune.tensors import tensors_in


def find_plain_layers(model: nn.Module, example_input: Inputs) -> tuple[list[Block], list[str]]:
    """The removable layers of a network without residual blocks, in execution order, and notes (DBP, arXiv 1912.10178).

    A layer is the largest module, called once with one tensor, that returns a tensor of the same shape, holds exactly
    one ordinary (ungrouped) convolution, and lies on the trunk: nothing computed before it, and of what it computes
    nothing but its output, is read after it. Where that is a bare convolution, the norm and the activation module
    that read its output go with it; so does a depthwise layer of the same shape right before it. A module of several
    layers (an inception or fire module, a unit with parallel convolutions) counts where it holds no such layer.
    """
    names = {module: name for name, module in model.named_modules() if name}
    holders = Holders(model)
    reads = _Reads()
    with _hooked(names, reads), reads:
        shapes = [t.shape for t in outputs(model, example_input)]
    once = [call for call in reads.calls if reads.count[call.module] == 1 and call.one and call.same_shape]
    trunk = [call for call in once if holders.owns(names[call.module], call.module) and reads.on_trunk(call)]
    layers = [call for call in trunk if _ordinary(call.module) == 1]
    largest = [call for call in layers if not any(_inside(call, other) for other in layers)]
    several = [call for call in trunk if _ordinary(call.module) > 1 and not any(_inside(o, call) for o in layers)]
    units = [call for call in several if not any(_inside(other, call) for other in several)]
    blocks = []
    for call in sorted([*largest, *units], key=lambda call: call.started):
        parts = [names[m] for m in (call.module, *_before(call, trunk), *_after(call, trunk))]
        parameters = sum(p.numel() for path in parts for p in model.get_submodule(path).parameters())
        blocks.append(Block(parts[0], tuple(call.shape[1:]), parameters, tuple(parts[1:])))
    return verified(model, blocks, example_input, shapes)


def _inside(inner: _Call, outer: _Call) -> bool:
    return inner.module is not outer.module and inner.module in outer.module.modules()


def _is_ordinary(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == 1


def _ordinary(module: nn.Module) -> int:
    """Convolutions that mix channels in ``module``; -1 where its only such layer is grouped or linear."""
    mixing = [m for m in module.modules() if "in" in axes_of(m) and not is_depthwise(m)]
    if len(mixing) == 1:
        return 1 if _is_ordinary(mixing[0]) else -1
    return sum(isinstance(m, _ConvNd) for m in mixing)


@dataclass
class _Call:
    """One call of a module: when it began and ended (in operations), what it read and gave."""

    module: nn.Module
    started: int
    source: int
    shape: tuple[int, ...]
    one: bool  # one tensor went in
    ended: int = 0
    result: int = 0
    same_shape: bool = False


def _after(call: _Call, trunk: list[_Call]) -> Iterator[nn.Module]:
    """After a bare convolution: the norm and activation modules that read its output, one after the other."""
    if not isinstance(call.module, _ConvNd):
        return
    for following in trunk:
        kind = type(following.module)
        norm = bool(axes_of(following.module)) and "in" not in axes_of(following.module)
        simple = norm or kind.__module__ == "torch.nn.modules.activation"
        if simple and following.started == call.ended and following.source == call.result:
            yield following.module
            call = following


def _before(call: _Call, trunk: list[_Call]) -> Iterator[nn.Module]:
    """The depthwise layer whose output, and nothing else, the ordinary one reads."""
    for earlier in trunk:
        depthwise = any(is_depthwise(m) for m in earlier.module.modules()) and not _ordinary(earlier.module)
        if depthwise and earlier.ended == call.started and earlier.result == call.source:
            yield earlier.module
            return


class _Reads(TorchDispatchMode):
    """Notes when each tensor that stems from the network's input is made, and each time that one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0
        self.made: dict[int, int] = {}
        self.alive: list[Tensor] = []
        self.read: list[tuple[int, int, int]] = []  # (when, which tensor, when that was made)
        self.open: list[_Call] = []
        self.calls: list[_Call] = []
        self.count: dict[nn.Module, int] = {}

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.count[module] = self.count.get(module, 0) + 1
        tensors = tensors_in([*args, *kwargs.values()])
        for tensor in tensors if not self.made else []:
            self._make(tensor)  # the network's own input
        one = len(tensors) == 1 and bool(args) and args[0] is tensors[0]
        shape = tuple(tensors[0].shape) if one else ()
        self.open.append(_Call(module, self.clock, id(tensors[0]) if one else 0, shape, one))

    def leave(self, output: Any) -> None:
        call = self.open.pop()
        call.ended = self.clock
        if isinstance(output, Tensor):
            call.result, call.same_shape = id(output), tuple(output.shape) == call.shape
        self.calls.append(call)

    def on_trunk(self, call: _Call) -> bool:
        """Whether all that the network computes after ``call`` comes from its output, and it reads but its input."""
        for when, which, made in self.read:
            if when <= call.started:
                continue
            if made <= call.started and not (which == call.source and when <= call.ended):
                return False
            if call.started < made <= call.ended < when and which != call.result:
                return False
        return True

    def _make(self, tensor: Tensor) -> None:
        self.made[id(tensor)] = self.clock
        self.alive.append(tensor)  # an id is unique only while its tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.clock += 1
        read = [t for t in tensors_in([*args, *(kwargs or {}).values()]) if id(t) in self.made]
        self.read.extend((self.clock, id(t), self.made[id(t)]) for t in read)
        if read:
            for tensor in tensors_in(result):
                self._make(tensor)
        return result


@contextmanager
def _hooked(names: Mapping[nn.Module, str], reads: _Reads) -> Iterator[None]:
    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(reads.enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(lambda _m, _a, output: reads.leave(output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
