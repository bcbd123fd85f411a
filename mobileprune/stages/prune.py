"""Prune: the chosen scale, taken from its own probe's weights or cut from the nearest probe's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mobileprune.data import Split
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import prune as prune_model
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.run import write_text
from mobileprune.scale import BASE, Scale
from mobileprune.stages import weights
from mobileprune.stages.accuracies import start_of
from mobileprune.stages.context import Context
from mobileprune.stages.records import read_costs, scale_key
from mobileprune.stages.solve import chosen_scale
from mobileprune.training.batches import View

_CALIBRATION_IMAGES, _BATCH = 512, 64


@dataclass(frozen=True)
class Network:
    """A pruned network on its way: the module, what was cut from the base, and its input side in pixels."""

    model: nn.Module
    recipe: Recipe | None  # None: the base itself
    size: int


def prune(ctx: Context) -> None:
    """Cut the chosen scale; weights and recipe go to ``results/SCALE/``."""
    scale = chosen_scale(ctx.run)
    folder = ctx.folder("results", scale_key(scale))
    if ctx.run.journal.get("pruned", scale_key(scale)) is not None:
        return
    parent = start_of(ctx.run, scale)
    where = "its own probe" if parent == scale else "the base" if parent == BASE else f"the probe at {parent}"
    ctx.display.stage("prune", f"{scale}, from {where}")
    network = cut(ctx, scale, parent)
    store(network, folder, "pruned")
    removed = round((1 - scale.depth) * len(ctx.anatomy.blocks))
    share = read_costs(ctx.run)[scale]["macs"] / read_costs(ctx.run)[BASE]["macs"]
    blocks = f"{removed} block{'s' * (removed != 1)}"
    ctx.display.say(f"{blocks} removed, input {network.size} px, {100 * share:.0f} % of the MACs")
    ctx.run.journal.append("pruned", scale_key(scale), scale=scale.as_tuple(), parent=parent.as_tuple())


def cut(ctx: Context, scale: Scale, parent: Scale) -> Network:
    """``parent``'s network with its fine-tuned weights, pruned further to ``scale``."""
    start = Network(ctx.base, None, ctx.data.size)
    if parent != BASE:
        start = restore(ctx, ctx.run.path / "probes" / scale_key(parent), "weights")
    if scale == parent:
        return start
    batches = calibration(ctx, start.size)
    pruned = prune_model(
        start.model,
        scale,
        ctx.example[:1],
        anatomy=ctx.anatomy,
        ranking=ctx.ranking,
        recipe=start.recipe,
        importance="reconstruction",
        reconstruct=True,
        batches=batches,
    )
    size = pruned.input_size[0]
    reestimate_norms(pruned.model.to(ctx.device), (seen for seen, _ in replace(batches, view=ctx.view_at(size))))
    for layer, why in pruned.unreconstructed.items():
        ctx.run.once("note", f"width: {layer} does not make up for the inputs that it loses: {why}", dict)
    return Network(pruned.model.cpu(), pruned.recipe, size)


def calibration(ctx: Context, size: int) -> Calibration:
    """The training images that weights and norm statistics are fitted to what a pruned network sees by."""
    return Calibration(ctx.data.train.sample(_CALIBRATION_IMAGES, ctx.seed), ctx.view_at(size), ctx.device)


@dataclass(frozen=True)
class Calibration:
    """Batches of (images as ``view`` shows them, labels) on ``device``, again each time; none of one image alone."""

    images: Split
    view: View
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = zip(self.images.images.split(_BATCH), self.images.labels.split(_BATCH), strict=True)
        return ((self.view(pixels.to(self.device)), labels) for pixels, labels in parts if len(pixels) > 1)


def store(network: Network, folder: Path, name: str) -> None:
    """Write ``folder/recipe.json`` and ``folder/NAME.safetensors``. The base itself is never stored this way."""
    assert network.recipe is not None
    write_text(folder / "recipe.json", network.recipe.to_json())
    weights.store(network.model, folder / f"{name}.safetensors")


def restore(ctx: Context, folder: Path, name: str) -> Network:
    """Read what ``store`` wrote."""
    recipe = Recipe.from_json((folder / "recipe.json").read_text())
    model = rebuild(recipe, ctx.new_model())
    weights.load(model, folder / f"{name}.safetensors")
    return Network(model, recipe, recipe.input_size[0])
