"""A page that shows several runs side by side."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from mobileprune.report.evidence import Evidence
from mobileprune.report.figures import BLUE, GREEN, GREY, ORANGE, SKY, Figure, dressed
from mobileprune.report.page import document, figure_section, table

_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#B8860B", SKY, GREY)
_SYMBOLS = ("star", "diamond", "square", "triangle-up", "hexagon", "cross", "x")


@dataclass(frozen=True)
class Compared:
    """One run: its name, its rows (label to text) and what its figures show."""

    name: str
    rows: Mapping[str, str]
    evidence: Evidence


def comparison_page(runs: Sequence[Compared], labels: Sequence[str]) -> str:
    """The whole page. labels: the rows' names in order."""
    title = "Comparison of " + ", ".join(run.name for run in runs)
    rows = [(label, *(run.rows.get(label, "") for run in runs)) for label in labels]
    parts = [f"<h1>{html.escape(title)}</h1>", f"<main>{table(('', *(run.name for run in runs)), rows)}"]
    parts += [figure_section(figure) for figure in (_accuracy(runs), _frontiers(runs)) if figure is not None]
    return document(title, "\n".join(parts) + "</main>")


def _accuracy(runs: Sequence[Compared]) -> Figure:
    """Every run's base and result: accuracy against latency."""
    figure = go.Figure()
    for i, run in enumerate(runs):
        pair = (run.evidence.base, run.evidence.result)
        figure.add_scatter(
            x=[p.latency_ms for p in pair],
            y=[100 * (p.accuracy or 0) for p in pair],
            error_y={"type": "data", "array": [100 * p.std for p in pair], "thickness": 1},
            text=[f"{run.name}: {which}, {p.label}" for which, p in zip(("base", "result"), pair, strict=True)],
            mode="lines+markers",
            line={"color": _COLOURS[i % len(_COLOURS)], "dash": "dot", "width": 1},
            marker={"symbol": ["square-open", _SYMBOLS[i % len(_SYMBOLS)]], "size": [9, 13]},
            name=run.name,
        )
    rows = [
        (run.name, f"{p.latency_ms:.3g} ms", f"{100 * (p.accuracy or 0):.1f} ± {100 * p.std:.1f} %", which)
        for run in runs
        for which, p in (("base", run.evidence.base), ("result", run.evidence.result))
    ]
    text = ["Validation accuracy against latency: from each run's base (open square) to its result."]
    return Figure(
        "results", "What each run came to", text, [dressed(figure, "latency (ms)", "validation accuracy (%)")],
        ("run", "latency", "accuracy, validation", ""), rows,
    )  # fmt: skip


def _frontiers(runs: Sequence[Compared]) -> Figure | None:
    """The frontiers of the runs whose limit is the first run's quantity."""
    first = runs[0].evidence
    alike = [run for run in runs if run.evidence.limit_name == first.limit_name]
    if len(alike) < 2:
        return None
    figure = go.Figure()
    for i, run in enumerate(alike):
        figure.add_scatter(
            x=[c.limit for c in run.evidence.frontier],
            y=[100 * c.accuracy[0] for c in run.evidence.frontier],
            text=[str(c.scale) for c in run.evidence.frontier],
            mode="lines",
            line={"color": _COLOURS[i % len(_COLOURS)], "shape": "hv"},
            name=run.name,
        )
    rows = [
        (run.name, f"{c.limit:.3g} {first.limit_unit}", str(c.scale), f"{100 * c.accuracy[0]:.1f} %")
        for run in alike
        for c in run.evidence.frontier[:: max(1, len(run.evidence.frontier) // 10)]
    ]
    text = [f"The best predicted accuracy for each limit on {first.limit_name}, by each run's own surrogates."]
    return Figure(
        "frontiers", "Their frontiers", text,
        [dressed(figure, f"{first.limit_name} ({first.limit_unit})", "validation accuracy (%)")],
        ("run", "limit", "scale", "accuracy, predicted"), rows,
    )  # fmt: skip
