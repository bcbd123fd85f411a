"""One training in several processes, each with a GPU or a share of the CPU; accelerate connects them.

The processes read the run folder; the first writes the state after each epoch there and, at the end, the weights. They
compute what one process computes, up to rounding, but for batch norm, whose statistics are over the images of each.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.given import MODULE
from mobileprune.progress import Quiet
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.run import Run
from mobileprune.stages import weights
from mobileprune.stages.context import Context
from mobileprune.training.finetune import Progress
from mobileprune.training.memory import TooLargeError, release
from mobileprune.training.processes import Team, ordered

_LEAST_IMAGES = 16  # of a batch for each process where it is not asked how many there are: batch norm learns from them
Kind = Literal["progress", "say", "again", "error", "failed"]


@dataclass(frozen=True)
class Lesson:
    """A training by the schedule of ``what``, over ``epochs`` where it is not 0, at ``size`` px.

    name: for people, and of its state on disk. distill: taught by the base. at_once: as ``fit`` takes it.
    """

    what: str
    name: str
    size: int
    distill: bool
    epochs: int = 0
    at_once: int = 0

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return stem_of(self.name)


def stem_of(name: str) -> str:
    """What the names of a training's files begin with."""
    return name.replace(" ", "-")


def processes(ctx: Context) -> int:
    """How many processes train one network: as the engine asks, else one for each GPU.

    Raises UsageError where as many cannot train here.
    """
    asked, gpus = ctx.engine.processes, torch.cuda.device_count()
    batch = int(ctx.asked["training"]["batch_size"])
    objects = ctx.asked["model"]["library"] == MODULE or str(ctx.asked["data"]["spec"]).startswith("python:")
    if asked is None:
        return 1 if objects else max(min(gpus, batch // _LEAST_IMAGES), 1)
    if asked > 1 and objects:
        raise UsageError(
            "a network or images given as Python objects are in this process alone: name the model and the data, "
            f"or leave out processes={asked}"
        )
    if gpus and asked > gpus:
        raise UsageError(f"--processes {asked}: each trains on a GPU of its own, and there are {gpus}; ask for fewer")
    if 2 * asked > batch:
        raise UsageError(f"--processes {asked}: a batch of {batch} images is too small; take a larger --batch-size")
    return asked


def train_together(
    ctx: Context,
    model: nn.Module,
    recipe: Recipe | None,
    lesson: Lesson,
    progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> None:
    """Train ``model``, which ``recipe`` makes from the base (None: which is the base), in place."""
    folder = ctx.folder("training")
    start, end = folder / f"{lesson.stem}-start.safetensors", folder / f"{lesson.stem}-end.safetensors"
    log = folder / f"{lesson.stem}.log"
    weights.store(model, start)
    release()  # the GPU's memory is for the processes
    order = _Order(ctx.run.path, None if recipe is None else recipe.to_json(), lesson, start, end)
    while at_once := _attempt(order, processes(ctx), log, progress, say):
        order = replace(order, lesson=replace(lesson, at_once=at_once))
    weights.load(model, end)
    model.eval()
    for path in (start, end, log):
        path.unlink()


@dataclass(frozen=True)
class _Order:
    """What each process is told: the run, the network (the JSON of its recipe), and files of weights."""

    run: Path
    recipe: str | None
    lesson: Lesson
    start: Path
    end: Path


def _attempt(
    order: _Order, count: int, log: Path, progress: Callable[[Progress], None], say: Callable[[str], None]
) -> int:
    """Have ``order`` done; 0 where it is, else how many images at once to begin again with."""
    with Team(__name__, count, order, log) as team:
        for kind, what in team.events():
            match kind:
                case "progress":
                    progress(what)
                case "say":
                    say(what)
                case "again":
                    text, at_once = what
                    say(text)
                    return int(at_once)
                case "error":
                    raise MobilepruneError(what)
                case "failed":
                    raise team.lost(what)
    return 0


def _work(order: _Order, tell: Callable[[tuple[Kind, Any]], None]) -> None:
    """In one of the processes: train, and tell how far it is."""
    from accelerate import PartialState

    from mobileprune.stages.train import train_here

    state = PartialState(cpu=not torch.cuda.is_available())
    ctx = Context(Run.open(order.run), Quiet())
    model = ctx.new_model()
    if order.recipe:
        model = rebuild(Recipe.from_json(order.recipe), model)
    weights.load(model, order.start)

    def first(kind: Kind) -> Callable[[Any], None]:
        """Only the first process tells what all of them know."""
        return lambda what: tell((kind, what)) if state.is_main_process else None

    train_here(ctx, model, order.lesson, first("progress"), first("say"))
    if state.is_main_process:
        weights.store(model, order.end)
    state.destroy_process_group()


def _main() -> None:
    order, link = ordered()
    try:
        _work(order, link.send)
    except TooLargeError as error:
        link.send(("again", (str(error), error.at_once)))
    except MobilepruneError as error:
        link.send(("error", str(error)))
    except Exception as error:
        traceback.print_exc()
        link.send(("failed", f"failed with {type(error).__name__}: {error}".splitlines()[0]))
    else:
        return
    threading.Event().wait()  # to be ended with the others: that this one is gone would be an error to them


if __name__ == "__main__":
    _main()
