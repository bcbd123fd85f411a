"""The report's figures: what was traded for what, and how well it was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's palette: told apart by colour-blind readers, too.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"


@dataclass(frozen=True)
class Point:
    """One network: its scale in words, validation accuracy with standard error, latency in ms, MACs."""

    label: str
    accuracy: float | None = None
    std: float = 0.0
    latency_ms: float = 0.0
    low_ms: float = 0.0
    high_ms: float = 0.0
    predicted_ms: float = 0.0
    macs: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What a run's figures show. frontier: (limit in its unit, accuracy, low, high, scale in words) per budget."""

    base: Point
    result: Point
    probes: Sequence[Point]
    measured: Sequence[Point]
    frontier: Sequence[tuple[float, float, float, float, str]]
    limit_name: str
    origin: str  # of the latencies: "measured" on the device, or "predicted" from its profile
    limit_unit: str


def figures(evidence: Evidence) -> list[tuple[str, str, go.Figure]]:
    """Title, what it shows in one sentence, and the figure."""
    unit = evidence.limit_unit
    return [
        (
            "Accuracy under every budget",
            f"The best predicted accuracy for each limit on {evidence.limit_name} (in {unit}), with its 80 % interval; "
            "probes are where accuracy was measured after a short fine-tuning, the result after a full one.",
            _frontier(evidence),
        ),
        (
            "The latency surrogate against what it was fitted to",
            f"Each point is a scale that was {evidence.origin}, beside the base in the same rounds where a device was "
            "there; on the line the surrogate is exact.",
            _latency(evidence),
        ),
        (
            "Why fewer MACs are not always faster",
            "Latency against multiply-accumulates, both as a share of the base's; below the line a network is "
            "faster than its MACs say, above it slower.",
            _macs(evidence),
        ),
    ]


def _frontier(evidence: Evidence) -> go.Figure:
    figure = go.Figure()
    limits, mean, low, high, labels = ([row[i] for row in evidence.frontier] for i in range(5))
    percent = [[100 * float(v) for v in values] for values in (mean, low, high)]
    figure.add_scatter(x=limits, y=percent[2], mode="lines", line_width=0, showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=limits, y=percent[1], mode="lines", line_width=0, fill="tonexty", fillcolor="rgba(0,114,178,.18)",
        name="80 % interval", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(x=limits, y=percent[0], text=labels, mode="lines", line_color=_BLUE, name="predicted best")
    if evidence.limit_name == "latency":
        _accuracies(figure, evidence.probes, "probes", _GREY, "circle")
        _accuracies(figure, [evidence.base], "base", _GREEN, "square")
        _accuracies(figure, [evidence.result], "result", _ORANGE, "star")
    return _dressed(figure, f"{evidence.limit_name} ({evidence.limit_unit})", "validation accuracy (%)")


def _accuracies(figure: go.Figure, points: Sequence[Point], name: str, colour: str, symbol: str) -> None:
    shown = [p for p in points if p.accuracy is not None]
    figure.add_scatter(
        x=[p.latency_ms for p in shown],
        y=[100 * (p.accuracy or 0) for p in shown],
        error_y={"type": "data", "array": [100 * p.std for p in shown], "thickness": 1},
        text=[p.label for p in shown],
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 12 if symbol == "star" else 8},
        name=name,
    )


def _latency(evidence: Evidence) -> go.Figure:
    points = evidence.measured
    top = 1.05 * max(max(p.latency_ms, p.predicted_ms) for p in points)
    figure = go.Figure()
    figure.add_scatter(x=[0, top], y=[0, top], mode="lines", line={"color": _GREY, "dash": "dot"}, name="exact")
    figure.add_scatter(
        x=[p.predicted_ms for p in points],
        y=[p.latency_ms for p in points],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [p.high_ms - p.latency_ms for p in points],
            "arrayminus": [p.latency_ms - p.low_ms for p in points],
        },
        text=[p.label for p in points],
        mode="markers",
        marker={"color": _BLUE, "size": 8},
        name=evidence.origin,
    )
    return _dressed(figure, "latency by the surrogate (ms)", f"latency, {evidence.origin} (ms)")


def _macs(evidence: Evidence) -> go.Figure:
    base, figure = evidence.base, go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": _GREY, "dash": "dot"}, name="time as MACs")
    figure.add_scatter(
        x=[p.macs / base.macs for p in evidence.measured],
        y=[p.latency_ms / base.latency_ms for p in evidence.measured],
        text=[p.label for p in evidence.measured],
        mode="markers",
        marker={"color": _ORANGE, "size": 8},
        name=evidence.origin,
    )
    return _dressed(figure, "MACs, share of the base", "latency, share of the base")


def _dressed(figure: go.Figure, x: str, y: str) -> go.Figure:
    axis: dict[str, Any] = {"gridcolor": "rgba(127,127,127,.25)", "zeroline": False}
    figure.update_layout(
        height=380,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font_color=_GREY,
        xaxis={"title": x, **axis},
        yaxis={"title": y, **axis},
        legend={"orientation": "h", "y": 1.12},
    )
    return figure
