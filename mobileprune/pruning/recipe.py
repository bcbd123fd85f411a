"""The recipe: what was cut from a base network, as JSON that builds the pruned architecture from the base again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from mobileprune.errors import MobilepruneError
from mobileprune.pruning.blocks import remove_blocks
from mobileprune.pruning.layers import Axis, axis_sizes, outline, own_tensors, slice_model
from mobileprune.scale import Scale

FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """What ``prune`` took out, relative to the base network however many prunings led here.

    scale: the scale reached. removed: names of the blocks taken out. kept: per axis that lost channels, the base
    positions that stay, ascending; axes inside removed blocks are not listed. input_size and base_input_size: (h, w).
    base: shape of every tensor of the base's state dict, to recognise it. versions: the libraries that made it. listed:
    those of ``removed`` that left the list which their parent loops over (of the others ``nn.Identity`` took the
    place). method: how blocks and channels were chosen in the last step. network: the class of the base as
    "package.Name", for a person to read; what its constructor was called with is not known, so the shapes decide.
    """

    scale: Scale
    removed: tuple[str, ...]
    kept: Mapping[Axis, tuple[int, ...]]
    input_size: tuple[int, int]
    base_input_size: tuple[int, int]
    base: Mapping[str, tuple[int, ...]]
    versions: Mapping[str, str]
    listed: tuple[str, ...] = ()
    method: Mapping[str, str] = field(default_factory=dict)
    network: str = ""

    def to_json(self) -> str:
        """One JSON document; equal lists of positions are written once."""
        sets: dict[tuple[int, ...], int] = {}
        axes = [[axis.layer, axis.side, sets.setdefault(kept, len(sets))] for axis, kept in self.kept.items()]
        document = {
            "format": FORMAT,
            "network": self.network,
            "versions": dict(self.versions),
            "scale": list(self.scale.as_tuple()),
            "input_size": list(self.input_size),
            "base_input_size": list(self.base_input_size),
            "removed_blocks": list(self.removed),
            "removed_from_lists": list(self.listed),
            "method": dict(self.method),
            "kept_channels": axes,
            "channel_sets": [list(kept) for kept in sets],
            "base_shapes": {name: list(shape) for name, shape in self.base.items()},
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read ``to_json``'s document. Raises MobilepruneError where the text is not one."""
        try:
            document: dict[str, Any] = json.loads(text)
            if document["format"] != FORMAT:
                raise MobilepruneError(
                    f"the recipe has format {document['format']} and this version reads {FORMAT}: prune again, or "
                    f"install mobileprune {document.get('versions', {}).get('mobileprune', 'of that time')}"
                )
            sets = [tuple(int(i) for i in kept) for kept in document["channel_sets"]]
            height, width = document["input_size"]
            base_height, base_width = document["base_input_size"]
            return cls(
                scale=Scale(*document["scale"]),
                removed=tuple(document["removed_blocks"]),
                kept={Axis(layer, side): sets[number] for layer, side, number in document["kept_channels"]},
                input_size=(int(height), int(width)),
                base_input_size=(int(base_height), int(base_width)),
                base={name: tuple(shape) for name, shape in document["base_shapes"].items()},
                versions=document["versions"],
                listed=tuple(document.get("removed_from_lists", ())),
                method=document.get("method", {}),
                network=document.get("network", ""),
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise MobilepruneError(
                f"this is not a pruning recipe ({type(error).__name__}: {error}): give the recipe.json of a run"
            ) from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """State-dict shapes that need no look at the network: those of tensors that were not removed or cut."""
        cut = {axis.layer for axis in self.kept}
        return {
            name: shape
            for name, shape in self.base.items()
            if not within(name, self.removed) and name not in cut and name.rpartition(".")[0] not in cut
        }


def rebuild(recipe: Recipe, base: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The pruned architecture, made from the base network, which is left untouched, or from its constructor.

    Its weights are the base's remaining ones: load the pruned model's state dict into it (strictly). Raises
    MobilepruneError naming the first difference where ``base`` is not the network the recipe was made from.
    """
    base_model = base if isinstance(base, nn.Module) else base()
    require_same(recipe.base, base_model, "the recipe")
    model = outline(base_model)
    apply(model, recipe.removed, recipe.kept, recipe.listed)
    own_tensors(model, base_model)
    return model


def apply(
    model: nn.Module, removed: Sequence[str], keep: Mapping[Axis, Sequence[int]], listed: Sequence[str] = ()
) -> None:
    """Take the blocks ``removed`` out of ``model`` (those ``listed``: from their lists) and keep the positions ``keep``
    of each axis, in place."""
    slice_model(model, {axis: positions for axis, positions in keep.items() if not within(axis.layer, removed)})
    remove_blocks(model, removed, listed)


def require_same(shapes: Mapping[str, tuple[int, ...]], model: nn.Module, owner: str) -> None:
    """Raise MobilepruneError in words at the first tensor in which ``model`` differs from ``shapes``."""
    there = shapes_of(model)
    for name, shape in shapes.items():
        if name not in there:
            raise MobilepruneError(
                f"{owner} belongs to another network: it has a tensor {name} {shape}, which this model lacks; "
                "build the base with the arguments it was trained with"
            )
        if there[name] != shape:
            raise MobilepruneError(
                f"{owner} belongs to another network: {name} is {shape} there and {there[name]} in this model; "
                "build the base with the arguments it was trained with"
            )
    extra = next((name for name in there if name not in shapes), None)
    if extra is not None:
        raise MobilepruneError(
            f"{owner} belongs to another network: this model has a tensor {extra} {there[extra]}, which that one "
            "lacks; build the base with the arguments it was trained with"
        )


def require_pruned(recipe: Recipe, model: nn.Module) -> None:
    """Raise MobilepruneError where ``model`` is not a network that ``recipe`` describes (blocks, widths, shapes)."""
    shapes = shapes_of(model)
    sizes = axis_sizes(model)
    for name, shape in recipe.shapes().items():
        if shapes.get(name) != shape:
            raise MobilepruneError(
                f"the recipe does not describe this model: {name} is {shape} there and {shapes.get(name, 'absent')} "
                "here; give the recipe that was saved with the model"
            )
    for axis, kept in recipe.kept.items():
        if sizes.get(axis) != len(kept):
            raise MobilepruneError(
                f"the recipe does not describe this model: {axis} has {len(kept)} channels there and "
                f"{sizes.get(axis, 'none')} here; give the recipe that was saved with the model"
            )
    left = next((name for name in shapes if within(name, recipe.removed)), None)
    if left is not None:
        raise MobilepruneError(
            f"the recipe does not describe this model: it removed the block that holds {left}; give the recipe that "
            "was saved with the model"
        )


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the state dict of ``model``."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def within(name: str, blocks: Sequence[str]) -> bool:
    """Whether the module or parameter at ``name`` is one of ``blocks`` or inside of one."""
    return any(name == block or name.startswith(block + ".") for block in blocks)


def relative(kept: Sequence[int], before: Sequence[int] | None) -> list[int]:
    """Base positions as positions in a network that still has the base positions ``before`` (None: all)."""
    return list(kept) if before is None else np.searchsorted(np.asarray(before), np.asarray(kept)).tolist()
