"""Report: report.html from what the journal holds."""

from __future__ import annotations

import shlex

from mobileprune.report.figures import Evidence, Point
from mobileprune.report.page import page
from mobileprune.run import Run, write_text
from mobileprune.scale import BASE, Scale
from mobileprune.stages.context import Context
from mobileprune.stages.records import scale_key, scale_of
from mobileprune.stages.solve import Problem, chosen_scale, current_budgets, describe_solution, solve_run
from mobileprune.stages.summary import summarise


def report(ctx: Context) -> None:
    """Write ``report.html`` for the current budgets into the run folder."""
    run = ctx.run
    path, summary = run.path / "report.html", summarise(run)
    budgets = current_budgets(run)
    search = describe_solution(run, solve_run(run, budgets), budgets)
    write_text(path, page(summary, evidence(run), search, run.asked, command_of(run)))
    ctx.display.stage("report", str(path))
    run.journal.append("report", scale_key(chosen_scale(run)), path=path.name)


def command_of(run: Run) -> str:
    """The command line that makes the run again, for its current budgets."""
    model, data, training = run.asked["model"], run.asked["data"], run.asked["training"]
    source = model["name"] if model["library"] == "mobileprune" else f"{model['library']}:{model['name']}"
    words = ["mobileprune", "optimize", "--model", source]
    for key, value in model.get("arguments", {}).items():
        words += ["--model-arg", f"{key}={value}"]
    if "checkpoint" in model:
        words += ["--checkpoint", model["checkpoint"]]
    words += ["--data", data["spec"]]
    if "image_size" in data:
        words += ["--image-size", str(data["image_size"])]
    for budget in current_budgets(run):
        words += ["--budget", budget.text]
    for flag in ("device", "seed", "probes", "confidence", "profile_scales"):
        words += [f"--{flag.replace('_', '-')}", str(run.asked[flag])]
    for flag in (
        "base_epochs",
        "probe_epochs",
        "result_epochs",
        "batch_size",
        "learning_rate",
        "finetune_learning_rate",
    ):
        words += [f"--{flag.replace('_', '-').replace('result-', '')}", str(training[flag])]
    return shlex.join(words)


def evidence(run: Run) -> Evidence:
    """What the figures show: the base, the result, the probes, the measured scales and the frontier."""
    problem = Problem(run, current_budgets(run))
    solution = solve_run(run, problem.budgets)
    scale = chosen_scale(run)
    first = problem.constraints[0]
    return Evidence(
        base=_point(problem, BASE, "base"),
        result=_point(problem, scale, "finetuned"),
        probes=[_point(problem, scale_of(e), "probe") for e in run.journal.all("probe")],
        measured=[_point(problem, scale_of(e), "") for e in run.journal.all("latency")],
        frontier=[(p.limit, p.accuracy.mean, p.accuracy.low, p.accuracy.high, str(p.scale)) for p in solution.frontier],
        limit_name=first.name,
        origin="predicted" if problem.predicted else "measured",
        limit_unit=first.unit,
    )


def _point(problem: Problem, scale: Scale, kind: str) -> Point:
    """``kind``: the journal's kind that holds the accuracy; empty where there is none."""
    journal = problem.run.journal
    scored = journal.get("base", "score") if kind == "base" else journal.get(kind, scale_key(scale)) if kind else None
    timed = journal.get("latency", scale_key(scale))
    predicted = float(problem.latency.predict([scale], [problem.costs.features(scale)])[0][0])
    ms = low = high = predicted
    if timed is not None:
        to_now = problem.base_ms / timed["base_ms"]
        ms, low, high = (to_now * timed["measurement"][k] for k in ("latency_ms", "low_ms", "high_ms"))
    accuracy = scored["validation"] if scored else None
    return Point(
        label=str(scale),
        accuracy=accuracy["accuracy"] if accuracy else None,
        std=accuracy["std"] if accuracy else 0.0,
        latency_ms=ms,
        low_ms=low,
        high_ms=high,
        predicted_ms=predicted,
        macs=problem.costs[scale]["macs"],
    )
