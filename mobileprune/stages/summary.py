"""What a run came to: the table at its end, the same for programs, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mobileprune.budget import Budget, shown
from mobileprune.errors import MobilepruneError
from mobileprune.run import Entry, Run
from mobileprune.scale import BASE, Scale
from mobileprune.stages.problem import Problem
from mobileprune.stages.records import probe_limit, read_costs, scale_key
from mobileprune.stages.remaining import training_under_way
from mobileprune.stages.solve import chosen_scale, current_budgets

Summary = dict[str, Any]


def summarise(run: Run) -> Summary:
    """Base against result: what was measured, what was counted, and whether the budgets are kept.

    Raises MobilepruneError where the run has no measured result yet.
    """
    scale = chosen_scale(run)
    key = scale_key(scale)
    measured = run.journal.get("measured", key)
    if measured is None:
        raise MobilepruneError(f"{run.path} has no measured result yet; run `mobileprune bench {run.path}` first")
    base_score, result_score = run.journal.get("base", "score"), run.journal.get("finetuned", key)
    assert base_score is not None and result_score is not None  # they come before the measurement
    report = measured["report"]
    return {
        "run": str(run.path),
        "device": {"name": run.asked["device"], **report["device"]},
        "scale": dict(zip(("depth", "width", "resolution"), scale.as_tuple(), strict=True)),
        "budgets": _budgets(run, scale),
        "base": _side(run, BASE, "base", base_score, report),
        "result": _side(run, scale, key, result_score, report),
        "warnings": report["warnings"],
        "notes": [entry["key"] for entry in run.journal.all("note")],
        "recipe": str(run.path / "results" / key / "recipe.json"),
        "weights": str(run.path / "results" / key / "weights.safetensors"),
        "android": _android(run, key),
        "report": str(run.path / "report.html"),
    }


def _android(run: Run, key: str) -> str | None:
    """The folder for an app's assets, where one was written."""
    folder = run.path / "results" / key / "artifacts" / "android"
    return str(folder) if folder.is_dir() else None


def _budgets(run: Run, scale: Scale) -> list[dict[str, Any]]:
    problem = Problem(run, current_budgets(run))
    found = []
    for budget in problem.budgets:
        limit, value = budget.limit(problem.base_ms), problem.value(budget, scale)
        kept = not Problem(run, (budget,)).missed(scale)
        words = "kept" if value <= limit else "kept within the measured spread"
        found.append(
            {
                "budget": budget.text,
                "quantity": budget.quantity,
                "limit": limit,
                "value": value,
                "kept": kept,
                "verdict": words if kept else "missed",
                "origin": _origin(problem, budget),
            }
        )
    return found


def _origin(problem: Problem, budget: Budget) -> str:
    if budget.quantity not in ("latency", "size"):
        return "counted"
    return problem.origin if budget.quantity == "latency" else "measured"


def _side(run: Run, scale: Scale, owner: str, score: Entry, report: Mapping[str, Any]) -> dict[str, Any]:
    cost = read_costs(run)[scale]
    files = {}
    for entry in run.journal.all("artifact"):
        if entry["key"].rpartition(".")[0] != owner:
            continue
        artifact, kind = entry["artifact"], entry["key"].rpartition(".")[2]
        name = kind if artifact["precision"] == "float32" else f"{artifact['format']} {artifact['precision']}"
        files[name] = {
            "path": str(run.path / entry["path"]),
            "format": artifact["format"],
            "precision": artifact["precision"],
            "input": artifact["input"],
            "takes": entry["verification"]["takes"]["dtype"],
            "gives": entry["verification"]["gives"]["dtype"],
            "classes": artifact["output_classes"],
            "size_bytes": artifact["size_bytes"],
            "accuracy": entry["accuracy"],
            "test_accuracy": entry["test_accuracy"],  # where the file computes something else than the module
            "parity_max_abs": entry["parity"]["max_abs"],
            "latency": report["measurements"].get(f"{'base' if owner == 'base' else 'result'}.{kind}"),
        }
    return {
        "accuracy": {"validation": score["validation"], "test": score["test"]},
        "macs": cost["macs"],
        "params": cost["params"],
        "peak_activation_bytes": cost["memory"],
        "files": files,
    }


