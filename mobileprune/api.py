"""The functions of the public API that need more than one room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from mobileprune.borrow import folder_beside
from mobileprune.engine import Engine
from mobileprune.errors import UsageError
from mobileprune.given import Normalisation
from mobileprune.journey import Event, Journey, Options, ProgressCallback, Result, load
from mobileprune.models import find_model
from mobileprune.progress import Display, Quiet
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.difference import Difference
from mobileprune.pruning.difference import diff as diff_recipe
from mobileprune.pruning.explain import Explanation
from mobileprune.pruning.explain import explain as explain_anatomy
from mobileprune.pruning.recipe import Recipe
from mobileprune.request import new_folder
from mobileprune.run import Run
from mobileprune.stages.context import Context
from mobileprune.stages.records import require, scale_key
from mobileprune.stages.solve import chosen_scale

__all__ = ["Event", "Journey", "Options", "Result", "diff", "explain", "load", "load_model", "optimize"]


def load_model(spec: str, classes: int = 1000, **arguments: Any) -> nn.Module:
    """Build a model by name: ``resnet20``, ``torchvision:NAME``, ``timm:NAME`` or ``path/to/file.py:factory``.

    classes: the number of outputs, where the constructor takes one. Raises UsageError for an unknown name.

    Examples:
        >>> import mobileprune
        >>> network = mobileprune.load_model("resnet20", classes=10)
        >>> sum(p.numel() for p in network.parameters())
        272474
    """
    return find_model(spec, arguments).build(classes)


def explain(spec: str, arguments: Sequence[str] = (), image_size: int | None = None) -> Explanation:
    """What can be pruned in a model by name, with its own number of classes, and what cannot and why.

    arguments: ``key=value`` for its constructor. image_size: the side in pixels (32 for built-in models, else 224).
    """
    source = find_model(spec, arguments)
    size = image_size or (32 if source.library == "mobileprune" else 224)
    anatomy = Anatomy.of(source.build(10 if source.library == "mobileprune" else 1000), torch.zeros(1, 3, size, size))
    return explain_anatomy(anatomy)


def diff(path: str | Path) -> Difference:
    """What a run's result, or one of its scales, has lost against the base.

    path: a run folder, a folder in it that has a recipe.json, or that recipe.json. Raises UsageError where it is none.
    """
    found = Path(path)
    folder = next((f for f in (found, *found.resolve().parents) if (f / "run.toml").is_file()), None)
    if folder is None:
        raise UsageError(f"{path} is neither a run folder nor a recipe.json in one; name a run, such as runs/demo")
    run = Run.open(folder)
    ctx = Context(run, Quiet())
    if (found / "run.toml").is_file():
        key = scale_key(chosen_scale(run))
        require(run, "pruned", key, "prune")
        found = run.path / "results" / key
    file = found / "recipe.json" if found.is_dir() else found
    if not file.is_file():
        raise UsageError(f"no recipe {file}: name a run, such as {folder}, or one of the folders in its probes/")
    recipe = Recipe.from_json(file.read_text(encoding="utf-8"))
    return diff_recipe(recipe, ctx.new_model(), torch.zeros(1, 3, *recipe.base_input_size))


def optimize(
    model: nn.Module | str | None = None,
    data: Any = None,
    *,
    device: str | None = None,
    budget: str | Sequence[str] = (),
    run: str | Path | None = None,
    probes_from: str | Path | None = None,
    normalisation: Normalisation | None = None,
    flip: bool = True,
    progress: ProgressCallback | None = None,
    display: Display | None = None,
    engine: Engine | None = None,
    **options: Unpack[Options],
) -> Result:
    """The most accurate network that keeps ``budget`` on ``device``: pruned, fine-tuned, exported, measured.

    An nn.Module is taken as trained (``base_epochs`` trains it first). Whether the budgets are kept, as measured, is
    the result's ``kept``. What is finished is kept, and the same call goes on from there.

    Args:
        model: your network as an nn.Module (it is copied and left as it is), or a name as behind ``--model``.
        data: ``(train, validation)`` or ``(train, validation, test)`` of DataLoaders, Datasets or pairs (images,
            labels), or a name or folder as behind ``--data``. Give them without random augmentation; mobileprune adds
            its own.
        device: what ``mobileprune devices`` lists; this machine by default.
        budget: "50%" (of the base's latency), "12ms", ("12ms", "2MB"), ... as behind ``--budget``.
        run: the run folder; one that is there is gone on with, for which the same network and data are given again.
            By default a new one under ``runs/``.
        probes_from: a run for another device or precision: its base and probes are used, and what is not said here is
            asked as there.
        normalisation: (mean, std) per channel of pixels in [0, 1] that the network expects; needed with an nn.Module,
            and undone where loaders give normalised images.
        flip: whether a mirrored image keeps its meaning.
        progress: called with each Event.
        display: instead of ``progress``, something with the methods of ``mobileprune.progress.Display``.
        engine: where to train, this process by default; ``mobileprune.engine.RayEngine`` for a cluster.
        **options: the command line's other flags.

    Raises:
        UsageError: for a question that cannot be answered.
        MobilepruneError: where something fails.

    Examples:
        >>> import torch, mobileprune
        >>> _ = torch.manual_seed(0)
        >>> images, labels = torch.randint(0, 256, (80, 3, 16, 16), dtype=torch.uint8), torch.arange(80) % 2
        >>> result = mobileprune.optimize(
        ...     mobileprune.load_model("resnet20", classes=2),
        ...     {"train": (images[:60], labels[:60]), "validation": (images[60:], labels[60:])},
        ...     normalisation=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ...     budget="8MMACs",
        ...     run=runs / "notebook",
        ...     probes=4, profile_scales=10, rounds=2, round_seconds=0, probe_epochs=1, epochs=1,
        ... )
        >>> result.kept, result.summary["result"]["macs"] <= 8e6
        (True, True)
        >>> result.model(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 2])
    """
    name = model if isinstance(model, str | None) else type(model).__name__
    if run is not None:
        folder = Path(run)
    elif probes_from is not None:
        folder = folder_beside(Path(probes_from))
    else:
        folder = new_folder(name, data if isinstance(data, str | None) else "given")
    if not budget and not (folder / "run.toml").exists():
        raise UsageError('no budget: say what must hold, for example budget="50%" or budget="12ms"')
    told: dict[str, Any] = {"progress": progress, "display": display, "engine": engine, **options}
    return Journey(
        model,
        data,
        run=folder,
        budget=budget,
        device=device,
        probes_from=probes_from,
        normalisation=normalisation,
        flip=flip,
        **told,
    ).optimize()
