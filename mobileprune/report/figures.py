"""The report's figures, each with the sentence that says what it shows and the numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from mobileprune.report import words
from mobileprune.report.evidence import Curve, Evidence, Point, Slice
from mobileprune.scale import BASE

# Close to Okabe and Ito's palette: told apart by colour-blind readers, too, on light and on dark.
BLUE, ORANGE, GREEN, SKY, GREY = "#1A85C8", "#D55E00", "#009E73", "#56B4E9", "#7F7F7F"
_BLOCK_PX = 20  # height of one block's pair of bars
_WIDE = {"base": (BLUE, 2.5), "result": (ORANGE, 2.5)}  # of curves: colour and width; probes are thin and grey
_ALONE = {"depth": (BLUE, "circle"), "width": (ORANGE, "diamond"), "resolution": (GREEN, "square")}
Row = tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A section of the report: what it says in words, the plots that show it, and the same as a table."""

    key: str
    title: str
    text: Sequence[str]
    panels: Sequence[go.Figure]
    heading: Row
    rows: Sequence[Row]


def figures(evidence: Evidence) -> list[Figure]:
    """Every figure that the evidence carries; one without data is left out (the page says so)."""
    drawn = [_slices(evidence), _untrained(evidence), _latency(evidence), _macs(evidence), _blocks(evidence)]
    drawn.append(_curves(evidence))
    return [figure for figure in drawn if figure is not None]


def frontier(evidence: Evidence) -> Figure:
    """Accuracy under every budget; the last trace marks what the budget slider stands on."""
    name, unit = evidence.limit_name, evidence.limit_unit
    figure = go.Figure()
    limits = [c.limit for c in evidence.frontier]
    mean, low, high = ([100 * c.accuracy[i] for c in evidence.frontier] for i in range(3))
    figure.add_scatter(x=limits, y=high, mode="lines", line_width=0, showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=limits, y=low, mode="lines", line_width=0, fill="tonexty", fillcolor="rgba(86,180,233,.25)",
        name="80 % interval", hoverinfo="skip",
    )  # fmt: skip
    labels = [str(c.scale) for c in evidence.frontier]
    figure.add_scatter(
        x=limits, y=mean, text=labels, mode="lines", line={"color": BLUE, "shape": "hv"}, name="predicted best"
    )
    if name == "latency":
        _accuracies(figure, evidence.probes, "probes", GREY, "circle")
        _accuracies(figure, [evidence.base], "base", GREEN, "square")
        _accuracies(figure, [evidence.result], "result", ORANGE, "star")
    figure.add_scatter(
        x=limits[-1:], y=mean[-1:], mode="markers", name="the slider", hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 18, "color": BLUE, "line": {"width": 3}},
    )  # fmt: skip
    rows = [
        (f"{c.limit:.3g} {unit}", str(c.scale), f"{100 * c.accuracy[0]:.1f} %", f"{c.latency_ms[0]:.3g} ms")
        for c in evidence.frontier
    ]
    return Figure(
        "frontier",
        "Accuracy under every budget",
        words.frontier(evidence),
        [dressed(figure, f"{name} ({unit})", "validation accuracy (%)")],
        (f"limit on {name}", "scale", "accuracy, predicted", "latency, predicted"),
        rows,
    )


def _accuracies(figure: go.Figure, points: Sequence[Point], name: str, colour: str, symbol: str) -> None:
    shown = [p for p in points if p.accuracy is not None]
    across = {"type": "data", "symmetric": False, "thickness": 1}
    figure.add_scatter(
        x=[p.latency_ms for p in shown],
        y=[100 * (p.accuracy or 0) for p in shown],
        error_y={"type": "data", "array": [100 * p.std for p in shown], "thickness": 1},
        error_x={
            **across,
            "array": [p.high_ms - p.latency_ms for p in shown],
            "arrayminus": [p.latency_ms - p.low_ms for p in shown],
        },
        text=[p.label for p in shown],
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 13 if symbol == "star" else 8},
        name=name,
    )


def _slices(evidence: Evidence) -> Figure | None:
    """F(d, w, r) as three planes through the chosen scale, the probes on them."""
    if not evidence.slices:
        return None
    values = [v for s in evidence.slices for row in s.values for v in row]
    values += [p.accuracy for s in evidence.slices for p in s.probes if p.accuracy is not None]
    colours = {"colorscale": "Cividis", "cmin": 100 * min(values), "cmax": 100 * max(values)}
    panels = [_slice(s, evidence.result.scale, colours) for s in evidence.slices]
    probes = [evidence.base, *evidence.probes]
    rows = [(p.label, f"{100 * (p.accuracy or 0):.1f} %", f"± {100 * p.std:.1f}") for p in probes]
    heading = ("probe", "accuracy, validation", "standard error (points)")
    return Figure("slices", "Accuracy as a function of the scale", words.slices(evidence), panels, heading, rows)


