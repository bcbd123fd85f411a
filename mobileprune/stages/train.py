"""The base: trained where it has no weights yet, scored, and its blocks ranked by the loss that removing them costs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mobileprune.models import check_outputs, load_checkpoint
from mobileprune.pruning.blocks import rank_blocks
from mobileprune.stages import weights
from mobileprune.stages.context import Context
from mobileprune.training.batches import View
from mobileprune.training.evaluate import evaluate
from mobileprune.training.finetune import Progress, Teacher, fit

_RANKING_IMAGES = 512


def train_base(ctx: Context) -> None:
    """Make sure that the run holds a trained, scored and ranked base."""
    if ctx.run.journal.get("base", "score") is None:
        model = ctx.new_model()
        checkpoint = ctx.asked["model"].get("checkpoint")
        if checkpoint:
            load_checkpoint(model, Path(checkpoint))
        check_outputs(model, ctx.example, len(ctx.data.classes), ctx.source.spec)
        epochs = ctx.schedule("base").epochs
        ctx.display.stage("base", f"{ctx.source.name} on {ctx.data.name}: " + _base_words(ctx, epochs))
        if epochs:
            train(ctx, model, ctx.view, "base", "base")
        weights.store(model, ctx.folder("base") / "weights.safetensors")
        ctx.run.journal.append("base", "score", **scores(ctx, model, ctx.view))
    entry = ctx.run.journal.get("base", "score")
    assert entry is not None
    ctx.display.say(f"base accuracy {describe(entry)}")
    ctx.run.once("ranking", "blocks", lambda: {"loss_increase": _rank(ctx)})


def _base_words(ctx: Context, epochs: int) -> str:
    count = f"{len(ctx.data.train):,} training images of {ctx.data.size} px"
    return f"training for {epochs} epochs on {count}" if epochs else f"taken as given; {count}"


def train(
    ctx: Context, model: nn.Module, view: View, what: str, name: str, *, distill: bool = False, epochs: int = 0
) -> None:
    """Train ``model`` in place by the schedule of ``what`` (over ``epochs`` if given); resumable under ``name``."""
    schedule = ctx.schedule(what)
    if epochs:
        schedule = replace(schedule, epochs=epochs)
    teacher = None
    if distill:
        teacher = Teacher(copy.deepcopy(ctx.base).to(ctx.device).eval(), ctx.view)
    model.to(ctx.device)
    with ctx.display.work(
        "training", f"{name}, {schedule.epochs} epochs", schedule.epochs * len(ctx.data.train)
    ) as advance:

        def progress(p: Progress) -> None:
            advance(p.seen, f"epoch {p.epoch + 1}/{schedule.epochs}, loss {p.loss:.3f}")

        fit(
            model,
            ctx.data,
            view,
            schedule,
            seed=ctx.seed,
            teacher=teacher,
            progress=progress,
            checkpoint=ctx.folder("training") / f"{name.replace(' ', '-')}.pt",
        )
    model.cpu()


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
