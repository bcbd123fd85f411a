"""Finished runs side by side: one column each, in the terminal, as JSON or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mobileprune.budget import shown
from mobileprune.errors import UsageError
from mobileprune.progress import Quiet
from mobileprune.report.comparison import Compared, comparison_page
from mobileprune.report.page import comparison_rows
from mobileprune.run import Run, write_text
from mobileprune.stages.context import Context
from mobileprune.stages.evidence import evidence
from mobileprune.stages.summary import Summary, summarise


@dataclass(frozen=True)
class Column:
    """One finished run: its folder's name, what it was asked, and what it came to."""

    name: str
    run: Run
    summary: Summary

    def rows(self) -> dict[str, str]:
        """Label to text: the question first, then the answer, then the result's figures."""
        asked, s = self.run.asked, self.summary
        scale, base, result = s["scale"], s["base"], s["result"]
        split = "test" if base["accuracy"]["test"] else "validation"
        was, now = (100 * side["accuracy"][split]["accuracy"] for side in (base, result))
        rows = {
            "model": asked["model"]["name"],
            "data": Path(asked["data"]["spec"]).name,
            "device": s["device"]["name"],
            "seed": str(asked["seed"]),
            "budget": "; ".join(
                f"{b['budget']} {b['verdict']}, {shown(b['quantity'], b['value'])} {b['origin']}" for b in s["budgets"]
            ),
            "(d, w, r)": f"{scale['depth']:.3g}, {scale['width']:.3g}, {scale['resolution']:.3g}",
            f"base, top-1, {split}": f"{was:.1f} %",
            "change in top-1": f"{now - was:+.1f} points",
        }
        for name, file in result["files"].items():
            before = base["files"].get(name, {}).get("latency")
            if file["latency"] and before:
                rows[f"{name}: times faster"] = f"{before['latency_ms'] / file['latency']['latency_ms']:.2f}"
        return rows | comparison_rows(result)


def columns(paths: Sequence[Path]) -> list[Column]:
    """Open finished runs. Raises UsageError for fewer than two or one twice, MobilepruneError for an unfinished one."""
    resolved = [path.resolve() for path in paths]
    if len(paths) < 2:
        raise UsageError("comparing takes two runs or more: mobileprune compare runs/a runs/b")
    if len(set(resolved)) < len(resolved):
        raise UsageError(f"{paths[resolved.index(max(resolved, key=resolved.count))]} was named twice: name each once")
    names = [path.name for path in resolved]
    opened = [Run.open(path) for path in paths]
    return [
        Column(name if names.count(name) == 1 else str(path), run, summarise(run))
        for name, path, run in zip(names, paths, opened, strict=True)
    ]


def labels(found: Sequence[Column]) -> list[str]:
    """The row labels of all columns, in the order in which they first appear."""
    return list(dict.fromkeys(label for column in found for label in column.rows()))


def compare_table(found: Sequence[Column]) -> Table:
    """The columns for a terminal; rows on which all agree are dim."""
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("", overflow="fold")
    for column in found:
        table.add_column(column.name, overflow="fold")
    rows = [column.rows() for column in found]
    for label in labels(found):
        values = [row.get(label, "") for row in rows]
        table.add_row(label, *values, style="dim" if len(set(values)) == 1 else "")
    return table


def to_dict(found: Sequence[Column]) -> list[dict[str, Any]]:
    """Each run's question and summary, for programs."""
    return [{"name": c.name, "asked": dict(c.run.asked), "summary": c.summary} for c in found]


def write_page(found: Sequence[Column], path: Path) -> None:
    """The comparison as one self-contained page: the table, and every run's frontier in one figure."""
    compared = [Compared(c.name, c.rows(), evidence(Context(c.run, Quiet()))[0]) for c in found]
    write_text(path, comparison_page(compared, labels(found)))
