"""What can be taken out of a network, in each dimension, and what any choice would cost: analysed once per base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.pruning.attention import refuse_transformer
from mobileprune.pruning.blocks import Block, find_blocks, removal_order
from mobileprune.pruning.cost import Cost, CostModel, Trace, trace
from mobileprune.pruning.couplings import ChannelGroup, find_couplings, shared_axes
from mobileprune.pruning.filters import Kept, WidthAxis, can_shrink, nearest, unit_of, width_axis
from mobileprune.pruning.layers import (
    Axis,
    Inputs,
    axes_of,
    axis_sizes,
    first_sample,
    is_depthwise,
    like,
    outline,
    require_image,
    resized,
    size_of,
    tensors_in,
)
from mobileprune.pruning.listed import find_listed_layers
from mobileprune.pruning.plain import find_plain_layers
from mobileprune.pruning.proof import prove
from mobileprune.pruning.recipe import shapes_of
from mobileprune.pruning.resolutions import (
    SMALL_SIDE,
    Size,
    candidate_sizes,
    default_step,
    training_sizes,
    working_sizes,
)
from mobileprune.scale import BASE, Lattice, Scale

SMALLEST_RESOLUTION = 0.25  # sizes below this share of the base's side are never tried
_MOST_WIDTHS = 48  # of a lattice; a network can have hundreds of configurations that differ by one unit of one group


@dataclass(frozen=True)
class Choice:
    """A realisable point: the scale reached, and what it means for this network.

    removed: the module paths that go, all ``parts`` of the blocks. kept: channels per group. size: (h, w).
    """

    scale: Scale
    removed: tuple[str, ...]
    kept: Kept
    size: Size


@dataclass(frozen=True)
class Anatomy:
    """A base network's removable blocks, channel groups and input sizes. Make one with ``Anatomy.of``.

    blocks: in execution order. groups: proven, each able to shrink. widths: the configurations of the groups.
    sizes: (h, w) ascending, the base's last. notes: in words, what cannot be pruned and why. base: shapes of the
    state dict, to recognise the network. units: the channel step of each group. growth: the numbers of the groups that
    go with a block, where the network only concatenates what it gives.
    """

    blocks: tuple[Block, ...]
    groups: tuple[ChannelGroup, ...]
    widths: WidthAxis
    sizes: tuple[Size, ...]
    notes: list[str]
    base: Mapping[str, tuple[int, ...]] = field(repr=False)
    axes: Mapping[Axis, int] = field(repr=False)
    channel_step: int | Mapping[str, int]
    units: tuple[int, ...] = field(repr=False)
    growth: Mapping[str, Sequence[int]] = field(repr=False)
    _costs: CostModel = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_input: Inputs,
        *,
        channel_step: int | Mapping[str, int] = 8,
        resolution_step: int | None = None,
        resolutions: bool = True,
    ) -> Anatomy:
        """Analyse ``model``, which is left as it is, at the size of ``example_input``.

        example_input: (N, C, H, W), or a tuple of tensors for a network of several inputs; the size is that of the
        first of four dimensions, and other images shrink in the same ratio. channel_step: channel counts become
        multiples of it; a number, or one per kind of layer that makes or reads them, of "dense", "pointwise" and
        "depthwise". resolution_step: the same for the input's side in pixels (default: 4 up to 64 px, 16 above).

        Where the network allows it all but the proof of the couplings is found from shapes alone ("meta" tensors).
        Raises UsageError where the model does not take the input, or is a transformer.
        """
        _require_usable(example_input, channel_step, resolution_step)
        bench = outline(model).eval()
        example = first_sample(example_input)
        step = resolution_step or default_step(size_of(example))
        notes: list[str] = []
        traces, near, rarely = _sizes(bench, example, step, resolutions, notes)
        refuse_transformer(bench, near)
        blocks, remarks = find_blocks(bench, near)
        through: list[str] = []
        if not blocks and not remarks:
            blocks, remarks = find_plain_layers(bench, near)
            through = [part for block in blocks for part in block.parts]
        groups, units, said = _groups(bench, near, channel_step, through, rarely)
        growth: Mapping[str, Sequence[int]] = {}
        if not blocks and not remarks:
            blocks, growth = find_listed_layers(bench, near, groups)
            through = [block.name for block in blocks if not block.leaves]
            if through:  # what such an entry gives takes the place of what it gets
                groups, units, said = _groups(bench, near, channel_step, through, rarely)
                blocks, growth = find_listed_layers(bench, near, groups)
        notes += said
        blocks = _at_base(blocks, traces[size_of(example)])
        notes += remarks or _too_few(blocks)
        costs = CostModel(bench, groups, [block.parts for block in blocks])
        for size, found in traces.items():
            costs.add_size(size, found)
        return cls(
            blocks=tuple(blocks),
            groups=tuple(groups),
            widths=width_axis(groups, units),
            sizes=tuple(sorted(traces)),
            notes=notes,
            base=shapes_of(model),
            axes=axis_sizes(model),
            channel_step=channel_step,
            units=tuple(units),
            growth=growth,
            _costs=costs,
        )

    @property
    def base_size(self) -> Size:
        return self.sizes[-1]

    @property
    def depths(self) -> tuple[float, ...]:
        """Shares of blocks kept, ascending; at least one block stays (a scale of 0 does not exist)."""
        n = len(self.blocks)
        return tuple(k / n for k in range(1, n + 1)) or (1.0,)

    @property
    def resolutions(self) -> tuple[float, ...]:
        """Heights of ``sizes`` as shares of the base's, ascending."""
        return tuple(height / self.base_size[0] for height, _ in self.sizes)

    def lattice(self, *, min_depth: float = 0.3, min_width: float = 0.3, min_resolution: float = 0.5) -> Lattice:
        """The realisable scales with each dimension at least as given; 1.0 is always there.

        Depths are k/n of the n removable blocks. Widths are the shares of channels really kept by distinct
        configurations (see ``WidthAxis``), thinned to at most 48 evenly spread ones. Resolutions are size / base size.
        """

        def at_least(values: Sequence[float], smallest: float) -> list[float]:
            return [v for v in values if v >= smallest - 1e-9] or [1.0]

        widths = at_least(self.widths.values, min_width)
        if len(widths) > _MOST_WIDTHS:
            grid = np.linspace(widths[0], widths[-1], _MOST_WIDTHS).tolist()
            widths = sorted({widths[nearest(widths, w)] for w in grid})
        depths, resolutions = at_least(self.depths, min_depth), at_least(self.resolutions, min_resolution)
        return Lattice(tuple(depths), tuple(widths), tuple(resolutions))

    def choose(self, scale: Scale, ranking: Mapping[str, float] | None = None, gone: Sequence[str] = ()) -> Choice:
        """The realisable point closest to ``scale`` in each dimension.

        The blocks with the lowest ``ranking`` go (without one: evenly spread, see ``removal_order``), after those
        that are already ``gone``. Raises UsageError where the ranking lacks a block.
        """
        depth = self.depths[nearest(self.depths, scale.depth)]
        width = self.widths.nearest(scale.width)
        size = self.sizes[nearest(self.resolutions, scale.resolution)]
        removed: tuple[str, ...] = ()
        if self.blocks and depth < 1.0:
            try:
                order = removal_order(self.blocks, ranking)
            except ValueError as error:
                raise UsageError(str(error)) from error
            order = [*(name for name in order if name in gone), *(name for name in order if name not in gone)]
            parts = {block.name: block.parts for block in self.blocks}
            goes = order[: len(order) - round(depth * len(order))]
            removed = tuple(sorted(part for name in goes for part in parts[name]))
        reached = Scale(depth, self.widths.values[width], size[0] / self.base_size[0])
        return Choice(reached, removed, self._without_growth(self.widths.kept[width], removed), size)

    def without(self, name: str) -> Choice:
        """The base without one block."""
        block = next(block for block in self.blocks if block.name == name)
        kept = self._without_growth(self.widths.kept[-1], block.parts)
        return Choice(BASE, block.parts, kept, self.base_size)

    def _without_growth(self, kept: Kept, removed: Sequence[str]) -> Kept:
        gone = {number for name in removed for number in self.growth.get(name, ())}
        return tuple(0 if number in gone else count for number, count in enumerate(kept))

    def cost(self, scale: Scale, ranking: Mapping[str, float] | None = None) -> Cost:
        """The exact cost of the network that ``prune`` builds at ``scale`` with this ``ranking``."""
        return self.cost_of(self.choose(scale, ranking))

    def cost_of(self, choice: Choice) -> Cost:
        """The exact cost of one ``Choice``: of ``choose``, or one of the caller's own making."""
        return self._costs.cost(choice.removed, choice.kept, choice.size)

    def require_possible(self, scale: Scale) -> None:
        """Raise UsageError where ``scale`` asks for a dimension in which nothing can be pruned."""
        able = {"depth": len(self.blocks) > 1, "width": len(self.widths.values) > 1, "resolution": len(self.sizes) > 1}
        for dimension, possible in able.items():
            asked = getattr(scale, dimension)
            if asked < 1.0 and not possible:
                reasons = [note for note in self.notes if note.startswith(dimension)] or ["nothing there can shrink"]
                raise UsageError(
                    f"{dimension} {asked:g} was asked and this network cannot be pruned in {dimension} "
                    f"({'; '.join(reasons)}): ask for {dimension} 1"
                )


