"""Whether the surrogates say what is true, in a finished comparison: on scales held out, and around what was chosen.

    .venv/bin/python tools/check_surrogate.py runs/comparison/cifar10-resnet20-seed0 [--held-out 8] [--neighbours 4]

Three tables under results/:
surrogate_held_out.csv    scales that no probe was at, trained as probes are and measured: predicted against found, and
                          whether the 80 % interval held what was found
surrogate_probes.csv      what would have been chosen after fewer probes (in the order in which they were made, the held
                          out ones last), and what all of them together say of that choice
surrogate_neighbours.csv  the scales nearest to a chosen one that keep its budget, trained as it was

A trained scale is in the table, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tables import Table

from mobileprune.budget import Budget, budgets_key, parse_budgets
from mobileprune.commands.common import context_of
from mobileprune.run import Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.probes import parent_of
from mobileprune.search.recovery import Recovery, fit_recovery
from mobileprune.search.solver import solve
from mobileprune.stages.accuracies import Sample, accuracy_samples, probe_epochs, probed_scales, start_of
from mobileprune.stages.context import Context
from mobileprune.stages.losses import loss_curves
from mobileprune.stages.problem import Problem
from mobileprune.stages.profile import export_for_timing, measure, shaped
from mobileprune.stages.prune import cut
from mobileprune.stages.records import scale_key, scale_of
from mobileprune.stages.train import scores, train

_Z = 1.2816  # standard errors on either side of an 80 % interval, which is what is checked
_FEWEST = 4  # probes that a choice is made of
_NEAR = 0.9  # a neighbour takes at least this share of the budget: a far smaller network is no rival
_SCALE = ("depth", "width", "resolution")
_HELD_OUT = ("run", *_SCALE, "parent", "accuracy", "accuracy_std", "predicted", "low", "high", "accuracy_held",
             "latency", "latency_std", "latency_predicted", "latency_low", "latency_high", "latency_held")  # fmt: skip
_PROBES = ("run", "budget", "probes", *_SCALE, "predicted", "by_all", "by_all_std", "lacks")
_NEIGHBOURS = ("run", "budget", "role", *_SCALE, "latency_share", "validation", "test", "test_std")


def row_of(scale: Scale) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in zip(_SCALE, scale.as_tuple(), strict=True)}


def held_out_scales(ctx: Context, problem: Problem, count: int) -> list[Scale]:
    """Scales drawn by the run's seed from those that the surrogate was asked about and no probe was at."""
    probed = probed_scales(ctx.run)
    low = [min(axis) for axis in zip(*(s.as_tuple() for s in probed), strict=True)]
    timed = {scale_of(e) for e in ctx.run.journal.all("latency")}
    inside = [s for s in problem.costs.candidates if np.all(np.array(s.as_tuple()) >= np.array(low) - 1e-9)]
    free = [s for s in inside if s not in probed and s not in timed]
    order = np.random.default_rng(ctx.seed).permutation(len(free))
    return [free[i] for i in order[:count]]


def latency_shares(ctx: Context, scales: Sequence[Scale]) -> dict[Scale, tuple[float, float]]:
    """Measured latency of each scale as a share of the base's in the same rounds, and its standard error."""
    files = {}
    for scale in (BASE, *scales):
        model, size = shaped(ctx, scale)
        files[scale] = ctx.folder("checks") / f"{scale_key(scale)}.{ctx.timing_format}"
        export_for_timing(ctx, model, size, files[scale])
    found = measure(ctx, {scale_key(s): path for s, path in files.items()}, scale_key(BASE)).measurements
    for path in files.values():
        path.unlink()
    timed = {s: found[scale_key(s)].share_of(found[scale_key(BASE)]) for s in scales}
    return {s: (share, (high - low) / 4) for s, (share, low, high) in timed.items()}


