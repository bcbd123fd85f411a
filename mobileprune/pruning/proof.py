"""Couplings are proven, not believed: a pruned network must answer as the dense one that ignores the same channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.filters import removed_positions
from mobileprune.pruning.layers import Axis, axes_of, axis_sizes, is_depthwise, outputs, slice_model

_TOLERANCE = 1e-8  # of the output's size, in double precision; a wrong coupling differs in the first digits
_TOLERANCE_FLOAT = 1e-4  # for networks that only run in single precision


def prove(
    model: nn.Module, groups: Sequence[ChannelGroup], example_input: Tensor, *, seed: int = 0
) -> tuple[list[ChannelGroup], list[tuple[ChannelGroup, str]]]:
    """Split ``groups`` into those whose coupling holds and the others, each with the reason why it fails.

    The claim tested: removing channels gives the function that the dense network computes when every layer that reads
    those channels ignores them. It is tested on a copy with random weights and calibrated, perturbed batch-norm
    statistics, so that nothing agrees by luck or is dead. Groups are first tested together, then by halves.
    """
    bench = _Bench(model, example_input, seed)
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

    def __init__(self, model: nn.Module, example_input: Tensor, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        torch_generator = torch.Generator().manual_seed(seed)
        shape = (4, *example_input.shape[1:])
        inputs = torch.randn(shape, generator=torch_generator).to(example_input.device)
        self.model, self.inputs, self.tolerance = _randomised(model, inputs, torch_generator)
        self.sizes = axis_sizes(self.model)
        self.inputs = self.inputs[:2]
        self.dense = outputs(self.model, self.inputs)
        self.rarely = uncalled(self.model, self.inputs) and self._trains(self.model)
        self.scale = max((float(t.abs().max()) for t in self.dense), default=0.0)

    def refute(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Remove half of each group at random, twice; the reason why that is wrong, or None."""
        for _ in range(2):
            kept = [np.sort(self.generator.permutation(g.count)[: max(1, g.count // 2)]) for g in groups]
            reason = self._compare(removed_positions(groups, kept, self.sizes))
            if reason is not None:
                return reason
        return None

    def _trains(self, model: nn.Module) -> bool:
        """Whether a forward pass in training mode succeeds (on a copy: it moves statistics)."""
        try:
            with torch.random.fork_rng():  # dropout draws from the global state
                outputs(copy.deepcopy(model).train(), self.inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            return False
        return True

    def _compare(self, keep: Mapping[Axis, NDArray[np.int64]]) -> str | None:
        pruned = copy.deepcopy(self.model)
        try:
            slice_model(pruned, {axis: positions.tolist() for axis, positions in keep.items()})
            got = outputs(pruned, self.inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            return f"the network fails once they are cut ({_first_line(error)})"
        if [t.shape for t in got] != [t.shape for t in self.dense]:
            return "they are part of the network's output"
        if self.rarely and not self._trains(pruned):
            return "layers that only run in training read them"
        masked = copy.deepcopy(self.model)
        _ignore(masked, pruned, keep)
        wanted = outputs(masked, self.inputs)
        error_size = max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))
        effect = max(float((a - b).abs().max()) for a, b in zip(self.dense, wanted, strict=True))
        if not error_size <= self.tolerance * self.scale:
            return "the traced coupling is wrong: the cut network differs from the one that ignores these channels"
        if not effect > 10 * self.tolerance * self.scale:
            return "the coupling cannot be proven: ignoring these channels changes no output"
        return None


def uncalled(model: nn.Module, inputs: Tensor) -> bool:
    """Whether some layer does not run in eval mode, such as an auxiliary head."""
    called: set[nn.Module] = set()
    layers = [module for module in model.modules() if axes_of(module)]
    hooks = [module.register_forward_hook(lambda m, *_: called.add(m)) for module in layers]
    outputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return len(called) < len(set(layers))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def _randomised(model: nn.Module, inputs: Tensor, generator: torch.Generator) -> tuple[nn.Module, Tensor, float]:
    """A copy in double precision with random weights and running statistics that fit them, ready in eval mode."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    _fill(copied, generator)
    for kind, tolerance in ((torch.float64, _TOLERANCE), (torch.float32, _TOLERANCE_FLOAT)):
        candidate = copy.deepcopy(copied).to(kind)
        try:
            _calibrate(candidate, inputs.to(kind), generator)
        except RuntimeError:
            if kind is torch.float32:
                raise
            continue  # the network makes single-precision tensors of its own
        return candidate, inputs.to(kind), tolerance
    raise AssertionError("unreachable")


def _fill(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights of a size that keeps signals alive, whatever the initialisation was (zero-init branches too)."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if isinstance(module, _ConvNd | nn.Linear) and name == "weight":
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
                parameter.copy_(noise * (2.0 / fan_in) ** 0.5)
            elif name == "bias":
                parameter.copy_(noise * 0.3)
            else:
                parameter.copy_(1.0 + 0.3 * noise.clamp(-2, 2))  # scales: norms, layer scale, PReLU


def _calibrate(model: nn.Module, inputs: Tensor, generator: torch.Generator) -> None:
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


def _ignore(masked: nn.Module, pruned: nn.Module, keep: Mapping[Axis, NDArray[np.int64]]) -> None:
    """Make every layer of the dense ``masked`` that reads removed channels ignore them."""
    for axis, positions in keep.items():
        if axis.side == "param":
            continue
        module = masked.get_submodule(axis.layer)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            size = int(module.weight.numel()) if module.weight is not None else int(max(positions)) + 1
            masked.set_submodule(axis.layer, _OnKept(pruned.get_submodule(axis.layer), positions, size))
        elif axis.side == "in" and not is_depthwise(module):
            _zero_inputs(module, positions)


def _zero_inputs(module: nn.Module, kept: NDArray[np.int64]) -> None:
    """Set the weights that read the input positions not in ``kept`` to zero."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    groups = module.groups if isinstance(module, _ConvNd) else 1
    in_dim = 0 if isinstance(module, _ConvNd) and module.transposed else 1
    size = weight.shape[1] if in_dim == 1 else weight.shape[0]
    gone = np.setdiff1d(np.arange(size * (groups if in_dim == 1 else 1)), kept)
    local = gone if in_dim == 0 or groups == 1 else gone[gone < size]  # every group ignores the same positions
    with torch.no_grad():
        weight.index_fill_(in_dim, torch.as_tensor(local, device=weight.device), 0.0)


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
