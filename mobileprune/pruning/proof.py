"""Couplings are proven, not believed: a pruned network must answer as the dense one that ignores the same channels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.filters import removed_positions
from mobileprune.pruning.layers import (
    Axis,
    Inputs,
    axes_of,
    axis_sizes,
    is_depthwise,
    like,
    outline,
    outputs,
    slice_layer,
    slice_model,
)

_PERIOD = 262_147  # of the noise that weights are made of: a prime, so that no two filters are alike
_PLACES, _STRIDE = 1009, 101  # the places in it where weights begin, and what is between two of them
_TOLERANCE = 1e-4  # of the output's size, in single precision; a wrong coupling differs in the first digits


def prove(
    model: nn.Module, groups: Sequence[ChannelGroup], example_input: Inputs, *, rarely: bool = False, seed: int = 0
) -> tuple[list[ChannelGroup], list[tuple[ChannelGroup, str]]]:
    """Split ``groups`` into those whose coupling holds and the others, each with the reason why it fails.

    The claim tested: removing channels gives the function that the dense network computes when every layer that reads
    those channels ignores them. It is tested on a copy with random weights and calibrated, perturbed batch-norm
    statistics, so that nothing agrees by luck or is dead. Groups are first tested together, then by halves.
    rarely: some layers run in training only; the cut network must then run in training, too.
    """
    bench = _Bench(model, example_input, rarely, seed)
    refuted: list[tuple[ChannelGroup, str]] = []

    def search(known: list[ChannelGroup], candidates: list[ChannelGroup]) -> list[ChannelGroup]:
        if not candidates:
            return []
        reason = bench.refute([*known, *candidates])
        if reason is None:
            return candidates
        if len(candidates) == 1:
            refuted.append((candidates[0], reason))
            return []
        middle = len(candidates) // 2
        first = search(known, candidates[:middle])
        return [*first, *search([*known, *first], candidates[middle:])]

    return search([], list(groups)), refuted


class _Bench:
    """A randomised copy of the network and what is needed to test groups on it."""

    def __init__(self, model: nn.Module, example_input: Inputs, rarely: bool, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        self.sizes = axis_sizes(model)
        self.model = _randomised(model, generator)
        pair = like(example_input, 2, lambda shape: torch.randn(shape, generator=generator), device="cpu")
        _calibrate(self.model, pair, generator)
        self.inputs = like(example_input, 1, lambda shape: torch.randn(shape, generator=generator), device="cpu")
        self.dense = outputs(self.model, self.inputs)
        self.pair = pair
        self.rarely = rarely and self._trains(self.model)
        self.scale = max((float(t.abs().max()) for t in self.dense), default=0.0)

    def refute(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Keep about half of each group at random; the reason why that is wrong, or None.

        An odd number stays, so that channels that a network splits in halves cannot be balanced by luck.
        """
        kept = [np.sort(self.generator.permutation(g.count)[: _odd(g.count // 2)]) for g in groups]
        return self._compare(removed_positions(groups, kept, self.sizes))

    def _trains(self, model: nn.Module) -> bool:
        """Whether a forward pass in training mode succeeds (on a copy: it moves statistics)."""
        try:
            with torch.random.fork_rng():  # dropout draws from the global state
                outputs(copy.deepcopy(model).train(), self.pair)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            return False
        return True

    def _compare(self, keep: Mapping[Axis, NDArray[np.int64]]) -> str | None:
        pruned = outline(self.model)
        try:
            slice_model(pruned, keep)
            got = outputs(pruned, self.inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            return f"the network fails once they are cut ({_first_line(error)})"
        if [t.shape for t in got] != [t.shape for t in self.dense]:
            return "they are part of the network's output"
        if self.rarely and not self._trains(pruned):
            return "layers that only run in training read them"
        with _ignoring(self.model, pruned, keep):
            wanted = outputs(self.model, self.inputs)
        error_size = max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))
        effect = max(float((a - b).abs().max()) for a, b in zip(self.dense, wanted, strict=True))
        if not error_size <= _TOLERANCE * self.scale:
            return "the traced coupling is wrong: the cut network differs from the one that ignores these channels"
        if not effect > 10 * _TOLERANCE * self.scale:
            return "the coupling cannot be proven: ignoring these channels changes no output"
        return None


def _odd(count: int) -> int:
    return max(1, count - 1 + count % 2)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def _randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random weights of a size that keeps signals alive, whatever the initialisation was.

    Convolutions and linear layers look into one stretch of noise per fan-in, each at a place of its own: a second set
    of weights would double the memory.
    """
    copied = outline(model, "meta").eval()
    layers = [m for m in copied.modules() if isinstance(m, _ConvNd | nn.Linear) and isinstance(m.weight, Tensor)]
    longest: dict[int, int] = {}
    for layer in layers:
        longest[_fan_in(layer.weight)] = max(layer.weight.numel(), longest.get(_fan_in(layer.weight), 0))
    once = torch.empty(_PERIOD).uniform_(-1, 1, generator=generator)
    most = max((parameter.numel() for parameter in copied.parameters()), default=0)
    unit = once.repeat((most + _PLACES) // _PERIOD + 1)
    noise = {fan_in: unit[: size + _PLACES] * (6.0 / fan_in) ** 0.5 for fan_in, size in longest.items()}
    weights = {id(layer.weight): noise[_fan_in(layer.weight)] for layer in layers}
    made: dict[int, nn.Parameter] = {}
    for number, (path, parameter) in enumerate(copied.named_parameters()):
        start, size = number * _STRIDE % _PLACES, parameter.numel()
        if id(parameter) in weights:
            value = weights[id(parameter)][start : start + size].view(parameter.shape)
        else:
            draw = unit[start : start + size].view(parameter.shape) * 0.5
            value = draw if path.endswith("bias") else 1.0 + draw  # scales: norms, layer scale, PReLU
        made[id(parameter)] = nn.Parameter(value, requires_grad=False)
    for module, original in zip(copied.modules(), model.modules(), strict=True):
        module._parameters.update({n: p if p is None else made[id(p)] for n, p in module._parameters.items()})
        for name, buffer in original._buffers.items():
            if buffer is not None:
                old = buffer.detach().cpu().clone()
                module._buffers[name] = old.float() if old.is_floating_point() else old
    return copied


def _fan_in(weight: Tensor) -> int:
    return max(1, weight[0].numel())


def _calibrate(model: nn.Module, inputs: Inputs, generator: torch.Generator) -> None:
    """Fit the batch-norm statistics in one pass, then move them, so that they are neither trivial nor absurd."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    outputs(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        assert norm.running_mean is not None and norm.running_var is not None
        noise = torch.rand(norm.running_var.shape, generator=generator).to(norm.running_var)
        norm.running_mean += (noise - 0.5) * (norm.running_var + 1e-3).sqrt()
        norm.running_var.mul_(0.7 + 0.6 * noise).add_(1e-3)


@contextmanager
def _ignoring(model: nn.Module, pruned: nn.Module, keep: Mapping[Axis, NDArray[np.int64]]) -> Iterator[None]:
    """While this lasts, every layer of ``model`` that reads removed channels ignores them."""
    hooks: list[Any] = []
    replaced: dict[str, nn.Module] = {}
    for axis, positions in keep.items():
        if axis.side == "param":
            continue
        module = model.get_submodule(axis.layer)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            size = int(module.weight.numel()) if module.weight is not None else int(max(positions)) + 1
            replaced[axis.layer] = module
            model.set_submodule(axis.layer, _OnKept(pruned.get_submodule(axis.layer), positions, size))
        elif axis.side == "in" and _standardised(module):
            reader = outline(module)
            slice_layer(reader, None, torch.as_tensor(positions))
            replaced[axis.layer] = module
            model.set_submodule(axis.layer, nn.Sequential(_Selected(positions), reader))
        elif axis.side == "in" and not is_depthwise(module):
            mask = torch.zeros(axes_of(module)["in"])
            mask[torch.as_tensor(positions)] = 1.0
            if isinstance(module, _ConvNd):
                mask = mask.view(-1, *[1] * len(module.kernel_size))
            hooks.append(module.register_forward_pre_hook(lambda _m, args, mask=mask: (args[0] * mask, *args[1:])))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for path, original in replaced.items():
            model.set_submodule(path, original)


def _standardised(module: nn.Module) -> bool:
    """A convolution that does more than to convolve: its weights may be standardised over the channels it reads."""
    own = isinstance(module, _ConvNd) and not is_depthwise(module)
    return own and type(module).__module__.partition(".")[0] != "torch" and len(list(module.parameters())) > 1


class _Selected(nn.Module):
    """The kept channels of its input."""

    def __init__(self, kept: NDArray[np.int64]) -> None:
        super().__init__()
        self.register_buffer("kept", torch.as_tensor(kept))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.get_buffer("kept"))


class _OnKept(nn.Module):
    """A norm over channels that sees only the kept ones: its statistics mix channels, so zeros would count."""

    def __init__(self, norm: nn.Module, kept: NDArray[np.int64], size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size
        self.register_buffer("kept", torch.as_tensor(kept))

    def forward(self, x: Tensor) -> Tensor:
        first = isinstance(self.norm, nn.GroupNorm) or (x.dim() == 4 and x.shape[1] == self.size != x.shape[-1])
        dim = 1 if first else x.dim() - 1
        kept = self.get_buffer("kept").to(x.device)
        return torch.zeros_like(x).index_copy(dim, kept, self.norm(x.index_select(dim, kept)))
