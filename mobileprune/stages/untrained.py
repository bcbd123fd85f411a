"""What each dimension alone costs before any training; its curves foretell the shape of what is left after it.

A network is cut along one dimension and its loss is taken on training images: seconds, where a probe takes minutes.
"""

from __future__ import annotations

from mobileprune.scale import BASE, Scale
from mobileprune.search.samples import AXES
from mobileprune.stages.context import Context
from mobileprune.stages.losses import MOST, loss_along, losses_of, next_untrained
from mobileprune.stages.prune import cut
from mobileprune.stages.records import scale_key
from mobileprune.training.evaluate import evaluate

_IMAGES = 512
_DECIMALS = 3  # of a loss; those behind change with the number of threads, and a resumed run is to choose alike


def measure_untrained(ctx: Context) -> None:
    """Put the loss before training along each dimension into the journal, where it is not there yet."""
    if next_untrained(ctx.run) is None:
        return
    with ctx.display.work("scoring", "loss along each dimension before any training", 3 * MOST + 1) as advance:
        while scale := next_untrained(ctx.run):
            advance(len(losses_of(ctx.run)), str(scale))
            loss = untrained_loss(ctx, scale)
            ctx.run.journal.append("untrained", scale_key(scale), scale=scale.as_tuple(), loss=loss)
    ctx.display.say(_told(losses_of(ctx.run)))


def untrained_loss(ctx: Context, scale: Scale) -> float:
    """The mean loss (nats, rounded) on training images of the base cut to ``scale``, its norms estimated anew."""
    model, size = ctx.base, ctx.data.size
    if scale != BASE:
        network = cut(ctx, scale, BASE)
        model, size = network.model, network.size
    images = ctx.data.train.sample(_IMAGES, ctx.seed)
    found = evaluate(model.to(ctx.device), images, ctx.view_at(size)).loss
    model.cpu()
    return round(found, _DECIMALS)


def _told(losses: dict[Scale, float]) -> str:
    """How far each dimension can go alone before it adds a nat, in words."""
    found = []
    for axis, name in enumerate(AXES):
        cheap = [share for share, loss in loss_along(losses, axis).items() if loss - losses[BASE] < 1.0]
        found.append(f"{name} {min(cheap):.2g}")
    return f"before any training the loss grows by less than one nat down to {', '.join(found)}"
