"""Prune: the chosen scale, taken from its own probe's weights or cut from the nearest probe's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import prune as prune_model
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.run import write_text
from mobileprune.scale import BASE, Scale
from mobileprune.stages import weights
from mobileprune.stages.accuracies import probed_scales, start_of
from mobileprune.stages.context import Context
from mobileprune.stages.records import read_costs, scale_key
from mobileprune.stages.solve import chosen_scale

_NORM_IMAGES, _NORM_BATCH = 512, 64


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


def finished_probes(ctx: Context) -> list[Scale]:
    """The scales that have been probed, and the base."""
    return probed_scales(ctx.run)


def cut(ctx: Context, scale: Scale, parent: Scale) -> Network:
    """``parent``'s network with its fine-tuned weights, pruned further to ``scale``."""
    start = Network(ctx.base, None, ctx.data.size)
    if parent != BASE:
        start = restore(ctx, ctx.run.path / "probes" / scale_key(parent), "weights")
    if scale == parent:
        return start
    pruned = prune_model(
        start.model, scale, ctx.example[:1], anatomy=ctx.anatomy, ranking=ctx.ranking, recipe=start.recipe
    )
    _reestimate_norms(ctx, pruned.model, pruned.input_size[0])
    return Network(pruned.model, pruned.recipe, pruned.input_size[0])


def _reestimate_norms(ctx: Context, model: nn.Module, size: int) -> None:
    """Fit the batch-norm statistics to what the pruned network sees; training starts from there."""
    images, view = ctx.data.train.sample(_NORM_IMAGES, ctx.seed).images, ctx.view_at(size)
    batches = [batch for batch in images.split(_NORM_BATCH) if len(batch) > 1]
    if batches:
        reestimate_norms(model, map(view, batches))


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