def _require_usable(example_input: Inputs, channel_step: int | Mapping[str, int], resolution_step: int | None) -> None:
    require_image(example_input)
    steps = channel_step.values() if isinstance(channel_step, Mapping) else [channel_step]
    if min(steps, default=0) < 1 or (resolution_step is not None and resolution_step < 1):
        raise UsageError(f"channel step {channel_step} and resolution step {resolution_step} must be at least 1")


def _sizes(
    bench: nn.Module, example: Inputs, step: int, resolutions: bool, notes: list[str]
) -> tuple[dict[Size, Trace], Inputs, bool]:
    """What the network does at each size it takes, a small input, and whether some layers run in training only.

    Sizes it does not take go into ``notes``. The small input is the smallest of at least 64 px: which channels are
    coupled does not depend on the size.
    """
    base = size_of(example)
    shadow, shape, whole = _shadow(bench, example)
    every = candidate_sizes(base, step, SMALLEST_RESOLUTION)
    rarely = any(axes_of(module) and name not in whole.shapes for name, module in bench.named_modules())
    if resolutions:
        traces, refusal = working_sizes(shadow, shape, every, {base: whole})
        refusals = [refusal]
        if rarely:
            traces, refusal = training_sizes(shadow, shape, traces)
            refusals.append(refusal)
        notes += [f"resolution: {refusal}" for refusal in refusals if refusal is not None]
        small = next((size for size in sorted(traces) if min(size) >= SMALL_SIDE), base)
        return traces, resized(example, small), rarely
    for size in every:
        if min(size) >= SMALL_SIDE and size in working_sizes(shadow, shape, [size], {base: whole})[0]:
            return {base: whole}, resized(example, size), rarely
    return {base: whole}, example, rarely