def check_held_out(ctx: Context, problem: Problem, count: int, table: Table) -> None:
    """Train and measure scales that the surrogates have not seen; what was found before is compared anew."""
    by_key = {scale_key(scale): scale for scale in problem.costs.candidates}
    known = {by_key[key_of(row)]: row for row in table.rows if row["run"] == ctx.run.path.name}
    scales = list(dict.fromkeys([*known, *held_out_scales(ctx, problem, max(count - len(known), 0))]))
    waiting = [s for s in scales if s not in known]
    shares = latency_shares(ctx, waiting) if waiting else {}
    for scale in scales:
        found = known.get(scale) or trained_as_probe(ctx, scale, shares[scale])
        table.add({**found, **foretold(problem, by_key.get(found["parent"], BASE), scale, found)})
        row = table.rows[-1]
        print(f"{scale}: {float(row['predicted']):.3f} predicted, {float(row['accuracy']):.3f} found", flush=True)


def key_of(row: Mapping[str, Any]) -> str:
    return "d{depth}-w{width}-r{resolution}".format(**row)


def trained_as_probe(ctx: Context, scale: Scale, share: tuple[float, float]) -> dict[str, Any]:
    """What was found at a scale: its accuracy as a probe, and its latency as a share of the base's, with errors."""
    parent = parent_of(scale, probed_scales(ctx.run))
    network = cut(ctx, scale, parent)
    view = ctx.view_at(network.size)
    name = f"held out {scale_key(scale)}"
    train(ctx, network.model, view, "probe", name, distill=True, recipe=network.recipe)
    found = scores(ctx, network.model, view, test=False)["validation"]
    row = {"run": ctx.run.path.name, **row_of(scale), "parent": scale_key(parent)}
    row |= {"accuracy": f"{found['accuracy']:.4f}", "accuracy_std": f"{found['std']:.4f}"}
    return row | {"latency": f"{share[0]:.4f}", "latency_std": f"{share[1]:.4f}"}


