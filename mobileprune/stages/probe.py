"""Probe: a few scales pruned and briefly fine-tuned, each from its nearest ancestor (arXiv 2010.04879, 3.3)."""

from __future__ import annotations

from mobileprune.scale import Scale
from mobileprune.search.probes import parent_of
from mobileprune.stages.context import Context
from mobileprune.stages.prune import cut, finished_probes, store
from mobileprune.stages.records import scale_key
from mobileprune.stages.solve import check_reachable, current_budgets, plan_probe
from mobileprune.stages.train import describe, scores, train


def probe(ctx: Context) -> None:
    """Probe scales one after the other until the plan wants no more; each is in the journal when it is done.

    Raises UsageError, before anything is trained, where no scale can keep the budgets.
    """
    budgets = current_budgets(ctx.run)
    check_reachable(ctx.run, budgets)
    limit = int(ctx.asked["probes"])
    announced = False
    while (scale := plan_probe(ctx.run, budgets, limit)) is not None:
        if not announced:
            ctx.display.stage("probe", f"accuracy of up to {limit} scales, {ctx.schedule('probe').epochs} epochs each")
            announced = True
        _probe_one(ctx, scale)


def _probe_one(ctx: Context, scale: Scale) -> None:
    number = len(ctx.run.journal.all("probe")) + 1
    parent = parent_of(scale, finished_probes(ctx))
    network = cut(ctx, scale, parent)
    view = ctx.view_at(network.size)
    train(ctx, network.model, view, "probe", f"probe {number} at {scale}", distill=True)
    store(network, ctx.folder("probes", scale_key(scale)), "weights")
    # Probes are for choosing: the test split is left alone.
    found = scores(ctx, network.model, view, test=False)
    entry = ctx.run.journal.append("probe", scale_key(scale), scale=scale.as_tuple(), parent=parent.as_tuple(), **found)
    ctx.display.say(f"{'':4}{scale}: {describe(entry)}")