def _shadow(bench: nn.Module, example: Inputs) -> tuple[nn.Module, Inputs, Trace]:
    """The network on tensors without data, where it runs on them, else as it is; its input, and what it does on it."""
    try:
        shadow = outline(bench, "meta")
        for module in shadow.modules():
            if isinstance(module, _NormBase) or type(module).__module__ == "torch.nn.modules.activation":
                module.forward = partial(_shape_of, module)
        shape = like(example, 1, torch.empty, device="meta")
        return shadow, shape, trace(shadow, shape)
    except Exception:  # whatever: data-dependent control flow, an operation that has no shape function
        pass
    try:
        return bench, example, trace(bench, example)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(example))
        raise UsageError(f"the model fails on an input {shapes}: {error}") from error


def _shape_of(module: nn.Module, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """What a norm or an activation gives, without data: torch's own take up to 4 ms each, most of the analysis."""
    if isinstance(module, nn.MultiheadAttention):
        raise NotImplementedError("attention has no shape function here")
    if isinstance(module, _NormBase) and (x.dim() < 2 or x.shape[1] != module.num_features):
        raise ValueError(f"expected {module.num_features} channels and got a tensor of shape {tuple(x.shape)}")
    return x


def _at_base(blocks: Sequence[Block], found: Trace) -> list[Block]:
    """The blocks with their shapes at the base's size; without those whose input and output differ there."""
    kept = []
    for block in blocks:
        into, out = found.shapes[block.name]
        if block.listed or into == out:
            kept.append(replace(block, shape=out[1:]))
    return kept


def _too_few(blocks: Sequence[Block]) -> list[str]:
    """A note where depth cannot change though nothing else was said of it."""
    if not blocks:
        return [
            "depth: no residual block, no layer or unit on the trunk whose input and output shapes agree, and no list "
            "of layers that can do without one"
        ]
    return [] if len(blocks) > 1 else [f"depth: {blocks[0].name} is the only removable block, and one always stays"]


def _groups(
    bench: nn.Module,
    example: Inputs,
    channel_step: int | Mapping[str, int],
    through: Sequence[str],
    rarely: bool,
) -> tuple[list[ChannelGroup], list[int], list[str]]:
    """The proven groups that can shrink, their channel steps, and notes on what is left alone."""
    notes = []
    traced = find_couplings(bench, example, through, training=rarely)
    notes += [f"width: {_listed(layers)} stay: {why}" for why, layers in traced.held.items() if layers]
    shared = dict.fromkeys(axis.layer for axis in shared_axes(bench))
    if shared:
        notes.append(f"width: {_listed(list(shared))} share a weight: their channels stay")
    units = {id(group): unit_of(group, bench, channel_step) for group in traced.groups}
    candidates = [group for group in traced.groups if can_shrink(group, units[id(group)])]
    try:
        proven, refuted = prove(bench, candidates, like(example, 1, torch.zeros, device="cpu"), rarely=rarely)
    except (RuntimeError, ValueError, MobilepruneError) as error:
        notes.append(f"width: the couplings cannot be tested ({type(error).__name__}: {error})")
        return [], [], notes
    kinds: dict[str, list[tuple[ChannelGroup, str]]] = {}
    for group, reason in refuted:
        kinds.setdefault(reason.partition(" (")[0], []).append((group, reason))
    for failures in kinds.values():
        layers = list(dict.fromkeys(layer for group, _ in failures for layer in _made_by(bench, group)))
        channels = sum(group.channels for group, _ in failures)
        notes.append(f"width: {channels} channels of {_listed(layers)} stay: {failures[0][1]}")
    if not proven and not candidates:
        notes.append("width: no layer has channels to spare")
    return proven, [units[id(group)] for group in proven], notes


def _listed(layers: Sequence[str]) -> str:
    return ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")


def _made_by(model: nn.Module, group: ChannelGroup) -> list[str]:
    """The layers that make the channels of ``group``, for a person to read."""
    outs = [axis.layer for axis in group.members if axis.side == "out"]
    layers = {path: module for path, module in model.named_modules() if path in outs}
    made = [path for path in outs if "in" in axes_of(layers[path]) and not is_depthwise(layers[path])]
    return made or outs or [group.name]


def rows_left(group: ChannelGroup, kept: Mapping[Axis, Sequence[int]]) -> NDArray[np.int64]:
    """The channels of ``group`` that a network with the base positions ``kept`` still has."""
    for axis, members in group.members.items():
        if axis in kept:
            return np.flatnonzero(np.isin(members[:, 0], np.asarray(kept[axis])))
    return np.arange(group.count)