def _slice(part: Slice, chosen: Any, colours: dict[str, Any]) -> go.Figure:
    bounds = {"zmin": colours["cmin"], "zmax": colours["cmax"], "colorscale": colours["colorscale"]}
    figure = go.Figure()
    figure.add_heatmap(
        x=part.xs, y=part.ys, z=[[100 * v for v in row] for row in part.values], zsmooth="best", **bounds,
        colorbar={"title": {"text": "%", "side": "top"}, "thickness": 10, "outlinewidth": 0},
        hovertemplate=f"{part.x} %{{x:.2f}}, {part.y} %{{y:.2f}}: %{{z:.1f}} %<extra>surrogate</extra>",
    )  # fmt: skip
    for on, name, size in ((True, "probe on this plane", 13), (False, "probe off it", 8)):
        shown = [p for p, here in zip(part.probes, part.on_slice, strict=True) if here == on]
        figure.add_scatter(
            x=[getattr(p.scale, part.x) for p in shown],
            y=[getattr(p.scale, part.y) for p in shown],
            text=[f"{p.label}: {100 * (p.accuracy or 0):.1f} %" for p in shown],
            hovertemplate="%{text}<extra>" + name + "</extra>",
            mode="markers",
            opacity=1 if on else 0.75,
            marker={
                "color": [100 * (p.accuracy or 0) for p in shown],
                **colours,
                "size": size,
                "line": {"color": "white", "width": 2 if on else 1},
            },
            showlegend=False,
        )
    figure.add_scatter(
        x=[getattr(chosen, part.x)], y=[getattr(chosen, part.y)], mode="markers", showlegend=False,
        marker={"symbol": "star", "size": 15, "color": ORANGE, "line": {"color": "white", "width": 1}},
        hovertemplate=f"{chosen}<extra>chosen</extra>",
    )  # fmt: skip
    whole = dressed(figure, part.x, part.y)
    whole.update_layout(height=310, margin={"r": 70, "t": 34}, title={"text": f"{part.held} {part.at:.3g}"})
    return whole


def _untrained(evidence: Evidence) -> Figure | None:
    if not evidence.untrained:
        return None
    figure, rows = go.Figure(), list[Row]()
    for line in evidence.untrained:
        colour, symbol = _ALONE[line.axis]
        figure.add_scatter(
            x=line.shares, y=line.added, mode="lines+markers", name=f"{line.axis} alone",
            line_color=colour, marker={"symbol": symbol, "size": 8},
        )  # fmt: skip
        figure.add_vline(x=line.chosen, line={"color": colour, "dash": "dot", "width": 1.5})
        rows += [(line.axis, f"{s:.3g}", f"{a:.2f}") for s, a in zip(line.shares, line.added, strict=True)]
    drawn = dressed(figure, "share of the base", "loss added before any training (nats)")
    heading = ("dimension", "share of the base", "loss added (nats)")
    title = "What each dimension costs before training"
    return Figure("untrained", title, words.untrained(evidence), [drawn], heading, rows)


def _latency(evidence: Evidence) -> Figure:
    points = evidence.measured
    top = 1.05 * max(max(p.latency_ms, p.predicted_ms) for p in points)
    figure = go.Figure()
    figure.add_scatter(x=[0, top], y=[0, top], mode="lines", line={"color": GREY, "dash": "dot"}, name="exact")
    figure.add_scatter(
        x=[p.predicted_ms for p in points],
        y=[p.latency_ms for p in points],
        error_x=_bars([(p.predicted_ms, p.predicted_low_ms, p.predicted_high_ms) for p in points]),
        error_y=_bars([(p.latency_ms, p.low_ms, p.high_ms) for p in points]),
        text=[p.label for p in points],
        mode="markers",
        marker={"color": BLUE, "size": 8},
        name=evidence.origin,
    )
    rows = [
        (p.label, f"{p.predicted_ms:.3g} ms", f"{p.latency_ms:.3g} ms ({p.low_ms:.3g} to {p.high_ms:.3g})")
        for p in points
    ]
    return Figure(
        "latency",
        f"The latency surrogate against {'measurements' if evidence.origin == 'measured' else 'the profile'}",
        words.latency(evidence),
        [dressed(figure, "latency by the surrogate (ms)", f"latency, {evidence.origin} (ms)")],
        ("scale", "by the surrogate", f"{evidence.origin} (interval)"),
        rows,
    )


def _bars(spans: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Error bars from (value, low, high)."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "array": [max(high - value, 0) for value, _, high in spans],
        "arrayminus": [max(value - low, 0) for value, low, _ in spans],
    }


