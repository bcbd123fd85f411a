"""One pruning step: a network and a scale in, the pruned network and its recipe out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.pruning.anatomy import Anatomy, Choice, rows_left
from mobileprune.pruning.filters import SMALLEST, Kept, removed_positions
from mobileprune.pruning.importance import Batches, Criterion, Importance, best, spread_globally
from mobileprune.pruning.layers import Axis, Inputs, first_sample, outline, outputs, own_tensors, resized
from mobileprune.pruning.reach import reach
from mobileprune.pruning.recipe import Recipe, apply, require_pruned, require_same
from mobileprune.scale import BASE, Scale

Widths = Literal["uniform", "global"]


@dataclass(frozen=True)
class Pruned:
    """A pruned network: a new ``model`` that takes inputs of ``input_size`` (h, w), at ``scale`` of its base.

    macs and params: the shares of the base's multiply-accumulates and parameters that it has.
    """

    model: nn.Module
    input_size: tuple[int, int]
    recipe: Recipe
    scale: Scale
    macs: float
    params: float


def prune(
    model: nn.Module,
    scale: Scale | None,
    example_input: Inputs,
    *,
    macs: float | None = None,
    params: float | None = None,
    anatomy: Anatomy | None = None,
    ranking: Mapping[str, float] | None = None,
    recipe: Recipe | None = None,
    importance: Criterion = "l2",
    widths: Widths = "uniform",
    batches: Batches | None = None,
    seed: int = 0,
) -> Pruned:
    """Prune ``model`` to the realisable scale closest to ``scale``, which is relative to the base; leave it untouched.

    In place of a scale (None) a share of the base's MACs or parameters can be asked for, ``macs=0.5``: see ``reach``.

    example_input: (N, C, H, W) at the base's size. anatomy: of the base, found here where ``model`` is the base.
    ranking: which blocks go first (``rank_blocks``); without one they go evenly spread. recipe: what ``model`` has
    already lost, where it is itself a pruned network (its fine-tuned weights then say which channels go next); the
    anatomy is then needed.

    importance: which channels of a group stay, see ``Importance``; "taylor" needs ``batches`` of (images, labels), and
    "random" takes ``seed``. widths: "uniform" keeps the same share of every group; "global" keeps as many channels in
    all, where they matter most across the groups, no group below half of its uniform share (and 8 channels). The cost
    of uniform widths is known beforehand (``Anatomy.cost``), that of global ones from the result.

    Raises UsageError where the scale asks for what cannot be pruned, changes nothing, or is larger than the scale that
    ``model`` already has; MobilepruneError where model, anatomy and recipe do not belong together.
    """
    if anatomy is None:
        if recipe is not None:
            raise UsageError("an already pruned model was given without the anatomy of its base: pass anatomy=")
        anatomy = Anatomy.of(model, example_input, resolutions=scale is None or scale.resolution < 1.0)
    if recipe is None:
        require_same(anatomy.base, model, "the anatomy")
    elif recipe.base != dict(anatomy.base) or recipe.base_input_size != anatomy.base_size:
        raise MobilepruneError(
            "the recipe and the anatomy belong to different base networks: analyse the recipe's base"
        )
    else:
        require_pruned(recipe, model)
    if (scale is None) == (macs is None and params is None):
        raise UsageError("give either a scale or a share of the base: prune(model, None, example_input, macs=0.5)")
    if scale is None:
        scale = reach(anatomy, macs=macs, params=params, ranking=ranking, parent=recipe).scale
    anatomy.require_possible(scale)
    parent = recipe.scale if recipe else BASE
    choice = anatomy.choose(scale, ranking, recipe.removed if recipe else ())
    _require_smaller(scale, choice.scale, parent)

    if widths not in get_args(Widths):
        raise UsageError(f"widths={widths!r}: choose one of {', '.join(get_args(Widths))}")
    scorer = Importance.of(model, importance, batches, seed)
    choice, kept = _kept_positions(scorer, anatomy, choice, recipe, widths)
    child = Recipe(
        scale=choice.scale,
        removed=choice.removed,
        kept={axis: at for axis, at in kept.items() if not _within(axis.layer, choice.removed)},
        input_size=choice.size,
        base_input_size=anatomy.base_size,
        base=dict(anatomy.base),
        versions=_versions(),
        listed=tuple(block.name for block in anatomy.blocks if block.listed and block.name in choice.removed),
        method={"importance": importance, "widths": widths, "blocks": "evenly spread" if ranking is None else "ranked"},
    )
    pruned = outline(model)
    before = recipe.kept if recipe else {}
    already = recipe.removed if recipe else ()
    step = {axis: _relative(at, before.get(axis)) for axis, at in child.kept.items()}
    apply(pruned, [name for name in choice.removed if name not in already], step, child.listed)
    own_tensors(pruned, model)
    _require_runs(pruned, example_input, child)
    base, left = anatomy.cost(BASE), anatomy.cost_of(choice)
    shares = (left.macs / max(1, base.macs), left.params / max(1, base.params))
    return Pruned(pruned, choice.size, child, choice.scale, *shares)


def _require_smaller(asked: Scale, reached: Scale, parent: Scale) -> None:
    for dimension in ("depth", "width", "resolution"):
        there, wanted = getattr(parent, dimension), getattr(reached, dimension)
        if wanted > there + 1e-9:
            raise UsageError(
                f"{dimension} {wanted:.3g} was asked of a model that is already at {there:.3g}: what was removed "
                "cannot come back; start from a larger parent"
            )
    if reached == parent and asked != parent:
        raise UsageError(
            f"the scale {asked} changes nothing: the closest that this network can take is {reached}, where it already "
            "is; choose a scale from its lattice"
        )


def _kept_positions(
    scorer: Importance, anatomy: Anatomy, choice: Choice, recipe: Recipe | None, widths: Widths
) -> tuple[Choice, dict[Axis, tuple[int, ...]]]:
    """The choice with the channels that each group really keeps, and the base positions of the most important ones."""
    before = recipe.kept if recipe else {}
    alive = [rows_left(group, before) for group in anatomy.groups]
    needed = [widths == "global" or count < len(rows) for rows, count in zip(alive, choice.kept, strict=True)]
    scores = [
        scorer.of_channels(group, rows, before) if need else np.zeros(len(rows))
        for group, rows, need in zip(anatomy.groups, alive, needed, strict=True)
    ]
    counts = _globally(anatomy, choice, scores) if widths == "global" else choice.kept
    rows = [best(s, at, min(n, len(at))) for s, at, n in zip(scores, alive, counts, strict=True)]
    real = tuple(len(at) for at in rows)
    if real != choice.kept:
        choice = replace(choice, kept=real, scale=replace(choice.scale, width=_width(anatomy, choice, real)))
    kept = removed_positions(anatomy.groups, rows, anatomy.axes)
    return choice, {axis: tuple(at.tolist()) for axis, at in kept.items()}


def _globally(anatomy: Anatomy, choice: Choice, scores: Sequence[NDArray[np.float64]]) -> Kept:
    """The channels of ``choice`` spread over the groups by their scores."""
    units, floors = [], []
    for group, step, uniform, values in zip(anatomy.groups, anatomy.units, choice.kept, scores, strict=True):
        unit = math.lcm(step, group.positions_each) // group.positions_each
        least = max(uniform // 2, -(-SMALLEST // group.positions_each))
        units.append(unit)
        floors.append(min(uniform, -(-least // unit) * unit, len(values)))
    return spread_globally(scores, choice.kept, units, floors)


def _width(anatomy: Anatomy, choice: Choice, kept: Kept) -> float:
    """The share of channels kept, over the groups that are there (removed blocks may take theirs along)."""
    there = [(g, n) for g, n, asked in zip(anatomy.groups, kept, choice.kept, strict=True) if asked]
    return sum(n * g.positions_each for g, n in there) / max(1, sum(g.channels for g, _ in there))


def _relative(kept: tuple[int, ...], before: tuple[int, ...] | None) -> list[int]:
    """Base positions as positions in a network that still has the base positions ``before``."""
    return list(kept) if before is None else np.searchsorted(np.asarray(before), np.asarray(kept)).tolist()


def _within(path: str, blocks: tuple[str, ...]) -> bool:
    return any(path == block or path.startswith(block + ".") for block in blocks)


def _require_runs(pruned: nn.Module, example_input: Inputs, recipe: Recipe) -> None:
    """Run the result once, in eval mode: a network that cannot run is never handed out."""
    inputs = resized(first_sample(example_input), recipe.input_size)
    training = [module for module in pruned.modules() if module.training]
    pruned.eval()
    try:
        outputs(pruned, inputs)
    except Exception as error:
        raise MobilepruneError(
            f"the network pruned to {recipe.scale} does not run: {error}; please report it"
        ) from error
    finally:
        for module in training:
            module.training = True


def _versions() -> dict[str, str]:
    found = {}
    for package in ("mobileprune", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
