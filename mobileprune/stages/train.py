"""The base: trained where it has no weights yet, scored, and its blocks ranked by the loss that removing them costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mobileprune.data import ImageData
from mobileprune.errors import UsageError
from mobileprune.models import check_outputs, load_checkpoint
from mobileprune.progress import Pace
from mobileprune.pruning.blocks import rank_blocks
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.scale import BASE, Scale
from mobileprune.stages import weights
from mobileprune.stages.context import Context
from mobileprune.stages.curves import EpochRecord
from mobileprune.stages.remaining import images_left, probe_images_left
from mobileprune.stages.together import Lesson, processes, stem_of, train_together
from mobileprune.training.batches import View
from mobileprune.training.evaluate import evaluate
from mobileprune.training.finetune import Progress, Teacher, fit
from mobileprune.training.memory import parts
from mobileprune.training.rates import find_rate
from mobileprune.training.schedule import AUTO
from mobileprune.training.speed import fastest_setting
from mobileprune.words import counted

if TYPE_CHECKING:
    from mobileprune.pruning.recipe import Recipe
    from mobileprune.stages.prune import Network

FINETUNE_RATE = "finetune_learning_rate"
_RANKING_IMAGES = 512
_NORM_BATCH = 128
_TRIAL_IMAGES = 16


def train_base(ctx: Context) -> None:
    """Make sure that the run holds a trained, scored and ranked base."""
    processes(ctx)  # says so now where as many cannot train
    if ctx.run.journal.get("base", "score") is None:
        check_classifier(ctx)
        model = ctx.new_model()
        if ctx.has_checkpoint:
            load_checkpoint(model, Path(ctx.asked["model"]["checkpoint"]))
        check_outputs(model, ctx.example, len(ctx.data.classes), ctx.source.spec)
        epochs = ctx.schedule("base").epochs
        ctx.display.stage("base", f"{ctx.source.name} on {ctx.data.name}: " + _base_words(ctx, epochs))
        _note_normalisation(ctx)
        _measure_setting(ctx, model)
        if epochs:
            _choose_rate(ctx, "learning_rate", "base", BASE, model, ctx.view, None)
            train(ctx, model, ctx.view, "base", "base")
        weights.store(model, ctx.folder("base") / "weights.safetensors")
        ctx.run.journal.append("base", "score", **scores(ctx, model, ctx.view))
        forget(ctx, "base")
    entry = ctx.run.journal.get("base", "score")
    assert entry is not None
    ctx.display.say(f"base accuracy {describe(entry)}")
    ctx.run.once("ranking", "blocks", lambda: {"loss_increase": _rank(ctx)})


def check_classifier(ctx: Context) -> None:
    """Raises UsageError where the base would be taken as given with a classifier that was never trained."""
    known, classes = ctx.source.classes_of_weights, len(ctx.data.classes)
    if ctx.has_checkpoint or ctx.schedule("base").epochs or known in (None, classes):
        return
    raise UsageError(
        f"{ctx.source.spec}: its pretrained weights know {known} classes and the data has {classes}, so that its "
        "classifier would be random: train it with --base-epochs, or name the weights' classes with --labels"
    )


def _note_normalisation(ctx: Context) -> None:
    note = ctx.source.assumed_normalisation() if ctx.has_checkpoint else None
    if note and ctx.run.journal.get("note", note) is None:
        ctx.run.journal.append("note", note)
        ctx.display.say(note, style="yellow")


def _base_words(ctx: Context, epochs: int) -> str:
    count = f"{len(ctx.data.train):,} training images of {ctx.data.size} px"
    return f"training for {epochs} epochs on {count}" if epochs else f"taken as given; {count}"


def train(
    ctx: Context,
    model: nn.Module,
    view: View,
    what: str,
    name: str,
    *,
    distill: bool = False,
    epochs: int = 0,
    recipe: Recipe | None = None,
) -> None:
    """Train ``model`` in place by the schedule of ``what`` (over ``epochs`` if given), in as many processes as the
    engine says; resumable under ``name`` until ``forget`` is called.

    recipe: what was cut from the base to make ``model``, by which other processes make it, too; one that is not the
    base and has none is trained in this process.
    """
    assert ctx.schedule(what).learning_rate, f"the rate of {what} is to be measured first"
    lesson = Lesson(what, name, view.size, distill, epochs)
    epochs = epochs or ctx.schedule(what).epochs
    total, left = epochs * len(training_data(ctx, what).train), images_left(ctx.run)
    probes = probe_images_left(ctx.run) if what == "probe" else 0
    record, pace = EpochRecord(ctx.run.journal, name), Pace()
    best = best_probe(ctx)
    with ctx.display.work("training", f"{name}, {counted(epochs, 'epoch')}", total) as advance:

        def progress(p: Progress) -> None:
            record(p)
            now = pace(p.seen, left, probes)
            advance(p.seen, f"epoch {p.epoch + 1}/{epochs}, loss {p.loss:.3f}, {now}{best}")

        def say(text: str) -> None:
            ctx.display.say(text, style="yellow")

        if processes(ctx) > 1 and (recipe or what == "base"):
            train_together(ctx, model, recipe, lesson, progress, say)
        else:
            train_here(ctx, model, lesson, progress, say)
    _reestimate(ctx, model, view)
    model.cpu()


def train_here(
    ctx: Context,
    model: nn.Module,
    lesson: Lesson,
    progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> None:
    """Train ``model`` in this process: alone, or as one of several that accelerate has connected."""
    schedule = ctx.schedule(lesson.what)
    fit(
        model.to(ctx.device),
        training_data(ctx, lesson.what),
        ctx.view_at(lesson.size),
        replace(schedule, epochs=lesson.epochs or schedule.epochs),
        seed=ctx.seed,
        teacher=teacher_of(ctx) if lesson.distill else None,
        progress=progress,
        say=say,
        checkpoint=ctx.folder("training") / f"{lesson.stem}.pt",
        at_once=lesson.at_once,
    )


def forget(ctx: Context, name: str) -> None:
    """Remove the state of a training whose outcome is in the journal."""
    (ctx.folder("training") / f"{stem_of(name)}.pt").unlink(missing_ok=True)


def teacher_of(ctx: Context) -> Teacher:
    """The base, which the pruned networks learn from."""
    return Teacher(copy.deepcopy(ctx.base).to(ctx.device).eval(), ctx.view)


def _reestimate(ctx: Context, model: nn.Module, view: View) -> None:
    """Norm statistics over training images as they are: those of training are of augmented ones and lag behind."""
    if count := int(ctx.asked["training"].get("norm_images", 0)):
        few = ctx.data.train.sample(count, ctx.seed)
        batches = (view(part.to(ctx.device)) for part in parts(few.images, _NORM_BATCH))
        reestimate_norms(model.to(ctx.device), batches)


def training_data(ctx: Context, what: str) -> ImageData:
    """What to train on: all of it, or for probes the same share of it for every one, where that was asked."""
    count = int(ctx.asked["training"].get("probe_images", 0))
    if what != "probe" or not 0 < count < len(ctx.data.train):
        return ctx.data
    return replace(ctx.data, train=ctx.data.train.sample(count, ctx.seed))


def best_probe(ctx: Context) -> str:
    """The most accurate probe so far, in words for the end of a line."""
    found = [e["validation"]["accuracy"] for e in ctx.run.journal.all("probe")]
    return f", best probe {100 * max(found):.1f} %" if found else ""


def _measure_setting(ctx: Context, model: nn.Module) -> None:
    """Find out once how this machine computes fastest; the whole run keeps to it."""
    measured = ctx.run.journal.get("training", "setting") is not None
    if measured or ctx.asked["training"].get("precision", AUTO) != AUTO:
        return
    model.to(ctx.device)
    few = ctx.data.train.sample(_TRIAL_IMAGES)
    chosen, seconds = fastest_setting(model, ctx.view(few.images.to(ctx.device)), few.labels.to(ctx.device))
    model.cpu()
    ctx.run.journal.append("training", "setting", **asdict(chosen), seconds=seconds)
    ctx.display.say(f"training in {ctx.setting}")


def choose_rate(ctx: Context, scale: Scale, network: Callable[[Scale], Network]) -> None:
    """Where the fine-tuning rate is to be measured: once, on the ``network`` of ``scale``, for probes and results."""
    if ctx.asked["training"]["finetune_learning_rate"] == AUTO and not ctx.run.journal.get("training", FINETUNE_RATE):
        found = network(scale)
        view = ctx.view_at(found.size)
        _choose_rate(ctx, FINETUNE_RATE, "probe", scale, found.model, view, teacher_of(ctx))


def _choose_rate(
    ctx: Context, key: str, what: str, scale: Scale, model: nn.Module, view: View, teacher: Teacher | None
) -> None:
    if ctx.asked["training"][key] != AUTO or ctx.run.journal.get("training", key) is not None:
        return
    model.to(ctx.device)
    found = find_rate(model, ctx.data, view, ctx.schedule(what), seed=ctx.seed, teacher=teacher)
    model.cpu()
    ctx.run.journal.append("training", key, scale=scale.as_tuple(), **asdict(found))
    tried = f"{len(found.rates)} steps at {scale}"
    ctx.display.say(f"{key.replace('_', ' ')} {found.rate:g}, by a range test of {tried}")


def scores(ctx: Context, model: nn.Module, view: View, *, test: bool = True) -> dict[str, Any]:
    """Validation score and, where the data has a test split, the test score (null otherwise)."""
    model.to(ctx.device)
    held_out = evaluate(model, ctx.data.test, view).to_dict() if test and ctx.data.test is not None else None
    result = {"validation": evaluate(model, ctx.data.validation, view).to_dict(), "test": held_out}
    model.cpu()
    return result


def describe(entry: dict[str, Any]) -> str:
    """A journal entry's scores in words."""
    found = {split: entry[split] for split in ("validation", "test") if entry.get(split)}
    return ", ".join(f"{100 * s['accuracy']:.1f} ± {100 * s['std']:.1f} % ({split})" for split, s in found.items())


def _rank(ctx: Context) -> dict[str, float]:
    """The loss on training images that each block's removal adds. Training images: validation is kept for choices."""
    base = ctx.base.to(ctx.device)
    images = ctx.data.train.sample(_RANKING_IMAGES, ctx.seed)

    def loss(model: nn.Module) -> float:
        return evaluate(model, images, ctx.view).loss

    ranking = rank_blocks(base, ctx.anatomy.blocks, loss)
    base.cpu()
    return dict(ranking)
