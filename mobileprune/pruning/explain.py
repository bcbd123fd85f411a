"""What can be pruned in a network and what cannot, in each dimension, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mobileprune.pruning.anatomy import PATH, Anatomy
from mobileprune.pruning.couplings import ChannelGroup
from mobileprune.pruning.layers import Axis
from mobileprune.pruning.resolutions import Size
from mobileprune.scale import BASE, DIMENSIONS, Scale

_ABOUT = (PATH, *DIMENSIONS)


@dataclass(frozen=True)
class BlockRow:
    """A removable block: (C, H, W) that goes through it, its parameters, and its share of the network's MACs."""

    name: str
    shape: tuple[int, ...]
    params: int
    macs: int
    macs_share: float


@dataclass(frozen=True)
class ChannelRow:
    """Channels that are cut together: the layers that make them, how many each has, and the fewest it can keep."""

    layers: tuple[str, ...]
    channels: int
    smallest: int


@dataclass(frozen=True)
class Explanation:
    """What can be pruned (blocks, channels, sizes) and what cannot (``reasons`` per dimension).

    macs, params: of the base at ``input_size`` (h, w). sizes: (h, w) ascending. layer_channels: output channels of all
    convolutions and linear layers; prunable_channels: those in a group. fixed_layers: those with none to spare.
    smallest: the smallest scale the network takes, with its MACs and parameters.
    """

    input_size: Size
    macs: int
    params: int
    blocks: tuple[BlockRow, ...]
    channels: tuple[ChannelRow, ...]
    layer_channels: int
    prunable_channels: int
    fixed_layers: tuple[str, ...]
    sizes: tuple[Size, ...]
    reasons: Mapping[str, tuple[str, ...]]
    smallest: Scale
    smallest_macs: int
    smallest_params: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; shares are fractions of the base."""
        document = asdict(self)
        document["smallest"] = {
            **asdict(self.smallest),
            "macs": document.pop("smallest_macs"),
            "params": document.pop("smallest_params"),
            "macs_share": self.smallest_macs / max(1, self.macs),
            "params_share": self.smallest_params / max(1, self.params),
        }
        return _plain(document)

    def lines(self) -> list[str]:
        """Plain text, one row per line; of the unchanged layers the first eight (``to_dict`` has all)."""
        height, width = self.input_size
        return [
            f"base: {self.macs / 1e6:,.2f} MMACs, {self.params:,} parameters at {height}x{width}",
            *(f"{PATH}: {reason}" for reason in self.reasons.get(PATH, ())),
            *self._depth_lines(),
            *self._width_lines(),
            *self._resolution_lines(),
            f"smallest scale: {self.smallest}: {self.smallest_macs / 1e6:,.2f} MMACs "
            f"({_percent(self.smallest_macs, self.macs)}), {self.smallest_params:,} parameters "
            f"({_percent(self.smallest_params, self.params)})",
        ]

    def _depth_lines(self) -> list[str]:
        share = sum(row.macs_share for row in self.blocks)
        rows = []
        for row in self.blocks:
            shape = "x".join(map(str, row.shape))
            rows.append(f"  {row.name}  {shape}  {row.params:,} parameters  {row.macs_share:.1%} of the MACs")
        what = f"{len(self.blocks)} removable blocks, {share:.1%} of the MACs; one of them always stays"
        return [f"depth: {what if self.blocks else 'nothing can be removed'}", *rows, *self._stays("depth")]

    def _width_lines(self) -> list[str]:
        rows = [f"  {', '.join(row.layers)}  {row.channels} channels, down to {row.smallest}" for row in self.channels]
        what = f"{self.prunable_channels:,} of {self.layer_channels:,} channels in {len(self.channels)} groups"
        more = f" and {len(self.fixed_layers) - 8} more" if len(self.fixed_layers) > 8 else ""
        fixed = [f"  unchanged: {', '.join(self.fixed_layers[:8])}{more}"] if self.fixed_layers else []
        return [f"width: {what if self.channels else 'nothing can be cut'}", *rows, *fixed, *self._stays("width")]

    def _resolution_lines(self) -> list[str]:
        listed = ", ".join(f"{h}x{w}" for h, w in self.sizes)
        able = len(self.sizes) > 1
        what = f"{len(self.sizes)} input sizes: {listed}" if able else f"only {listed}"
        return [f"resolution: {what}", *self._stays("resolution")]

    def _stays(self, dimension: str) -> list[str]:
        return [f"  stays: {reason}" for reason in self.reasons[dimension]]


def explain(anatomy: Anatomy, ranking: Mapping[str, float] | None = None) -> Explanation:
    """Put an analysed network into words. ranking: which block would be the last one, at the smallest scale."""
    base = anatomy.cost(BASE)
    smallest = Scale(anatomy.depths[0], anatomy.widths.values[0], anatomy.resolutions[0])
    least = anatomy.cost(smallest, ranking)
    blocks = []
    for block in anatomy.blocks:
        macs = base.macs - anatomy.cost_of(anatomy.without(block.name)).macs
        blocks.append(BlockRow(block.name, block.shape, block.parameters, macs, macs / max(1, base.macs)))
    made = _layer_outputs(anatomy.axes)
    in_groups = {axis: members.size for group in anatomy.groups for axis, members in _outputs_of(group, made)}
    return Explanation(
        input_size=anatomy.base_size,
        macs=base.macs,
        params=base.params,
        blocks=tuple(blocks),
        channels=_channel_rows(anatomy, made),
        layer_channels=sum(made.values()),
        prunable_channels=sum(in_groups.values()),
        fixed_layers=tuple(axis.layer for axis in made if axis not in in_groups),
        sizes=anatomy.sizes,
        reasons=_by_dimension(anatomy.notes),
        smallest=smallest,
        smallest_macs=least.macs,
        smallest_params=least.params,
    )


def _layer_outputs(axes: Mapping[Axis, int]) -> dict[Axis, int]:
    """The output axes of convolutions and linear layers (those with an input axis too), with their lengths."""
    return {axis: n for axis, n in axes.items() if axis.side == "out" and Axis(axis.layer, "in") in axes}


def _outputs_of(group: ChannelGroup, made: Mapping[Axis, int]) -> list[tuple[Axis, Any]]:
    return [(axis, members) for axis, members in group.members.items() if axis in made]


def _channel_rows(anatomy: Anatomy, made: Mapping[Axis, int]) -> tuple[ChannelRow, ...]:
    rows = []
    for group, fewest in zip(anatomy.groups, anatomy.widths.kept[0], strict=True):
        layers = tuple(axis.layer for axis, _ in _outputs_of(group, made)) or (group.name,)
        rows.append(ChannelRow(layers, group.channels, fewest * group.positions_each))
    return tuple(rows)


def _by_dimension(notes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Notes read "dimension: why"; the dimension becomes the key, and so does control flow where there is a note."""
    found = {about: tuple(n.partition(": ")[2] for n in notes if n.startswith(about + ": ")) for about in _ABOUT}
    return {about: reasons for about, reasons in found.items() if reasons or about != PATH}


def _percent(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.1%}"


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
