"""One pruning step: a network and a scale in, the pruned network and its recipe out."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.pruning.allocation import FLOOR, Allocation, Widths
from mobileprune.pruning.anatomy import Anatomy, Choice
from mobileprune.pruning.importance import Batches, Criterion, Importance
from mobileprune.pruning.layers import Axis, Inputs, first_sample, outline, own_tensors, resized
from mobileprune.pruning.moments import Moments, input_moments
from mobileprune.pruning.reach import reach
from mobileprune.pruning.recipe import Recipe, apply, relative, require_pruned, require_same, within
from mobileprune.pruning.reconstruct import reconstruct_weights
from mobileprune.pruning.shadow import require_runs
from mobileprune.scale import BASE, DIMENSIONS, Scale


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection for a moment: a full one looks at all that torch has loaded."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class Pruned:
    """A pruned network: a new ``model`` that takes inputs of ``input_size`` (h, w), at ``scale`` of its base.

    macs and params: the shares of the base's multiply-accumulates and parameters that it has. unreconstructed: the
    layers that lost inputs and, though asked to, could not make up for them, with the reason.
    """

    model: nn.Module
    input_size: tuple[int, int]
    recipe: Recipe
    scale: Scale
    macs: float
    params: float
    unreconstructed: Mapping[str, str] = field(default_factory=dict)


@_uncollected()
def prune(
    model: nn.Module,
    scale: Scale | None,
    example_input: Inputs,
    *,
    macs: float | None = None,
    params: float | None = None,
    along: Sequence[str] = DIMENSIONS,
    anatomy: Anatomy | None = None,
    ranking: Mapping[str, float] | None = None,
    recipe: Recipe | None = None,
    importance: Criterion = "l2",
    widths: Widths = "uniform",
    floor: float = FLOOR,
    batches: Batches | None = None,
    reconstruct: bool = False,
    seed: int = 0,
) -> Pruned:
    """Prune ``model`` to the realisable scale closest to ``scale``, which is relative to the base; leave it untouched.

    In place of a scale (None) a share of the base's MACs or parameters can be asked for, ``macs=0.5``, to be reached
    along the dimensions named: see ``reach``.

    example_input: (N, C, H, W) at the base's size. anatomy: of the base, found here where ``model`` is the base.
    ranking: which blocks go first (``rank_blocks``); without one they go evenly spread. recipe: what ``model`` has
    already lost, where it is itself a pruned network (its fine-tuned weights then say which channels go next); the
    anatomy is then needed.

    importance: which channels of a group stay, see ``Importance``; "random" takes ``seed``. reconstruct: whether the
    layers that lose inputs make up for them with the weights of the others (``reconstruct_weights``). This and the
    importances "taylor" and "reconstruction" need ``batches`` of (images, labels), which may be gone through twice: a
    few hundred training images, normalised, at the size of the model; labels matter to "taylor" alone.

    widths: "uniform" keeps the same share of every group; "global" keeps more where they matter most across the groups,
    and of none less than ``floor`` of its uniform number, see ``Allocation``. The cost of uniform widths is known
    beforehand (``Anatomy.cost``), that of global ones from the result.

    Raises UsageError where the scale asks for what cannot be pruned, changes nothing, or is larger than the scale that
    ``model`` already has; MobilepruneError where model, anatomy and recipe do not belong together.
    """
    if (scale is None) == (macs is None and params is None):
        raise UsageError("give either a scale or a share of the base: prune(model, None, example_input, macs=0.5)")
    if scale is not None and tuple(along) != DIMENSIONS:
        raise UsageError("along= is for a share of the base: a scale says itself how much of each dimension stays")
    allocation = Allocation(widths, floor)
    anatomy = _analysed(model, scale, example_input, anatomy, recipe)
    target = None
    if scale is None:
        target = reach(anatomy, macs=macs, params=params, along=along, ranking=ranking, parent=recipe)
        scale = target.scale
    anatomy.require_possible(scale)
    choice = anatomy.choose(scale, ranking, recipe.removed if recipe else ())
    _require_smaller(choice.scale, recipe.scale if recipe else BASE)
    reads = reconstruct or importance == "reconstruction"
    moments = _moments(model, anatomy, choice, recipe, batches) if reads else {}
    scorer = Importance.of(model, importance, batches, seed, moments)
    choice, kept = allocation.of(anatomy, choice, scorer, recipe.kept if recipe else {}, target)
    method = {"importance": importance, "widths": widths, "blocks": "evenly spread" if ranking is None else "ranked"}
    method |= {"weights": "reconstructed"} if reconstruct else {}
    network = recipe.network if recipe else f"{type(model).__module__}.{type(model).__qualname__}"
    child = _recipe(anatomy, choice, kept, method, network)
    _require_change(scale, child, recipe)
    pruned = _cut(model, child, recipe)
    _require_runs(pruned, example_input, child)
    unreconstructed = reconstruct_weights(pruned, child, model, moments, recipe) if reconstruct else {}
    base, left = anatomy.cost(BASE), anatomy.cost_of(choice)
    shares = (left.macs / max(1, base.macs), left.params / max(1, base.params))
    return Pruned(pruned, choice.size, child, choice.scale, *shares, unreconstructed)


def _moments(
    model: nn.Module, anatomy: Anatomy, choice: Choice, parent: Recipe | None, batches: Batches | None
) -> dict[str, Moments]:
    """What the layers read whose inputs may go, in ``model`` without the blocks that go; empty where no channel goes.

    Blocks that leave a list are still there: their channels go with them, and are made up for as others are.
    """
    if batches is None:
        raise UsageError("to reconstruct what layers give takes images: pass batches=[(images, labels), ...]")
    listed = {block.name for block in anatomy.blocks if block.listed}
    before, already = (parent.scale.width, parent.removed) if parent else (1.0, ())
    going = [name for name in choice.removed if name not in already]
    if choice.scale.width > before - 1e-9 and listed.isdisjoint(going):
        return {}
    layers = dict(model.named_modules())
    readers = dict.fromkeys(
        axis.layer
        for group in anatomy.groups
        for axis in group.members
        if axis.side == "in" and axis.layer in layers and not group.cuts_groups(axis.layer, layers[axis.layer])
    )
    images = (inputs for inputs, _ in batches)
    return input_moments(model, readers, [name for name in going if name not in listed], images, choice.size)


def _analysed(
    model: nn.Module, scale: Scale | None, example_input: Inputs, anatomy: Anatomy | None, recipe: Recipe | None
) -> Anatomy:
    """The anatomy of the base, to which ``model`` and its recipe belong."""
    if recipe is None:
        if anatomy is None:
            resolutions = scale is None or scale.resolution < 1.0
            depths = scale is None or scale.depth < 1.0
            return Anatomy.of(model, example_input, resolutions=resolutions, depths=depths)
        require_same(anatomy.base, model, "the anatomy")
        return anatomy
    if anatomy is None:
        raise UsageError("an already pruned model was given without the anatomy of its base: pass anatomy=")
    if recipe.base != dict(anatomy.base) or recipe.base_input_size != anatomy.base_size:
        raise MobilepruneError(
            "the recipe and the anatomy belong to different base networks: analyse the recipe's base"
        )
    require_pruned(recipe, model)
    return anatomy


def _require_smaller(reached: Scale, parent: Scale) -> None:
    for dimension in DIMENSIONS:
        there, wanted = getattr(parent, dimension), getattr(reached, dimension)
        if wanted > there + 1e-9:
            raise UsageError(
                f"{dimension} {wanted:.3g} was asked of a model that is already at {there:.3g}: what was removed "
                "cannot come back; start from a larger parent"
            )


def _require_change(asked: Scale, child: Recipe, parent: Recipe | None) -> None:
    there = (parent.removed, parent.kept, parent.input_size) if parent else ((), {}, child.base_input_size)
    if (child.removed, child.kept, child.input_size) == there and asked != (parent.scale if parent else BASE):
        raise UsageError(
            f"the scale {asked} changes nothing: the closest that this network can take is {child.scale}, where it "
            "already is; choose a scale from its lattice"
        )


def _recipe(
    anatomy: Anatomy, choice: Choice, kept: Mapping[Axis, tuple[int, ...]], method: Mapping[str, str], network: str
) -> Recipe:
    return Recipe(
        scale=choice.scale,
        removed=choice.removed,
        kept={axis: at for axis, at in kept.items() if not within(axis.layer, choice.removed)},
        input_size=choice.size,
        base_input_size=anatomy.base_size,
        base=dict(anatomy.base),
        versions=dict(_versions()),
        listed=tuple(block.name for block in anatomy.blocks if block.listed and block.name in choice.removed),
        method=method,
        network=network,
    )


def _cut(model: nn.Module, child: Recipe, parent: Recipe | None) -> nn.Module:
    """A copy of ``model``, which ``parent`` describes (None: the base), without what ``child`` took out."""
    before = parent.kept if parent else {}
    already = parent.removed if parent else ()
    pruned = outline(model)
    step = {axis: relative(at, before.get(axis)) for axis, at in child.kept.items()}
    apply(pruned, [name for name in child.removed if name not in already], step, child.listed)
    own_tensors(pruned, model)
    return pruned


def _require_runs(pruned: nn.Module, example_input: Inputs, recipe: Recipe) -> None:
    """Run the result once, on shapes where that is possible: a network that cannot run is never handed out."""
    try:
        require_runs(pruned, resized(first_sample(example_input), recipe.input_size))
    except UsageError as error:
        raise MobilepruneError(
            f"the network pruned to {recipe.scale} does not run: {error}; please report it"
        ) from error


@cache
def _versions() -> Mapping[str, str]:
    found = {}
    for package in ("mobileprune", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
