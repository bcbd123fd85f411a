"""What the report's figures show, gathered from a run: the journal, the counted costs and the fitted surrogates."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import norm

from mobileprune.errors import MobilepruneError
from mobileprune.pruning.difference import diff
from mobileprune.pruning.recipe import Recipe
from mobileprune.report.evidence import Block, Choice, Evidence, Point, Slice, Untrained
from mobileprune.run import Run
from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.solver import FrontierPoint
from mobileprune.stages.context import Context
from mobileprune.stages.curves import read_curves
from mobileprune.stages.losses import loss_along, losses_of
from mobileprune.stages.problem import Problem
from mobileprune.stages.records import scale_key, scale_of
from mobileprune.stages.solve import chosen, chosen_scale, current_budgets, solve_run

_AXES = ("depth", "width", "resolution")
_GRID = 25  # values per axis of a slice
_REACH = float(norm.ppf(0.9))  # standard deviations on each side of an 80 % interval
_MOST_BLOCKS = 60


def evidence(ctx: Context) -> tuple[Evidence, list[str]]:
    """All that the figures show, and what could not be had with the reason."""
    run = ctx.run
    problem = Problem(run, current_budgets(run))
    scale, first = chosen_scale(run), problem.constraints[0]
    solution = chosen(run)["solution"]  # as it was before its own result was known
    blocks, missing = _blocks(ctx, scale)
    curves = read_curves(run.journal, scale)
    if not curves:
        missing.append("no training curves: this run was trained by a version that did not record them")
    untrained = _untrained(run, scale)
    if not untrained:
        missing.append("no losses before training: this run was probed by a version that did not measure them")
    found = Evidence(
        base=point(problem, BASE, "base"),
        result=point(problem, scale, "finetuned"),
        probes=[point(problem, scale_of(e), "probe") for e in run.journal.all("probe")],
        measured=[point(problem, scale_of(e), "") for e in run.journal.all("latency")],
        frontier=[_choice(problem, p) for p in solve_run(run, problem.budgets).frontier],
        slices=_slices(problem, scale),
        blocks=blocks,
        curves=curves,
        untrained=untrained,
        limit_name=first.name,
        limit_unit=first.unit,
        limit=first.limit,
        origin=problem.origin,
        latency_form=problem.latency.name,
        latency_error=problem.latency.cv_error,
        accuracy_form=problem.accuracy.name,
        accuracy_error=problem.accuracy.cv_error,
        halving=_halving(problem),
        prices=tuple(solution["prices"]),
        confidence=float(solution["confidence"]),
        expected=replace(problem, without=scale).expected(scale),
    )
    return found, missing


def point(problem: Problem, scale: Scale, kind: str) -> Point:
    """``kind``: the journal's kind that holds the accuracy; empty where there is none."""
    journal = problem.run.journal
    scored = journal.get("base", "score") if kind == "base" else journal.get(kind, scale_key(scale)) if kind else None
    timed = journal.get("latency", scale_key(scale))
    predicted, low, high = _latency(problem, [scale], fitted_only=True)[0]
    ms, least, most = predicted, low, high
    if timed is not None:
        ms, least, most = (problem.base_ms * share for share in timed["share"])
    accuracy = scored["validation"] if scored else None
    return Point(
        scale=scale,
        accuracy=accuracy["accuracy"] if accuracy else None,
        std=accuracy["std"] if accuracy else 0.0,
        latency_ms=ms,
        low_ms=least,
        high_ms=most,
        predicted_ms=predicted,
        predicted_low_ms=low,
        predicted_high_ms=high,
        macs=problem.costs[scale]["macs"],
        work=_work(problem, scale),
    )


def _latency(problem: Problem, scales: Sequence[Scale], fitted_only: bool = False) -> list[tuple[float, float, float]]:
    """Mean and 80 % interval in ms; ``fitted_only``: by the surrogate alone, also where a scale was measured."""
    counted = [problem.costs.features(s) for s in scales]
    ask = problem.latency.predict if fitted_only else problem.latency.estimate
    mean, std = ask(scales, counted)
    return [(float(m), float(max(m - _REACH * s, 0.0)), float(m + _REACH * s)) for m, s in zip(mean, std, strict=True)]


def _work(problem: Problem, scale: Scale) -> Mapping[str, float]:
    """Activations written and layers, as shares of the base's."""
    here, base = problem.costs.features(scale), problem.costs.features(BASE)

    def total(features: Mapping[str, float], prefix: str) -> float:
        return sum(value for name, value in features.items() if name.startswith(prefix))

    kinds = {"activations": "acts_", "layers": "layers_"}
    return {name: total(here, key) / total(base, key) for name, key in kinds.items() if total(base, key) > 0}


def _choice(problem: Problem, at: FrontierPoint) -> Choice:
    cost = problem.costs[at.scale]
    return Choice(
        limit=at.limit,
        scale=at.scale,
        accuracy=(at.accuracy.mean, at.accuracy.low, at.accuracy.high),
        latency_ms=_latency(problem, [at.scale])[0],
        macs=cost["macs"],
        params=cost["params"],
        memory=cost["memory"],
        size_bytes=problem.size_bytes(at.scale)[0],
        budgets=(problem.asking(at.limit), *(budget.text for budget in problem.budgets[1:])),
    )


