"""The functions of the public API that need more than one room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mobileprune.budget import parse_budgets
from mobileprune.models import find_model
from mobileprune.optimize import optimize as _optimize
from mobileprune.progress import Display, Quiet
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