def _macs(evidence: Evidence) -> Figure:
    base, figure = evidence.base, go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dot"}, name="time as MACs")
    kinds = (
        ("depth alone", *_ALONE["depth"], lambda s: s.width == s.resolution == 1 and s.depth < 1),
        ("width alone", *_ALONE["width"], lambda s: s.depth == s.resolution == 1 and s.width < 1),
        ("resolution alone", *_ALONE["resolution"], lambda s: s.depth == s.width == 1 and s.resolution < 1),
        ("mixed", GREY, "x", lambda s: sum(v < 1 for v in s.as_tuple()) > 1),
        ("base", GREY, "circle-open", lambda s: s == BASE),
    )
    for name, colour, symbol, belongs in kinds:
        shown = [p for p in evidence.measured if belongs(p.scale)]
        if shown:
            figure.add_scatter(
                x=[p.macs / base.macs for p in shown],
                y=[p.latency_ms / base.latency_ms for p in shown],
                text=[p.label for p in shown],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 10},
                name=name,
            )
    rows = [
        (p.label, f"{100 * p.macs / base.macs:.0f} %", f"{100 * p.latency_ms / base.latency_ms:.0f} %")
        for p in sorted(evidence.measured, key=lambda p: p.macs)
    ]
    return Figure(
        "macs",
        "Why fewer FLOPs are not always faster here",
        words.macs(evidence),
        [dressed(figure, "MACs, share of the base", f"latency ({evidence.origin}), share of the base")],
        ("scale", "MACs, of the base", f"latency, {evidence.origin}, of the base"),
        rows,
    )


def _blocks(evidence: Evidence) -> Figure | None:
    if not evidence.blocks:
        return None
    names = [b.name for b in evidence.blocks]
    figure = go.Figure()
    for name, values, colour in (
        ("base", [b.before / 1e6 for b in evidence.blocks], SKY),
        ("result", [(b.after or 0) / 1e6 for b in evidence.blocks], ORANGE),
    ):
        figure.add_bar(y=names, x=values, orientation="h", name=name, marker_color=colour)
    gone = [b for b in evidence.blocks if b.after is None]
    figure.add_scatter(
        x=[b.before / 1e6 for b in gone], y=[b.name for b in gone], mode="text", text=[" removed"] * len(gone),
        textposition="middle right", showlegend=False, hoverinfo="skip", textfont={"size": 11},
    )  # fmt: skip
    whole = dressed(figure, "MMACs per image, counted", "")
    whole.update_layout(height=150 + _BLOCK_PX * len(names), barmode="group", bargap=0.25, margin={"l": 110})
    whole.update_yaxes(autorange="reversed", automargin=True, type="category")
    rows = [
        (b.name, f"{b.before / 1e6:.3g} M", "removed" if b.after is None else f"{b.after / 1e6:.3g} M")
        for b in evidence.blocks
    ]
    heading = ("block", "MACs, base", "MACs, result")
    return Figure("blocks", "Where the work went", words.blocks(evidence), [whole], heading, rows)


def _curves(evidence: Evidence) -> Figure | None:
    if not evidence.curves:
        return None
    panels = [_losses(evidence.curves)]
    if any(a is not None for c in evidence.curves for a in c.accuracy):
        panels.append(_learnt(evidence.curves))
    longest = max(len(c.epochs) for c in evidence.curves)
    for panel in panels:
        panel.update_xaxes(tickformat="d", dtick=1 if longest < 20 else None)
    rows = [
        (
            *(c.name, str(len(c.epochs)), f"{c.loss[0]:.3f}", f"{c.loss[-1]:.3f}"),
            *(_percent(c.accuracy[-1]), _percent(c.validation)),
        )
        for c in evidence.curves
    ]
    heading = ("training", "epochs", "loss, first", "loss, last", "accuracy in training, last", "accuracy, validation")
    return Figure("curves", "Training", words.curves(evidence), panels, heading, rows)


def _losses(curves: Sequence[Curve]) -> go.Figure:
    figure = go.Figure()
    for curve in curves:
        _line(figure, curve, curve.loss)
    return dressed(figure, "epoch", "training loss")


def _learnt(curves: Sequence[Curve]) -> go.Figure:
    """Accuracy in training, and that on the validation split behind the last epoch."""
    figure = go.Figure()
    for curve in curves:
        _line(figure, curve, [None if a is None else 100 * a for a in curve.accuracy])
    ended = [c for c in curves if c.validation is not None]
    figure.add_scatter(
        x=[c.epochs[-1] for c in ended],
        y=[100 * (c.validation or 0) for c in ended],
        text=[c.name for c in ended],
        hovertemplate="%{text}: %{y:.1f} %<extra>validation</extra>",
        mode="markers",
        marker={"symbol": "diamond-open", "size": 9, "color": [_stroke(c)[0] for c in ended], "line": {"width": 2}},
        showlegend=False,
    )
    return dressed(figure, "epoch", "accuracy (%)")


def _line(figure: go.Figure, curve: Curve, values: Sequence[float | None]) -> None:
    colour, width = _stroke(curve)
    figure.add_scatter(
        x=curve.epochs, y=values, mode="lines+markers" if len(curve.epochs) < 8 else "lines", name=curve.name,
        line={"color": colour, "width": width}, showlegend=curve.name in _WIDE,
    )  # fmt: skip


def _stroke(curve: Curve) -> tuple[str, float]:
    return _WIDE.get(curve.name, (GREY, 1))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def dressed(figure: go.Figure, x: str, y: str) -> go.Figure:
    """Axes, size and room; the page adds the text's and the grid's colour, which follow its theme."""
    figure.update_layout(
        template="none",
        height=380,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        xaxis={"title": {"text": x}, "zeroline": False, "automargin": True},
        yaxis={"title": {"text": y, "standoff": 12}, "zeroline": False, "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    return figure