def _slices(problem: Problem, chosen: Scale) -> list[Slice]:
    """The planes through the chosen scale on which both axes vary."""
    probed = [BASE, *(scale_of(e) for e in problem.run.journal.all("probe") if scale_of(e) != BASE)]
    probes = [point(problem, s, "base" if s == BASE else "probe") for s in probed]
    least = dict(zip(_AXES, np.min([s.as_tuple() for s in problem.costs.candidates], axis=0), strict=True))
    varied = [axis for axis in _AXES if len({getattr(s, axis) for s in probed}) > 1]
    found = []
    for held in _AXES:
        x, y = (axis for axis in reversed(_AXES) if axis != held)
        if x not in varied or y not in varied:
            continue
        xs, ys = (np.linspace(float(least[axis]), 1.0, _GRID) for axis in (x, y))
        at = getattr(chosen, held)
        grid = [{held: at, x: float(u), y: float(v)} for v in ys for u in xs]
        values = problem.accuracy.smooth(np.array([[cell[axis] for axis in _AXES] for cell in grid]))
        near = _half_step(problem.costs.lattice, held)
        found.append(
            Slice(
                x=x,
                y=y,
                held=held,
                at=at,
                xs=xs.tolist(),
                ys=ys.tolist(),
                values=np.clip(values, 0.0, 1.0).reshape(_GRID, _GRID).tolist(),
                probes=probes,
                on_slice=[abs(getattr(p.scale, held) - at) <= near for p in probes],
            )
        )
    return found


def _untrained(run: Run, chosen: Scale) -> list[Untrained]:
    """The losses before training along each dimension that can vary."""
    losses, found = losses_of(run), []
    for axis, name in enumerate(_AXES):
        along = sorted(loss_along(losses, axis).items())
        if len(along) > 1:
            added = [loss - losses[BASE] for _, loss in along]
            found.append(Untrained(name, [share for share, _ in along], added, chosen.as_tuple()[axis]))
    return found


def _half_step(lattice: Lattice, axis: str) -> float:
    values = getattr(lattice, f"{axis}s")
    return min((b - a for a, b in itertools.pairwise(values)), default=1.0) / 2


def _halving(problem: Problem) -> list[tuple[str, float, float]]:
    """What is left of the base's latency, by the surrogate, where one axis alone leaves about half of the MACs."""
    half, found = problem.costs[BASE]["macs"] / 2, []
    for axis in _AXES:
        alone = [s for s in problem.costs.candidates if all(getattr(s, a) == 1 for a in _AXES if a != axis)]
        nearest = min(alone, key=lambda s: abs(problem.costs[s]["macs"] - half), default=BASE)
        if 0.6 * half <= problem.costs[nearest]["macs"] <= 1.4 * half:
            left = _latency(problem, [nearest])[0][0] / problem.base_ms
            found.append((axis, float(getattr(nearest, axis)), left))
    return found


def _blocks(ctx: Context, scale: Scale) -> tuple[list[Block], list[str]]:
    """MACs per part of the network; a run whose model can no longer be built says so."""
    try:
        recipe = Recipe.from_json((ctx.run.path / "results" / scale_key(scale) / "recipe.json").read_text("utf-8"))
        found = diff(recipe, ctx.new_model(), torch.zeros(1, 3, *recipe.base_input_size))
    except MobilepruneError as error:
        return [], [f"no bars per block: {error}"]
    ranked = list(ctx.ranking)
    parts: dict[str, list[int | None]] = {}
    for layer in found.layers:
        name = _part(layer.name, ranked)
        before, after = parts.setdefault(name, [0, None])
        left = None if layer.after is None else layer.after.macs
        parts[name] = [(before or 0) + layer.before.macs, after if left is None else (after or 0) + left]
    blocks = [Block(name, before or 0, after) for name, (before, after) in parts.items()]
    if len(blocks) <= _MOST_BLOCKS:
        return blocks, []
    return list(_merged(blocks)), [f"{len(blocks)} blocks are shown by the stage that holds them"]


def _part(layer: str, ranked: Sequence[str]) -> str:
    """The removable block that a layer belongs to; otherwise what holds it at the depth of those blocks."""
    for name in ranked:
        if layer == name or layer.startswith(name + "."):
            return name
    depth = max((name.count(".") + 1 for name in ranked), default=1)
    parents = layer.split(".")
    return ".".join(parents[: min(depth, max(1, len(parents) - 1))])


def _merged(blocks: Iterable[Block]) -> list[Block]:
    stages: dict[str, list[Block]] = {}
    for block in blocks:
        stages.setdefault(block.name.rpartition(".")[0] or block.name, []).append(block)
    return [
        Block(
            name,
            sum(b.before for b in held),
            None if all(b.after is None for b in held) else sum(b.after or 0 for b in held),
        )
        for name, held in stages.items()
    ]
