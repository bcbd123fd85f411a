"""What can be taken out of a network, in each dimension, and what any choice would cost: analysed once per base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from mobileprune.errors import UsageError
from mobileprune.pruning.attention import refuse_transformer
from mobileprune.pruning.blocks import Block, find_blocks, removal_order
from mobileprune.pruning.cost import Cost, CostModel, Trace
from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.filters import SMALLEST, Kept, WidthAxis, nearest, width_axis
from mobileprune.pruning.groups import ProvenGroups, Steps, Subject, proven_groups
from mobileprune.pruning.layers import Axis, Inputs, axis_sizes, first_sample, image_of, require_image
from mobileprune.pruning.listed import find_listed_layers
from mobileprune.pruning.plain import find_plain_layers
from mobileprune.pruning.recipe import shapes_of
from mobileprune.pruning.resolutions import Size, find_sizes
from mobileprune.pruning.shadow import shadow_of, values_read
from mobileprune.scale import BASE, DIMENSIONS, Lattice, Scale

PATH = "control flow"  # what a note is about that concerns all dimensions
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
    least_channels: int
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
        least_channels: int = SMALLEST,
        resolution_step: int | None = None,
        resolutions: bool = True,
        depths: bool = True,
    ) -> Anatomy:
        """Analyse ``model``, which is left as it is, at the size of ``example_input``.

        example_input: (N, C, H, W), or a tuple of tensors for a network of several inputs; the size is that of the
        first of four dimensions, and other images shrink in the same ratio. channel_step: channel counts become
        multiples of it; a number, or one per kind of layer that makes or reads them, of "dense", "pointwise" and
        "depthwise". least_channels: no group is cut below as many. resolution_step: the same as channel_step for the
        input's side in pixels (default: 4 up to 64 px, 16 above). resolutions, depths: whether sizes below the base's,
        and blocks, are wanted; without them less has to be found out.

        Where the network allows it all but the proof of the couplings is found from shapes alone ("meta" tensors).
        Raises UsageError where the model does not take the input, or is a transformer.
        """
        _require_usable(example_input, channel_step, resolution_step)
        shadow, shapes, whole = shadow_of(model, first_sample(example_input))
        notes: list[str] = []
        if not image_of(shapes).is_meta and (places := values_read(shadow, shapes)):
            notes.append(
                f"{PATH}: it reads values of tensors at {', '.join(places[:4])} and may decide by them: what is said "
                "here holds for the path that the example takes, and an export may refuse such code"
            )
        traces, near, rarely = find_sizes(shadow, shapes, whole, resolution_step, resolutions, notes)
        refuse_transformer(shadow, near, whole.layers)
        subject, steps = Subject(model, shadow, near, rarely), Steps(channel_step, least_channels)
        found, remarks, proven, growth = _blocks_and_groups(subject, steps, depths)
        blocks = _at_base(found, whole)
        notes += [*proven.notes, *(remarks or (_too_few(blocks) if depths else []))]
        costs = CostModel(model, proven.groups, [block.parts for block in blocks])
        for size, calls in traces.items():
            costs.add_size(size, calls)
        return cls(
            blocks=tuple(blocks),
            groups=proven.groups,
            widths=width_axis(proven.groups, proven.units, least_channels),
            sizes=tuple(sorted(traces)),
            notes=notes,
            base=shapes_of(model),
            axes=axis_sizes(model),
            channel_step=channel_step,
            least_channels=least_channels,
            units=proven.units,
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
        """``kept`` without the groups that go with the ``removed`` blocks."""
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
        able = (len(self.blocks) > 1, len(self.widths.values) > 1, len(self.sizes) > 1)
        for dimension, possible in zip(DIMENSIONS, able, strict=True):
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


def _blocks_and_groups(
    subject: Subject, steps: Steps, depths: bool
) -> tuple[list[Block], list[str], ProvenGroups, Mapping[str, Sequence[int]]]:
    """The removable blocks and remarks on others, the channel groups, and the numbers of those that go with a block.

    Blocks are residual branches; else the layers of a plain network; else entries of a list, known by the channels
    they make.
    """
    shadow, near = subject.shadow, subject.near
    blocks, remarks = find_blocks(shadow, near, verify=depths)
    if blocks or remarks:
        return blocks if depths else [], remarks, proven_groups(subject, steps), {}
    blocks, remarks = find_plain_layers(shadow, near)
    proven = proven_groups(subject, steps, [part for block in blocks for part in block.parts])
    if blocks or remarks:
        return blocks, remarks, proven, {}
    blocks, growth = find_listed_layers(shadow, near, proven.groups)
    through = [block.name for block in blocks if not block.leaves]
    if through:  # what such an entry gives takes the place of what it gets
        proven = proven_groups(subject, steps, through)
        blocks, growth = find_listed_layers(shadow, near, proven.groups)
    return blocks, [], proven, growth


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
