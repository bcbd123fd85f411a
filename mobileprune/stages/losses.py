"""The losses before any training that a run has measured, and which to measure next; from the journal alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobileprune.run import Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.curves import LossCurves, along, next_share, shares_along
from mobileprune.stages.records import read_costs, scale_of

MOST = 6  # shares of a dimension, beside the base


def loss_curves(run: Run) -> LossCurves | None:
    """The curves, once all of them are measured."""
    return LossCurves.of(losses_of(run)) if next_untrained(run) is None else None


def hardest_hit(run: Run, scales: Sequence[Scale]) -> Scale:
    """That of ``scales`` whose dimensions cost the most before any training; the first where that was not measured."""
    curves = loss_curves(run)
    return scales[int(np.argmax(curves.together(scales)))] if curves else scales[0]


def losses_of(run: Run) -> dict[Scale, float]:
    """The loss (nats) on training images of the base and of networks cut along one dimension."""
    return {scale_of(e): float(e["loss"]) for e in run.journal.all("untrained")}


def next_untrained(run: Run) -> Scale | None:
    """The scale to measure next; None where there is none left."""
    losses = losses_of(run)
    if BASE not in losses:
        return BASE
    candidates = read_costs(run).candidates
    for axis in range(3):
        share = next_share(shares_along(axis, candidates), loss_along(losses, axis), MOST)
        if share is not None:
            return along(axis, share)
    return None


def loss_along(losses: dict[Scale, float], axis: int) -> dict[float, float]:
    """The losses of the scales that vary dimension ``axis`` alone, by its share; that of the base included."""
    return {share: losses[along(axis, share)] for share in shares_along(axis, losses)}