def tables(summary: Summary) -> list[RenderableType]:
    """The end of a run for people: one table and where the files are."""
    base, result = summary["base"], summary["result"]
    style = "bold green" if all(b["kept"] for b in summary["budgets"]) else "bold red"
    table = Table(title=Text(_title(summary), style=style), title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for heading in ("", "base", "result", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for split in ("test", "validation"):
        if base["accuracy"][split]:
            scores = [side["accuracy"][split] for side in (base, result)]
            change = 100 * (scores[1]["accuracy"] - scores[0]["accuracy"])
            table.add_row(f"accuracy, {split} (torch)", *map(_score, scores), f"{change:+.1f} points")
    for name in result["files"]:
        pair = [side["files"][name] for side in (base, result)]
        table.add_section()
        if pair[0]["test_accuracy"] is not None:
            table.add_row(
                f"{name}: accuracy, test", *(f"{100 * f['test_accuracy']:.1f} %" for f in pair), "in its runtime"
            )
        table.add_row(
            f"{name}: accuracy, validation", *(f"{100 * f['accuracy']:.1f} %" for f in pair), "in its runtime"
        )
        if (before := pair[0]["latency"]) and (after := pair[1]["latency"]):
            ratio = f"{before['latency_ms'] / after['latency_ms']:.2f}x faster"
            table.add_row(f"{name}: latency, {after['origin']}", _latency(before), _latency(after), ratio)
        table.add_row(f"{name}: file", *(shown("size", f["size_bytes"]) for f in pair), "")
    table.add_section()
    for label, field, quantity in (
        ("MACs", "macs", "macs"),
        ("parameters", "params", "params"),
        ("peak activations", "peak_activation_bytes", "memory"),
    ):
        pair = [side[field] for side in (base, result)]
        table.add_row(f"{label}, counted", *(shown(quantity, v) for v in pair), f"{100 * pair[1] / pair[0]:.0f} %")  # type: ignore[arg-type]
    s = summary["scale"]
    table.add_row("(d, w, r)", "(1, 1, 1)", f"({s['depth']:.3g}, {s['width']:.3g}, {s['resolution']:.3g})", "")
    return [table, *_after(summary)]


def _title(summary: Summary) -> str:
    words = []
    for b in summary["budgets"]:
        value, limit = shown(b["quantity"], b["value"]), shown(b["quantity"], b["limit"])
        words.append(f"budget {b['budget']} {b['verdict']}: {value} {b['origin']} of {limit}")
    return "\n".join(words)


def _after(summary: Summary) -> list[Text]:
    lines = []
    if not summary["base"]["accuracy"]["test"]:
        lines.append(Text("The data has no test split: this accuracy is of the split that choices were made on."))
    lines += [Text(text, style="yellow") for text in (*summary["warnings"], *summary["notes"])]
    files = [file["path"] for file in summary["result"]["files"].values()]
    files += [str(bundle) for path in files if (bundle := Path(path).parent / "android").is_dir()][:1]
    # Names that are copied are never broken.
    lines += [_unbroken(f"  {path}") for path in (*files, summary["weights"], summary["report"])]
    lines.append(_unbroken(f'load it: mobileprune.load("{summary["run"]}")'))
    return lines


def _unbroken(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ignore")


def _score(score: Mapping[str, Any]) -> str:
    return f"{100 * score['accuracy']:.1f} ± {100 * score['std']:.1f} %"


def _latency(found: Mapping[str, Any]) -> str:
    return f"{found['latency_ms']:.3g} ms ± {100 * found['spread']:.1f} %"


def status(run: Run) -> dict[str, Any]:
    """How far the run is: each stage's state in words, the training under way, and the command that goes on."""
    journal = run.journal
    question = journal.newest("question")
    answer = journal.get("answer", question["key"]) if question else None
    key = scale_key(Scale(*answer["scale"])) if answer else None
    probes, wanted = len(journal.all("probe")), probe_limit(run)
    latencies = len(journal.all("latency"))

    def state(done: bool) -> str:
        return "done" if done else "to do"

    def is_done(kind: str, key: str) -> bool:
        if kind == "artifact":  # one for each format
            return any(e["key"].startswith(f"{key}.") for e in journal.all(kind))
        return journal.get(kind, key) is not None

    stages = [
        ("base", state(journal.get("ranking", "blocks") is not None)),
        ("profile", f"{latencies} scales measured" if latencies else "to do"),
        ("probe", f"{probes} of at most {wanted} probes" if probes else "to do"),
        ("solve", f"settled on {Scale(*answer['scale'])}" if answer else "to do"),
        *((name, state(key is not None and is_done(kind, key))) for name, kind in _FINAL),
    ]
    finished = all(text != "to do" for _, text in stages)
    command = f"mobileprune optimize --run {run.path}"
    return {
        "run": str(run.path),
        "budgets": question["budgets"] if question else [],
        "stages": [{"name": name, "state": text} for name, text in stages],
        "training": training_under_way(run),
        "next": f"nothing; see {run.path / 'report.html'}" if finished else command,
    }


# The stages behind the choice, and the kind of the journal that each leaves.
_FINAL = (
    ("prune", "pruned"),
    ("finetune", "finetuned"),
    ("export", "artifact"),
    ("bench", "measured"),
    ("report", "report"),
)
