"""What people would use in mobileprune's place, each as a line of networks from the base down to a small one.

`compare_methods.py` measures the latency of every network on such a line, takes the largest that keeps a latency, and
fine-tunes it as it does mobileprune's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import nni_rival
import numpy as np
import torch
import torch_pruning
from torch import nn

from mobileprune.scale import BASE, Scale
from mobileprune.stages.context import Context
from mobileprune.stages.problem import Problem
from mobileprune.stages.profile import shaped
from mobileprune.stages.prune import cut
from mobileprune.stages.solve import current_budgets


@dataclass(frozen=True)
class Candidate:
    """One network of a line: how to say it, and how to make it from the base (module, input side in pixels).

    build: to be timed. prepare: to be fine-tuned, where that takes more, which does not matter for time.
    """

    label: str
    build: Callable[[], tuple[nn.Module, int]]
    prepare: Callable[[], tuple[nn.Module, int]] | None = None

    def start(self) -> tuple[nn.Module, int]:
        return (self.prepare or self.build)()


def _at(ctx: Context, scale: Scale) -> Candidate:
    """The base cut to ``scale`` as mobileprune cuts it."""

    def prepare() -> tuple[nn.Module, int]:
        network = cut(ctx, scale, BASE)
        return copy.deepcopy(network.model), network.size

    return Candidate(str(scale), lambda: shaped(ctx, scale), prepare)


def width_only(ctx: Context) -> list[Candidate]:
    return [_at(ctx, Scale(1.0, width, 1.0)) for width in reversed(ctx.anatomy.lattice().widths)]


def depth_only(ctx: Context) -> list[Candidate]:
    return [_at(ctx, Scale(depth, 1.0, 1.0)) for depth in reversed(ctx.anatomy.lattice().depths)]


def resolution_only(ctx: Context) -> list[Candidate]:
    return [_at(ctx, Scale(1.0, 1.0, r)) for r in reversed(ctx.anatomy.lattice().resolutions)]


def compound(ctx: Context) -> list[Candidate]:
    """The hand-picked joint scale: each dimension pays the same share of the cost d w^2 r^2 (EfficientNet's rule)."""
    lattice = ctx.anatomy.lattice()
    costs = np.geomspace(1.0, 0.02, 60)
    scales = [lattice.nearest(Scale(c ** (1 / 3), c ** (1 / 6), c ** (1 / 6))) for c in costs]
    return [_at(ctx, scale) for scale in dict.fromkeys(scales)]


def nominal_cost(ctx: Context) -> list[Candidate]:
    """The paper's own choice: the most accurate scale, by all that the run trained, under a budget of d w^2 r^2."""
    problem = Problem(ctx.run, current_budgets(ctx.run), "polynomial")
    scales = problem.costs.candidates
    accuracy = problem.accuracy.estimate(scales)[0]
    cost = np.array([scale.nominal_cost for scale in scales])
    chosen = []
    for budget in np.geomspace(1.0, cost.min(), 60):
        affordable = np.flatnonzero(cost <= budget + 1e-12)
        chosen.append(scales[affordable[np.argmax(accuracy[affordable])]])
    return [_at(ctx, scale) for scale in dict.fromkeys([BASE, *chosen])]  # a probe may have come out above the base


def torch_pruning_line(ctx: Context, round_to: int | None) -> list[Candidate]:
    """Torch-Pruning as its README uses it: group L2 importance, widths chosen globally, the classifier left alone."""

    def at(ratio: float) -> Candidate:
        def build() -> tuple[nn.Module, int]:
            model = copy.deepcopy(ctx.base)
            classes = len(ctx.classes)
            heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
            torch_pruning.pruner.MetaPruner(
                model,
                ctx.example[:1],
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                global_pruning=True,
                pruning_ratio=ratio,
                ignored_layers=heads,
                round_to=round_to,
            ).step()
            model(ctx.example[:2])
            return model, ctx.data.size

        return Candidate(f"ratio={ratio:.2f}", build)

    return [_at(ctx, BASE), *(at(float(ratio)) for ratio in np.arange(0.02, 0.9, 0.02))]


def nni_line(ctx: Context) -> list[Candidate]:
    """NNI 3.0 as its documentation speeds a model up: L1 norm, the same share of every layer, then ModelSpeedup."""
    ratios = [float(ratio) for ratio in np.arange(0.05, 0.95, 0.05)]

    def at(ratio: float) -> Candidate:
        def build() -> tuple[nn.Module, int]:
            folder = ctx.folder("nni")
            nni_rival.prune(ctx.base, ctx.run.asked["model"], ctx.data.size, ratios, folder)
            return nni_rival.rebuilt(ctx.base, folder, ratio), ctx.data.size

        return Candidate(f"sparse_ratio={ratio:.2f}", build)

    return [_at(ctx, BASE), *(at(ratio) for ratio in ratios)]


LINES: dict[str, Callable[[Context], list[Candidate]]] = {
    "torch-pruning": partial(torch_pruning_line, round_to=None),
    "torch-pruning, round_to=8": partial(torch_pruning_line, round_to=8),
    "NNI": nni_line,
    "width only": width_only,
    "depth only": depth_only,
    "resolution only": resolution_only,
    "nominal cost d w^2 r^2": nominal_cost,
    "compound by hand": compound,
}


def lines(ctx: Context, asked: Sequence[str]) -> dict[str, list[Candidate]]:
    """The lines of the rivals ``asked``, or of all that are installed, each from the base to its smallest network."""
    names = list(asked or LINES)
    if "NNI" in names and not nni_rival.ENVIRONMENT.works():
        if asked:
            raise SystemExit("NNI is not installed: run python tools/nni_rival.py")
        print("  NNI is left out, as it is not installed: python tools/nni_rival.py makes its environment")
        names.remove("NNI")
    return {name: LINES[name](ctx) for name in names}


def built(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, nn.Module, int]]:
    """Each candidate's network; one that cannot be built, or does not run, is left out and said."""
    for candidate in candidates:
        try:
            model, size = candidate.build()
            with torch.inference_mode():
                model.eval()(torch.zeros(1, 3, size, size))
        except Exception as error:
            print(f"  {candidate.label} left out: {error}")
            continue
        yield candidate, model, size
