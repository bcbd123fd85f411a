"""What a pruned network costs, exactly, without building it: MACs, parameters, activations, per kind of layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.layers import (
    Axis,
    Inputs,
    axes_of,
    axis_sizes,
    first_sample,
    is_depthwise,
    outputs,
    parameter_dim,
    size_of,
)
from mobileprune.tensors import tensors_in

KINDS = ("conv1x1", "conv", "depthwise", "linear")
BYTES = 4  # float32


@dataclass(frozen=True)
class Cost:
    """Work of one network on one image (batch 1), over its convolutions and linear layers.

    macs: multiply-accumulates. params: all parameters. peak_activation_bytes: the largest sum of a layer's input and
    output, float32 (what a runtime needs at the least; tensors that wait for a later addition come on top).
    features: per kind of layer k in conv1x1, conv, depthwise (any grouped convolution), linear: ``macs_k``, ``acts_k``
    (elements read plus written) and ``weights_k`` in millions, ``layers_k`` their number.
    """

    macs: int
    params: int
    peak_activation_bytes: int
    features: Mapping[str, float]


@dataclass(frozen=True)
class Trace:
    """The calls of convolutions and linear layers in one forward pass: layer names, positions read and written.

    A position is one pixel (or token): elements = positions x channels.
    """

    layers: tuple[str, ...]
    read: tuple[int, ...]
    written: tuple[int, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(repr=False, compare=False)
    """Of every module that runs: the shapes of the first tensor it gets and of the first one it gives."""


def trace(model: nn.Module, inputs: Inputs) -> Trace:
    """Run ``model`` (in eval mode) on a batch of one and note what its convolutions and linear layers do."""
    names: list[str] = []
    read: list[int] = []
    written: list[int] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def note(name: str, sizes: Mapping[str, int], _: nn.Module, args: Any, output: Any) -> None:
        into, out = _first(args), _first(output)
        shapes[name] = (() if into is None else tuple(into.shape), () if out is None else tuple(out.shape))
        if "in" in sizes and into is not None and out is not None:
            names.append(name)
            read.append(into.numel() // sizes["in"])
            written.append(out.numel() // sizes["out"])

    hooks = [
        module.register_forward_hook(partial(note, name, axes_of(module))) for name, module in model.named_modules()
    ]
    try:
        result = outputs(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(tuple(names), tuple(read), tuple(written), tuple(tuple(t.shape) for t in result), shapes)


def _first(value: Any) -> Tensor | None:
    """The first tensor in what a module gets or gives."""
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return value[0]
    return next(iter(tensors_in(value)), None)


def kind_of(module: nn.Module, groups: int | None = None) -> str:
    """Which of KINDS a convolution or linear layer is. groups: what a convolution has left, its own if None."""
    if isinstance(module, _ConvNd):
        if (groups or module.groups) > 1:
            return "depthwise"
        return "conv1x1" if all(k == 1 for k in module.kernel_size) else "conv"
    return "linear"


class CostModel:
    """Costs of every configuration of a base network as products of its axis lengths.

    A term is coefficient x length(a) x length(b); a weight is one, and so are the MACs of a call and, with b absent,
    a bias or the elements of a tensor.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], blocks: Sequence[Sequence[str]]) -> None:
        """blocks: the module paths that go together, per block."""
        self._sizes = axis_sizes(model)
        self._number = {axis: i for i, axis in enumerate(self._sizes)}
        self._one = len(self._sizes)  # the index of a length that is always 1
        self._lengths = np.array([*self._sizes.values(), 1], dtype=np.int64)
        self._per_channel = np.zeros((len(self._lengths), len(groups)), dtype=np.int64)
        for column, group in enumerate(groups):
            for axis, members in group.members.items():
                self._per_channel[self._number[axis], column] = members.shape[1]
        self._counts = np.array([group.count for group in groups], dtype=np.int64)
        self._blocks = {path: i for i, paths in enumerate(blocks) for path in paths}
        self._outside = len(blocks)  # the number that stands for layers in no block
        layers = {path: module for path, module in model.named_modules() if "in" in axes_of(module)}
        whole = {path for path, module in layers.items() if any(group.cuts_groups(path, module) for group in groups)}
        self._weights = {path: self._weight(path, module, path in whole) for path, module in layers.items()}
        self._kinds = {path: kind_of(module) for path, module in layers.items()}
        # Of what loses groups: the inputs of a single one, with which it has become an ordinary convolution.
        self._ungrouped = {path: layers[path].in_channels // layers[path].groups for path in whole}
        self._kinds_ungrouped = self._kinds | {path: kind_of(layers[path], groups=1) for path in whole}
        self._transposed = {path for path, module in layers.items() if getattr(module, "transposed", False)}
        self._params = _Terms(self._parameter_terms(model))
        self._calls: dict[tuple[int, int], _Calls] = {}

    def add_size(self, size: tuple[int, int], found: Trace) -> None:
        """Make costs at input ``size`` (h, w) known, from a trace of the base at that size."""
        self._calls[size] = _Calls(self, found)

    def lengths(self, kept: Sequence[int]) -> NDArray[np.int64]:
        """Length of every axis when group i keeps ``kept[i]`` channels."""
        return self._lengths - self._per_channel @ (self._counts - np.array(kept, dtype=np.int64))

    def cost(self, removed: Sequence[str], kept: Sequence[int], size: tuple[int, int]) -> Cost:
        """The cost without the modules ``removed``, at ``kept`` channels per group and input ``size`` (h, w)."""
        lengths = self.lengths(kept)
        alive = np.ones(self._outside + 1, dtype=bool)
        alive[[self._blocks[name] for name in removed]] = False
        return self._calls[size].cost(lengths, alive, self._params.total(lengths, alive))

    def block_of(self, path: str) -> int:
        """Number of the block that holds the module or parameter at ``path``; the last number for none."""
        parts = path.split(".") if self._blocks else []
        prefixes = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        return next((self._blocks[p] for p in prefixes if p in self._blocks), self._outside)

    def _weight(self, layer: str, module: nn.Module, whole: bool) -> tuple[float, int, int]:
        """(coefficient, axis a, axis b) of the number of weights of a convolution or linear layer.

        whole: whether it loses groups, each of which stays as large as it is."""
        out, into = self._number[Axis(layer, "out")], self._number[Axis(layer, "in")]
        if isinstance(module, _ConvNd):
            kernel = float(np.prod(module.kernel_size))
            if is_depthwise(module) or whole:
                return kernel * (module.in_channels // module.groups), out, self._one
            return kernel / module.groups, out, into
        return 1.0, out, into

    def _parameter_terms(self, model: nn.Module) -> list[tuple[float, int, int, int]]:
        """(coefficient, axis a, axis b, block) of every parameter, a shared one once."""
        terms = []
        modules = dict(model.named_modules(remove_duplicate=False))
        for path, parameter in model.named_parameters():
            layer, _, name = path.rpartition(".")
            block = self.block_of(path)
            if layer in self._weights and name == "weight":
                terms.append((*self._weights[layer], block))
                continue
            axis = Axis(layer, "out") if axes_of(modules[layer]) else Axis(path, "param")
            size = self._sizes.get(axis)
            dim = parameter_dim(parameter)
            if size is not None and dim is not None and parameter.shape[dim] == size:
                terms.append((parameter.numel() / size, self._number[axis], self._one, block))
            else:
                terms.append((float(parameter.numel()), self._one, self._one, block))
        return terms


class _Terms:
    """Terms in columns: coefficient, axes a and b, block."""

    def __init__(self, rows: Sequence[tuple[float, int, int, int]]) -> None:
        self.coefficient = np.array([row[0] for row in rows])
        self.a = np.array([row[1] for row in rows], dtype=np.int64)
        self.b = np.array([row[2] for row in rows], dtype=np.int64)
        self.block = np.array([row[3] for row in rows], dtype=np.int64)

    def values(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(self.coefficient * lengths[self.a] * lengths[self.b], dtype=np.float64)

    def total(self, lengths: NDArray[np.int64], alive: NDArray[np.bool_]) -> int:
        return round(float(self.values(lengths) @ alive[self.block]))


class _Calls:
    """The calls at one input size."""

    def __init__(self, model: CostModel, found: Trace) -> None:
        number = model._number
        self.weights = _Terms([(*model._weights[name], model.block_of(name)) for name in found.layers])
        self.into = np.array([number[Axis(name, "in")] for name in found.layers], dtype=np.int64)
        self.out = np.array([number[Axis(name, "out")] for name in found.layers], dtype=np.int64)
        self.read = np.array(found.read, dtype=np.float64)
        self.written = np.array(found.written, dtype=np.float64)
        transposed = np.array([name in model._transposed for name in found.layers], dtype=bool)
        self.applied = np.where(transposed, self.read, self.written)  # how often each weight is used
        self.kinds = _one_hot([model._kinds[name] for name in found.layers])
        self.kinds_ungrouped = _one_hot([model._kinds_ungrouped[name] for name in found.layers])
        self.ungrouped = np.array([model._ungrouped.get(name, 0) for name in found.layers], dtype=np.int64)

    def cost(self, lengths: NDArray[np.int64], alive: NDArray[np.bool_], params: int) -> Cost:
        here = alive[self.weights.block]
        weights = np.rint(self.weights.values(lengths)) * here  # a coefficient is a fraction where there are groups
        kinds = np.where(lengths[self.into] == self.ungrouped, self.kinds_ungrouped, self.kinds)
        macs = weights * self.applied
        activations = (self.read * lengths[self.into] + self.written * lengths[self.out]) * here
        table = {"macs": macs, "acts": activations, "weights": weights}
        features = {}
        for what, values in table.items():
            for kind, amount in zip(KINDS, (kinds @ values).tolist(), strict=True):
                features[f"{what}_{kind}"] = amount / 1e6
        for kind, amount in zip(KINDS, (kinds @ here).tolist(), strict=True):
            features[f"layers_{kind}"] = amount
        return Cost(round(macs.sum()), params, round(activations.max(initial=0.0)) * BYTES, features)


def _one_hot(kinds: Sequence[str]) -> NDArray[np.float64]:
    """A row per kind of KINDS, a column per call: 1.0 where it is of that kind."""
    return np.array([[each == kind for each in kinds] for kind in KINDS], dtype=np.float64)


def count(model: nn.Module, inputs: Inputs) -> Cost:
    """The cost of ``model`` as it stands, counted by running it on ``inputs`` (batch of one) in eval mode."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            found = trace(model, first_sample(inputs))
    finally:
        for module in was_training:
            module.training = True
    size = size_of(inputs)
    costs = CostModel(model, [], [])
    costs.add_size(size, found)
    return costs.cost([], [], size)


@dataclass(frozen=True)
class LayerWork:
    """One convolution or linear layer on one image: channels in and out, multiply-accumulates, its own parameters."""

    kind: str
    inputs: int
    outputs: int
    macs: int
    params: int


def layer_work(model: nn.Module, inputs: Inputs) -> dict[str, LayerWork]:
    """The work of each convolution and linear layer of ``model`` (in eval mode) on ``inputs``, in module order.

    A layer called several times adds up its calls; one that does not run, such as an auxiliary head, has no MACs.
    """
    found = trace(model, first_sample(inputs))
    applied: dict[str, int] = {}
    for name, read, written in zip(found.layers, found.read, found.written, strict=True):
        times = read if getattr(model.get_submodule(name), "transposed", False) else written
        applied[name] = applied.get(name, 0) + times
    work = {}
    for name, module in model.named_modules():
        sizes = axes_of(module)
        if "in" in sizes:
            weight = module.get_parameter("weight")
            own = sum(p.numel() for p in module.parameters(recurse=False))
            macs = weight.numel() * applied.get(name, 0)
            work[name] = LayerWork(kind_of(module), sizes["in"], sizes["out"], macs, own)
    return work
