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
    first_sample,
    image_of,
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
        self.batch = like(example_input, 2, lambda shape: torch.randn(shape, generator=generator), device="cpu")
        self.inputs, self.dense = _calibrated(self.model, self.batch, generator)
        self.rarely = rarely and self._trains(self.model)

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
                outputs(copy.deepcopy(model).train(), self.batch)
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
        limits = [_TOLERANCE * max(_largest(a), _largest(b)) for a, b in zip(self.dense, wanted, strict=True)]
        errors = [_largest(a - b) for a, b in zip(got, wanted, strict=True)]
        effects = [_largest(a - b) for a, b in zip(self.dense, wanted, strict=True)]
        if not all(error <= limit for error, limit in zip(errors, limits, strict=True)):  # undefined values fail, too
            return "the traced coupling is wrong: the cut network differs from the one that ignores these channels"
        if not any(effect > 10 * limit for effect, limit in zip(effects, limits, strict=True)):
            return "the coupling cannot be proven: ignoring these channels changes no output"
        return None


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


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
    copied = outline(model).eval()
    layers = [m for m in copied.modules() if isinstance(m, _ConvNd | nn.Linear) and isinstance(m.weight, Tensor)]
    fans = {id(layer.weight): _fan_in(layer.weight) for layer in layers}
    longest: dict[int, int] = {}  # by fan-in, 0 for what is no weight
    for parameter in copied.parameters():
        fan_in = fans.get(id(parameter), 0)
        longest[fan_in] = max(parameter.numel(), longest.get(fan_in, 0))
    once = torch.empty(_PERIOD).uniform_(-1, 1, generator=generator)
    noise = {fan_in: _stretch(once, size + _PLACES, fan_in) for fan_in, size in longest.items()}
    made: dict[int, nn.Parameter] = {}
    for number, (path, parameter) in enumerate(copied.named_parameters()):
        start, fan_in = number * _STRIDE % _PLACES, fans.get(id(parameter), 0)
        value = noise[fan_in][start : start + parameter.numel()].view(parameter.shape)
        if not fan_in and not path.endswith("bias"):
            value = 1.0 + value  # scales: norms, layer scale, PReLU
        made[id(parameter)] = nn.Parameter(value, requires_grad=False)
    for module, original in zip(copied.modules(), model.modules(), strict=True):
        module._parameters.update({n: p if p is None else made[id(p)] for n, p in module._parameters.items()})
        for name, buffer in original._buffers.items():
            if buffer is not None:
                old = buffer.detach().cpu()
                old = old.float() if old.is_floating_point() else old
                module._buffers[name] = old if isinstance(module, _NormBase) else old.clone()  # a norm's are replaced
    return copied


def _stretch(once: Tensor, size: int, fan_in: int) -> Tensor:
    """At least ``size`` numbers of the noise, as large as suits weights of this fan-in (0: within a half)."""
    unit = once[:size] * ((6.0 / fan_in) ** 0.5 if fan_in else 0.5)
    return unit.repeat(-(-size // _PERIOD)) if size > _PERIOD else unit


def _fan_in(weight: Tensor) -> int:
    return max(1, weight[0].numel())


def _calibrated(model: nn.Module, batch: Inputs, generator: torch.Generator) -> tuple[Inputs, list[Tensor]]:
    """Give the batch norms statistics near those of ``batch``, neither trivial nor absurd.

    The first sample, and what the network answers to it.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    noise = torch.rand(sum(norm.num_features for norm in norms), generator=generator)
    parts = [norm.num_features for norm in norms]
    shifts = dict(zip(norms, (noise - 0.5).split(parts), strict=True))
    factors = dict(zip(norms, (0.7 + 0.6 * noise).split(parts), strict=True))
    called: list[nn.Module] = []

    def fit(norm: _NormBase, args: tuple[Tensor, ...]) -> None:
        called.append(norm)
        x = args[0].reshape(*args[0].shape[:2], -1)
        mean = x.mean(2).mean(0)
        var = x.sub(mean[:, None]).square_().mean(2).mean(0)  # torch.var takes far longer
        var = var.add_(0.05 * var.mean() + 1e-3)  # a channel that hardly varied here would drown all others elsewhere
        norm._buffers["running_mean"] = mean.addcmul_(shifts[norm], var.sqrt())
        norm._buffers["running_var"] = var.mul_(factors[norm])

    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    try:
        answers = outputs(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    sample, size = first_sample(batch), len(image_of(batch))
    once = len(called) == len(set(called))  # else a norm has other statistics now than it began with
    if once and all(t.dim() and len(t) == size for t in answers):
        return sample, [t[:1] for t in answers]
    return sample, outputs(model, sample)


@contextmanager
def _ignoring(model: nn.Module, pruned: nn.Module, keep: Mapping[Axis, NDArray[np.int64]]) -> Iterator[None]:
    """While this lasts, every layer of ``model`` that reads removed channels ignores them."""
    hooks: list[Any] = []
    replaced: dict[str, nn.Module] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for axis, positions in keep.items():
        if axis.side == "param":
            continue
        module = modules[axis.layer]
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
            stays = np.zeros(axes_of(module)["in"], dtype=np.float32)
            stays[positions] = 1.0
            spatial = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
            mask = torch.from_numpy(stays.reshape(-1, *[1] * spatial))
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