def foretold(problem: Problem, parent: Scale, scale: Scale, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the surrogates say of a scale, for as much training as it has had, and whether their intervals hold it."""
    trained = probe_epochs(problem.run, parent)
    told = problem.recovery.after(*problem.accuracy.predict([scale]), trained)
    mean, std = (float(value[0]) for value in told)
    reach = _Z * math.hypot(std, problem.accuracy.noise)
    row: dict[str, Any] = {"predicted": f"{mean:.4f}", "low": f"{mean - reach:.4f}", "high": f"{mean + reach:.4f}"}
    row["accuracy_held"] = bool(abs(mean - float(found["accuracy"])) <= reach)
    timed, error = problem.latency.predict([scale], [problem.costs.features(scale)])
    share = float(timed[0]) / problem.base_ms
    reach = _Z * math.hypot(float(error[0]) / problem.base_ms, float(found["latency_std"]))
    row |= {"latency_predicted": f"{share:.4f}", "latency_low": f"{share - reach:.4f}"}
    row |= {"latency_high": f"{share + reach:.4f}"}
    return row | {"latency_held": bool(abs(share - float(found["latency"])) <= reach)}


def probes_of(ctx: Context, held_out: Table) -> list[Sample]:
    """Every network that was trained as probes are: those of the plan in their order, then those held out."""
    samples = {s.scale: s for s in reversed(accuracy_samples(ctx.run))}  # of a scale twice there the probe
    found = [samples[scale_of(e)] for e in ctx.run.journal.all("probe")]
    by_key = {scale_key(scale): scale for scale in probed_scales(ctx.run)}
    for row in held_out.rows:
        if row["run"] == ctx.run.path.name:
            epochs = probe_epochs(ctx.run, by_key[row["parent"]])
            scale = Scale(*(float(row[name]) for name in _SCALE))
            found.append(Sample(scale, float(row["accuracy"]), float(row["accuracy_std"]), epochs))
    return found


def fitted(ctx: Context, probes: Sequence[Sample]) -> Recovery:
    base = next(s for s in accuracy_samples(ctx.run) if s.scale == BASE)
    samples = [base, *probes]
    return fit_recovery(
        [s.scale for s in samples],
        [s.accuracy for s in samples],
        [s.std for s in samples],
        [s.epochs for s in samples],
        curves=loss_curves(ctx.run),
    )


def choices(ctx: Context, problem: Problem, probes: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """What each number of probes would have chosen, and what the surrogate of all of them says of it."""
    field = [s for s in problem.costs.candidates if not problem.missed(s)]

    def choice(by: Recovery) -> Scale:
        confidence = float(ctx.asked["confidence"])
        accuracy = replace(problem.results, recovery=by)
        chosen = solve(accuracy, problem.constraints, field, confidence=confidence, frontier=0, continuous=False)
        return chosen.scale

    everything = fitted(ctx, probes)
    best = everything.surrogate.predict([choice(everything)])[0][0]
    for count in range(_FEWEST, len(probes) + 1):
        some = fitted(ctx, probes[:count])
        scale = choice(some)
        (mean,), (std,) = everything.surrogate.predict([scale])
        predicted = float(some.after(*some.surrogate.predict([scale]), everything.epochs)[0][0])
        row = {"probes": count, **row_of(scale), "predicted": f"{predicted:.4f}"}
        yield row | {"by_all": f"{mean:.4f}", "by_all_std": f"{std:.4f}", "lacks": f"{best - mean:.4f}"}


def neighbours(problem: Problem, budget: Budget, chosen: Scale, count: int) -> list[Scale]:
    """The nearest scales (by logarithmic steps) that keep the budget and use most of it."""
    limit = problem.limit(budget)
    costs = {s: problem.value(budget, s) for s in problem.costs.candidates if s != chosen and not problem.missed(s)}
    fit = [s for s, cost in costs.items() if _NEAR * limit <= cost <= limit]
    return sorted(fit, key=lambda s: math.dist(np.log(s.as_tuple()), np.log(chosen.as_tuple())))[:count]


def check_neighbours(ctx: Context, problem: Problem, budget: Budget, count: int, table: Table) -> None:
    """Train what lies around a chosen scale to the end, as it was."""
    answer = ctx.run.journal.get("answer", budgets_key((budget,)))
    assert answer is not None
    chosen = scale_of(answer)
    rest = neighbours(problem, budget, chosen, count)
    shares = latency_shares(ctx, [chosen, *rest])
    for scale in (chosen, *rest):
        role = "chosen" if scale == chosen else "neighbour"
        row: dict[str, Any] = {"run": ctx.run.path.name, "budget": str(budget), "role": role, **row_of(scale)}
        if row in table:
            continue
        found = ctx.run.journal.get("finetuned", scale_key(scale)) or trained(ctx, scale)
        row |= {"latency_share": f"{shares[scale][0]:.4f}", "validation": f"{found['validation']['accuracy']:.4f}"}
        row |= {"test": f"{found['test']['accuracy']:.4f}", "test_std": f"{found['test']['std']:.4f}"}
        table.add(row)
        print(f"{role} {scale}: {100 * found['test']['accuracy']:.1f} % (test)", flush=True)


def trained(ctx: Context, scale: Scale) -> dict[str, Any]:
    """The scores of a scale that is cut from its nearest probe and trained by the schedule of results."""
    network = cut(ctx, scale, start_of(ctx.run, scale))
    view = ctx.view_at(network.size)
    name = f"neighbour {scale_key(scale)}"
    train(ctx, network.model, view, "result", name, distill=True, recipe=network.recipe)
    return scores(ctx, network.model, view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--neighbours", type=int, default=4)
    parser.add_argument("--results", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    command = f"python {' '.join(sys.argv)}"
    ctx = context_of(Run.open(arguments.run))
    questions = [parse_budgets(entry["budgets"]) for entry in ctx.run.journal.all("question")]
    name = {"run": ctx.run.path.name}
    problem = Problem(ctx.run, questions[0])
    held_out = Table(arguments.results / "surrogate_held_out.csv", _HELD_OUT, ("run", *_SCALE), command)
    check_held_out(ctx, problem, arguments.held_out, held_out)
    counts = Table(arguments.results / "surrogate_probes.csv", _PROBES, ("run", "budget", "probes"), command)
    for budgets in questions:
        for row in choices(ctx, Problem(ctx.run, budgets), probes_of(ctx, held_out)):
            counts.add({**name, "budget": str(budgets[0]), **row})
    around = Table(arguments.results / "surrogate_neighbours.csv", _NEIGHBOURS, ("run", "budget", *_SCALE), command)
    check_neighbours(ctx, problem, questions[0][0], arguments.neighbours, around)


if __name__ == "__main__":
    main()
