"""Finetune: the pruned network trained to the end of its schedule, taught by the base."""

from __future__ import annotations

from mobileprune.engine import Job
from mobileprune.stages import weights
from mobileprune.stages.context import Context
from mobileprune.stages.prune import restore
from mobileprune.stages.records import require, scale_key
from mobileprune.stages.solve import chosen_scale
from mobileprune.stages.train import choose_rate, describe, scores, train
from mobileprune.words import counted


def finetune(ctx: Context) -> None:
    """Fine-tune the pruned network of the chosen scale; weights go to ``results/SCALE/weights.safetensors``."""
    scale = chosen_scale(ctx.run)
    key = scale_key(scale)
    if ctx.run.journal.get("finetuned", key) is not None:
        return
    require(ctx.run, "pruned", key, "prune")
    epochs = counted(ctx.schedule("result").epochs, "epoch")
    ctx.display.stage("finetune", f"{scale}, {epochs}, distilled from the base")
    choose_rate(ctx, scale, lambda _: restore(ctx, ctx.folder("results", key), "pruned"))
    ctx.engine.submit(ctx, Job("finetuned", f"finetune {key}", scale))
    _, entry = ctx.engine.wait(ctx)
    ctx.display.say(f"accuracy {describe(entry)}")


def finetune_one(ctx: Context, job: Job) -> dict[str, object]:
    """Fine-tune one pruned network in the run folder of ``ctx``; what the journal is to hold of it."""
    folder = ctx.folder("results", scale_key(job.scale))
    network = restore(ctx, folder, "pruned")
    view = ctx.view_at(network.size)
    train(ctx, network.model, view, "result", job.name, distill=True, recipe=network.recipe)
    weights.store(network.model, folder / "weights.safetensors")
    return {"scale": job.scale.as_tuple(), **scores(ctx, network.model, view)}
