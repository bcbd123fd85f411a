"""Probe: a few scales pruned and briefly fine-tuned, each from its nearest ancestor (arXiv 2010.04879, 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from device_profiles.errors import DeviceError
from mobileprune.budget import Budget
from mobileprune.engine import Job
from mobileprune.scale import BASE, Scale
from mobileprune.search.probes import parent_of
from mobileprune.stages.accuracies import probed_scales
from mobileprune.stages.candidates import measure_hopefuls, measure_the_best, to_be_measured
from mobileprune.stages.context import Context
from mobileprune.stages.losses import hardest_hit
from mobileprune.stages.prune import cut, store
from mobileprune.stages.records import probe_limit, scale_key
from mobileprune.stages.remaining import FULL_EPOCHS, probe_cost
from mobileprune.stages.solve import check_reachable, current_budgets, designed_probes, plan_probes
from mobileprune.stages.train import choose_rate, describe, scores, train
from mobileprune.stages.untrained import measure_untrained
from mobileprune.words import counted


def probe(ctx: Context) -> None:
    """Probe scales until the plan wants no more; each is in the journal when it is done.

    Those that do not need one another's weights are handed to the engine together. Raises UsageError, before anything
    is trained, where no scale can keep the budgets.
    """
    budgets = current_budgets(ctx.run)
    check_reachable(ctx.run, budgets)
    if len(ctx.run.journal.all("probe")) < probe_limit(ctx.run):
        measure_untrained(ctx)
    announced = False
    while planned := _plan(ctx, budgets):
        if not announced:
            each = counted(ctx.schedule("probe").epochs, "epoch")
            ctx.display.stage("probe", f"accuracy of up to {probe_limit(ctx.run)} scales, {each} each")
            announced = True
        # Of a network that training has hardly to mend, the loss does not tell one rate from another.
        choose_rate(ctx, hardest_hit(ctx.run, planned), lambda scale: cut(ctx, scale, BASE))
        _probe_all(ctx, planned)
    if announced:
        made = counted(len(ctx.run.journal.all("probe")), "probe")
        ctx.display.say(f"{made}: {100 * probe_cost(ctx.run):.3g} % of the work of {FULL_EPOCHS} epochs of the base")


def _plan(ctx: Context, budgets: Sequence[Budget]) -> list[Scale]:
    """The scales to probe next. Before one is chosen by what it promises, what might be the best is measured."""
    run = ctx.run
    free = len(run.journal.all("probe")) < probe_limit(run)
    if free and to_be_measured(budgets) and not designed_probes(run, budgets):
        _measure(ctx, budgets)
    return plan_probes(run, budgets)


def _measure(ctx: Context, budgets: Sequence[Budget]) -> None:
    """Time the scales that may be the most accurate within the budgets. These lie at the budget, and the fitted latency
    does not know on which side: without a measurement none of them would be probed. The choice is measured, too: one
    that turned out to miss the budget after all probes were made would leave it to the next best, unprobed."""
    try:
        measure_hopefuls(ctx, budgets)
        measure_the_best(ctx, budgets)
    except DeviceError as error:
        ctx.display.say(f"probes are chosen by the fitted latency: {error}", style="yellow")


def _probe_all(ctx: Context, planned: list[Scale]) -> None:
    """Give each scale to the engine once its parent is done; the parent is the nearest ancestor planned before it."""
    earlier = probed_scales(ctx.run)
    waiting: list[Job] = []
    for i, scale in enumerate(planned):
        parent = parent_of(scale, [*earlier, *planned[:i]])
        waiting.append(Job("probe", f"probe at {scale}", scale, parent))
    try:
        _work_off(ctx, waiting)
    except BaseException:  # Ctrl-C between two jobs, too
        ctx.engine.cancel()
        raise


def _work_off(ctx: Context, waiting: list[Job]) -> None:
    while waiting or ctx.engine.pending:
        done = set(probed_scales(ctx.run))
        ready = [job for job in waiting if job.parent in done]
        waiting = [job for job in waiting if job.parent not in done]
        for job in ready:
            ctx.engine.submit(ctx, job)
        _, entry = ctx.engine.wait(ctx)
        ctx.display.say(f"{'':4}{Scale(*entry['scale'])}: {describe(entry)}")


def probe_one(ctx: Context, job: Job) -> dict[str, object]:
    """Prune and fine-tune one scale in the run folder of ``ctx``; what the journal is to hold of it."""
    assert job.parent is not None
    network = cut(ctx, job.scale, job.parent)
    view = ctx.view_at(network.size)
    train(ctx, network.model, view, "probe", job.name, distill=True, recipe=network.recipe)
    store(network, ctx.folder("probes", scale_key(job.scale)), "weights")
    # Probes are for choosing: the test split is left alone.
    found = scores(ctx, network.model, view, test=False)
    return {"scale": job.scale.as_tuple(), "parent": job.parent.as_tuple(), **found}
