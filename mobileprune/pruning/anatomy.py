"""What can be taken out of a network, in each dimension, and what any choice would cost: analysed once per base."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.pruning.attention import refuse_transformer
from mobileprune.pruning.blocks import Block, find_blocks, removal_order
from mobileprune.pruning.cost import Cost, CostModel, Trace
from mobileprune.pruning.couplings import ChannelGroup, find_groups, shared_axes
from mobileprune.pruning.filters import Kept, WidthAxis, can_shrink, nearest, width_axis
from mobileprune.pruning.layers import Axis, axes_of, axis_sizes, is_depthwise
from mobileprune.pruning.plain import find_plain_layers, ordinary_convolution
from mobileprune.pruning.proof import prove, uncalled
from mobileprune.pruning.recipe import shapes_of
from mobileprune.pruning.resolutions import (
    SMALL_SIDE,
    Size,
    candidate_sizes,
    default_step,
    training_sizes,
    working_sizes,
)
from mobileprune.scale import Lattice, Scale

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
    state dict, to recognise the network.
    """

    blocks: tuple[Block, ...]
    groups: tuple[ChannelGroup, ...]
    widths: WidthAxis
    sizes: tuple[Size, ...]
    notes: list[str]
    base: Mapping[str, tuple[int, ...]] = field(repr=False)
    axes: Mapping[Axis, int] = field(repr=False)
    channel_step: int
    _costs: CostModel = field(repr=False, compare=False)

    @classmethod
    def of(
        cls, model: nn.Module, example_input: Tensor, *, channel_step: int = 8, resolution_step: int | None = None
    ) -> Anatomy:
        """Analyse ``model``, which is left as it is, at the size of ``example_input`` (N, C, H, W).

        channel_step: channel counts become multiples of it. resolution_step: the same for the input's side in
        pixels (default: 4 up to 64 px, 16 above). Raises UsageError where the model does not take the input, or is a
        transformer.
        """
        if example_input.dim() != 4:
            raise UsageError(f"the example input has shape {tuple(example_input.shape)}: give a batch (N, C, H, W)")
        if channel_step < 1 or (resolution_step is not None and resolution_step < 1):
            raise UsageError(f"channel step {channel_step} and resolution step {resolution_step} must be at least 1")
        bench = copy.deepcopy(model).eval()
        example = example_input[:1].detach()
        step = resolution_step or default_step((int(example.shape[2]), int(example.shape[3])))
        notes: list[str] = []
        traces = _traces(bench, example, step, notes)
        blocks, remarks = find_blocks(bench, example)
        through: list[str] = []
        if not blocks and not remarks:
            blocks, remarks = find_plain_layers(bench, example)
            through = [ordinary_convolution(bench, block) for block in blocks]
        notes += remarks or _too_few(blocks)
        groups = _groups(bench, _small(example, sorted(traces)), channel_step, notes, through)
        costs = CostModel(bench, groups, [block.parts for block in blocks])
        for size, found in traces.items():
            costs.add_size(size, found)
        return cls(
            blocks=tuple(blocks),
            groups=tuple(groups),
            widths=width_axis(groups, channel_step),
            sizes=tuple(sorted(traces)),
            notes=notes,
            base=shapes_of(model),
            axes=axis_sizes(model),
            channel_step=channel_step,
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
        return Choice(reached, removed, self.widths.kept[width], size)

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


def _traces(bench: nn.Module, example: Tensor, step: int, notes: list[str]) -> dict[Size, Trace]:
    """What the network does at each size it takes; sizes it does not take go into ``notes``."""
    base = (int(example.shape[2]), int(example.shape[3]))
    try:
        traces, refusal = working_sizes(bench, example, candidate_sizes(base, step, SMALLEST_RESOLUTION))
    except Exception as error:
        raise UsageError(f"the model fails on an input {tuple(example.shape)}: {error}") from error
    refuse_transformer(bench, example)
    refusals = [refusal]
    if uncalled(bench, example):
        traces, refusal = training_sizes(bench, example, traces)
        refusals.append(refusal)
    notes += [f"resolution: {refusal}" for refusal in refusals if refusal is not None]
    return traces


def _small(example: Tensor, sizes: Sequence[Size]) -> Tensor:
    """The example at the smallest working size of at least 64 px: which channels are coupled does not depend on it."""
    height, width = next((size for size in sizes if min(size) >= SMALL_SIDE), sizes[-1])
    return example if tuple(example.shape[2:]) == (height, width) else example[:, :, :height, :width].contiguous()


def _too_few(blocks: Sequence[Block]) -> list[str]:
    """A note where depth cannot change though nothing else was said of it."""
    if not blocks:
        return ["depth: no residual block, and no plain layer on the trunk, whose input and output shapes agree"]
    return [] if len(blocks) > 1 else [f"depth: {blocks[0].name} is the only removable block, and one always stays"]


def _groups(
    bench: nn.Module, example: Tensor, channel_step: int, notes: list[str], through: Sequence[str]
) -> list[ChannelGroup]:
    """The proven groups that can shrink; what is left alone goes into ``notes``."""
    try:
        traced = find_groups(bench, example, through)
    except Exception as error:  # torch-pruning raises whatever its own code runs into
        notes.append(f"width: torch-pruning cannot trace this network ({type(error).__name__}: {error})")
        return []
    shared = dict.fromkeys(axis.layer for axis in shared_axes(bench))
    if shared:
        notes.append(f"width: {_listed(list(shared))} share a weight: their channels stay")
    candidates = [group for group in traced if can_shrink(group, channel_step)]
    try:
        proven, refuted = prove(bench, candidates, example)
    except (RuntimeError, ValueError, MobilepruneError) as error:
        notes.append(f"width: the couplings cannot be tested ({type(error).__name__}: {error})")
        return []
    kinds: dict[str, list[tuple[ChannelGroup, str]]] = {}
    for group, reason in refuted:
        kinds.setdefault(reason.partition(" (")[0], []).append((group, reason))
    for failures in kinds.values():
        layers = list(dict.fromkeys(layer for group, _ in failures for layer in _made_by(bench, group)))
        channels = sum(group.channels for group, _ in failures)
        notes.append(f"width: {channels} channels of {_listed(layers)} stay: {failures[0][1]}")
    if not proven and not candidates:
        notes.append("width: no layer has channels to spare")
    return proven


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
