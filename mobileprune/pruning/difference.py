"""What a recipe took out of its base network: in words per block, and layer by layer before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from mobileprune.pruning.cost import Cost, LayerWork, count, layer_work
from mobileprune.pruning.layers import Inputs, first_sample, outline, require_image, resized
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.pruning.resolutions import Size
from mobileprune.scale import Scale


@dataclass(frozen=True)
class LayerChange:
    """A convolution or linear layer before and after; ``after`` is None where its block was removed."""

    name: str
    before: LayerWork
    after: LayerWork | None

    @property
    def changed(self) -> bool:
        """Whether it lost channels or is gone (MACs alone also change with the resolution)."""
        return self.after is None or (self.before.inputs, self.before.outputs) != (
            self.after.inputs,
            self.after.outputs,
        )


@dataclass(frozen=True)
class Difference:
    """What was removed. words: one sentence per block or module that lost something, and one for the resolution.

    macs, params, input_size: (before, after), per image and over the whole network; a layer's own are in ``layers``
    (norms and bare parameters count in the total alone).
    """

    scale: Scale
    input_size: tuple[Size, Size]
    macs: tuple[int, int]
    params: tuple[int, int]
    words: tuple[str, ...]
    layers: tuple[LayerChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: totals as {"before", "after"}, one entry per layer."""
        pairs = {"input_size": [list(size) for size in self.input_size], "macs": self.macs, "params": self.params}
        return {
            "scale": asdict(self.scale),
            **{name: {"before": before, "after": after} for name, (before, after) in pairs.items()},
            "words": list(self.words),
            "layers": [{**asdict(layer), "changed": layer.changed} for layer in self.layers],
        }

    def lines(self) -> list[str]:
        """Plain text: the totals, the words, then one row per layer that changed."""
        (h, w), (height, width) = self.input_size
        rows = [_row(layer) for layer in self.layers if layer.changed]
        same = len(self.layers) - len(rows)
        return [
            f"scale {self.scale}: {_change(*self.macs)} MACs, {_change(*self.params)} parameters, "
            f"input {h}x{w} -> {height}x{width}",
            *self.words,
            *rows,
            *([f"{same} layers keep their channels"] if same else []),
        ]


def diff(recipe: Recipe, base_model: nn.Module, example_input: Inputs) -> Difference:
    """Compare ``base_model`` with what ``recipe`` makes of it; the model is left as it is.

    example_input: (N, C, H, W), of which only C, the type and the device are read: the sizes are the recipe's. Raises
    MobilepruneError where the recipe belongs to another network, UsageError for an input of another shape.
    """
    require_image(example_input)
    old = outline(base_model).eval()
    new = rebuild(recipe, base_model).eval()
    sizes = (recipe.base_input_size, recipe.input_size)
    image = first_sample(example_input)
    before, after = (resized(image, size) for size in sizes)
    had, has = layer_work(old, before), layer_work(new, after)
    layers = tuple(LayerChange(name, work, has.get(name)) for name, work in had.items())
    total, left = count(old, before), count(new, after)
    return Difference(
        scale=recipe.scale,
        input_size=sizes,
        macs=(total.macs, left.macs),
        params=(total.params, left.params),
        words=tuple(_words(recipe, old, layers, total)),
        layers=layers,
    )


def _words(recipe: Recipe, base: nn.Module, layers: tuple[LayerChange, ...], total: Cost) -> list[str]:
    said = []
    for name in recipe.removed:
        lost = [layer.before for layer in layers if layer.name == name or layer.name.startswith(name + ".")]
        module = base.get_submodule(name)
        if not lost:
            said.append(f"{name} ({type(module).__name__}) was removed with it")
            continue
        params = sum(p.numel() for p in module.parameters())
        share = sum(work.macs for work in lost) / max(1, total.macs)
        many = f"{len(lost)} layer{'' if len(lost) == 1 else 's'}"
        said.append(f"{name} was removed: {many}, {params:,} parameters, {share:.1%} of the base's MACs")
    for owner, cut in _by_owner(layers).items():
        gone = sum(layer.before.outputs - work.outputs for layer, work in cut.items())
        had = sum(layer.before.outputs for layer in cut)
        which = ", ".join(
            f"{layer.name.rpartition('.')[2]} {layer.before.outputs} -> {work.outputs}"
            for layer, work in cut.items()
            if layer.before.outputs != work.outputs
        )
        what = f"lost {gone} of {had} output channels ({which})" if gone else "only reads fewer channels"
        said.append(f"{owner or 'the network itself'} {what}")
    if recipe.input_size != recipe.base_input_size:
        (h, w), (height, width) = recipe.base_input_size, recipe.input_size
        said.append(f"the input shrank from {h}x{w} to {height}x{width}: {height * width / (h * w):.1%} of the pixels")
    return said


def _by_owner(layers: tuple[LayerChange, ...]) -> Mapping[str, dict[LayerChange, LayerWork]]:
    """The layers that stay with fewer channels, by the module that holds them."""
    owners: dict[str, dict[LayerChange, LayerWork]] = {}
    for layer in layers:
        if layer.after is not None and layer.changed:
            owners.setdefault(layer.name.rpartition(".")[0], {})[layer] = layer.after
    return owners


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after / max(1, before):.1%})"


def _row(layer: LayerChange) -> str:
    was, now = layer.before, layer.after
    if now is None:
        work = f"{was.macs:,} MACs, {was.params:,} parameters"
        return f"  {layer.name}  {was.kind}  {was.inputs} -> {was.outputs}  removed  {work}"
    return (
        f"  {layer.name}  {was.kind}  in {was.inputs} -> {now.inputs}, out {was.outputs} -> {now.outputs}, "
        f"MACs {_change(was.macs, now.macs)}, parameters {_change(was.params, now.params)}"
    )
