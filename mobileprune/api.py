"""The functions of the public API that need more than one room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mobileprune.budget import parse_budgets
from mobileprune.errors import UsageError
from mobileprune.models import find_model
from mobileprune.optimize import optimize as _optimize
from mobileprune.progress import Display, Quiet
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.difference import Difference
from mobileprune.pruning.difference import diff as diff_recipe
from mobileprune.pruning.explain import Explanation
from mobileprune.pruning.explain import explain as explain_anatomy
from mobileprune.pruning.recipe import Recipe
from mobileprune.request import Request, open_or_create
from mobileprune.run import Run, locked
from mobileprune.stages.context import Context
from mobileprune.stages.prune import restore
from mobileprune.stages.records import scale_key
from mobileprune.stages.solve import chosen_scale, current_budgets, set_budgets
from mobileprune.stages.summary import Summary, summarise


def load_model(spec: str, classes: int = 1000, **arguments: Any) -> nn.Module:
    """Build a model by name: ``resnet20``, ``torchvision:NAME``, ``timm:NAME`` or ``path/to/file.py:factory``.

    classes: the number of outputs, where the constructor takes one. Raises UsageError for an unknown name.
    """
    return find_model(spec, arguments).build(classes)


def load(run: str | Path) -> nn.Module:
    """The finished network of a run folder, in eval mode; no pickle is read.

    The architecture is the base's constructor and recipe.json, the weights are safetensors. It takes normalised float32
    (N, 3, H, W) at the size that the run's manifest names. Raises MobilepruneError where the run has no result yet.
    """
    opened = Run.open(Path(run))
    ctx = Context(opened, Quiet())
    folder = opened.path / "results" / scale_key(chosen_scale(opened))
    return restore(ctx, folder, "weights").model.eval()


def explain(spec: str, arguments: Sequence[str] = (), image_size: int | None = None) -> Explanation:
    """What can be pruned in a model by name, with its own number of classes, and what cannot and why.

    arguments: ``key=value`` for its constructor. image_size: the side in pixels (32 for built-in models, else 224).
    """
    source = find_model(spec, arguments)
    size = image_size or (32 if source.library == "mobileprune" else 224)
    anatomy = Anatomy.of(source.build(10 if source.library == "mobileprune" else 1000), torch.zeros(1, 3, size, size))
    return explain_anatomy(anatomy)


def diff(path: str | Path) -> Difference:
    """What a run's result, or the recipe.json of one of its scales, has lost against the base.

    Raises UsageError where ``path`` is neither.
    """
    found = Path(path)
    folder = next((f for f in (found, *found.resolve().parents) if (f / "run.toml").is_file()), None)
    if folder is None:
        raise UsageError(f"{path} is neither a run folder nor a recipe.json in one")
    run = Run.open(folder)
    ctx = Context(run, Quiet())
    if found.is_dir():
        found = run.path / "results" / scale_key(chosen_scale(run)) / "recipe.json"
    if not found.is_file():
        raise UsageError(f"no recipe {found}")
    recipe = Recipe.from_json(found.read_text(encoding="utf-8"))
    return diff_recipe(recipe, ctx.new_model(), torch.zeros(1, 3, *recipe.base_input_size))


def optimize(
    run: str | Path, *, budget: str | tuple[str, ...] = (), display: Display | None = None, **request: Any
) -> Summary:
    """What ``mobileprune optimize`` does, from Python: make or continue the run folder ``run`` and finish it.

    budget: as on the command line, "50%" or ("12ms", "2MB"). request: the other options as keyword arguments, see
    ``mobileprune.request.Request``. Returns the summary that ``--json`` prints.
    """
    texts = (budget,) if isinstance(budget, str) else tuple(budget)
    parse_budgets(texts)
    path = Path(run)
    with locked(path):
        opened = open_or_create(path, Request(**request))
        if texts:
            set_budgets(opened, texts)
        current_budgets(opened)  # says so now where there is none
        _optimize(Context(opened, display or Quiet()))
        return summarise(opened)
