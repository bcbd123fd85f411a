"""One self-contained HTML page: the answer first, then why. It loads nothing from a network."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

import plotly.io
from plotly.offline import get_plotlyjs

from mobileprune.budget import shown
from mobileprune.report import words
from mobileprune.report.evidence import Choice, Evidence
from mobileprune.report.figures import Figure, figures, frontier
from mobileprune.report.usage import snippets

Row = Sequence[str]
_ROUNDS_FOR_95 = 6

# The policy makes the browser itself refuse any request: what is not in the file is not loaded.
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
$style
</style></head><body>
$body
<script>$plotly</script>
<script>
$script
</script>
</body></html>
""")


def document(title: str, body: str) -> str:
    """A whole page around ``body``, with the style, plotly and the script that draws ``.plot`` elements."""
    here = resources.files("mobileprune.report")
    return _PAGE.substitute(
        title=html.escape(title),
        body=body,
        style=here.joinpath("report.css").read_text(encoding="utf-8"),
        script=here.joinpath("report.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def page(
    summary: Mapping[str, Any],
    evidence: Evidence,
    search: Sequence[str],
    asked: Mapping[str, Any],
    command: str,
    missing: Sequence[str] = (),
) -> str:
    """The report of a finished run.

    summary: what ``optimize --json`` prints. search: the solution in lines of text. asked: the run's question.
    command: the command line that makes the run again. missing: figures that could not be drawn, and why.
    """
    title = f"{asked['model']['name']} on {summary['device']['name']}"
    drawn = figures(evidence)
    sections = [("answer", "Answer"), ("frontier", "Budgets"), *((f.key, f.title) for f in drawn)]
    sections += [("worth", "What the limits are worth"), ("skipped", "Left out"), ("use", "Use it"), ("again", "Again")]
    body = [
        f"<header><h1>{html.escape(title)}</h1>{_answer(summary)}</header>",
        f'<nav aria-label="sections"><ul>{"".join(_link(*section) for section in sections)}</ul></nav>',
        f"<main><section id=answer>{_tiles(summary)}<h2>Base against result</h2>{_comparison(summary)}</section>",
        budget_section(evidence, summary["run"]),
        *map(figure_section, drawn),
        f"<section id=worth><h2>What the limits are worth</h2>{_list(words.prices(evidence), 'No limit binds.')}"
        f"{_details('How the scale was found', f'<pre>{html.escape(chr(10).join(search))}</pre>')}</section>",
        f"<section id=skipped><h2>Not pruned, not measured, and why</h2>{_notes(summary, missing)}</section>",
        f"<section id=use><h2>Use it</h2>{_use(summary)}</section>",
        f"<section id=again><h2>Make it again</h2>{_again(asked, command)}</section></main>",
    ]
    return document(title, "\n".join(body))


def _link(key: str, title: str) -> str:
    return f'<li><a href="#{key}">{html.escape(title)}</a></li>'


def _answer(summary: Mapping[str, Any]) -> str:
    s, lines = summary["scale"], []
    for b in summary["budgets"]:
        value, limit = shown(b["quantity"], b["value"]), shown(b["quantity"], b["limit"])
        kind, budget = "kept" if b["kept"] else "missed", html.escape(b["budget"])
        lines.append(
            f'<p class=verdict><span class="badge {kind}">Budget {budget} {b["verdict"]}</span> '
            f"{value} {b['origin']}, limit {limit}.</p>"
        )
    device = summary["device"]
    depth, width, resolution = (words.share(s[axis]) for axis in ("depth", "width", "resolution"))
    about = html.escape(", ".join(filter(None, (device.get("title", device["name"]), device.get("soc")))))
    lines.append(
        f"<p class=quiet>The network keeps {depth} of the removable blocks, {width} of the channels and "
        f"{resolution} of the input's side. Device: {about}.</p>"
    )
    return "\n".join(lines)


def _tiles(summary: Mapping[str, Any]) -> str:
    base, result = summary["base"], summary["result"]
    split = "test" if base["accuracy"]["test"] else "validation"
    timed = [name for name, file in result["files"].items() if file["latency"] and base["files"][name]["latency"]]
    name = next(iter(timed or result["files"]))
    before, after = (_accuracy(side, name, split) for side in (base, result))
    tiles = [
        (
            f"accuracy, {split}, measured" + ("" if _computes_the_same(result, name) else f", {name} file"),
            f"{100 * after:.1f} %",
            f"± {100 * result['accuracy'][split]['std']:.1f}; base {100 * before:.1f} %, "
            f"{100 * (after - before):+.1f} points",
        )
    ]
    for name in timed[:1]:
        before, after = (side["files"][name]["latency"] for side in (base, result))
        tiles.append(
            (
                f"latency, {name}, {after['origin']}",
                f"{after['latency_ms']:.3g} ms",
                f"{after['low_ms']:.3g} to {after['high_ms']:.3g}; base {before['latency_ms']:.3g} ms, "
                f"{before['latency_ms'] / after['latency_ms']:.2f} times faster",
            )
        )
    now, was = (side["files"][name]["size_bytes"] for side in (result, base))
    tiles.append((f"file, {name}, measured", shown("size", now), _share(now, was, "size")))
    now, was = (side["peak_activation_bytes"] for side in (result, base))
    tiles.append(("peak activations, counted", shown("memory", now), _share(now, was, "memory")))
    return "<dl class=tiles>" + "".join(
        f"<div class=tile><dt>{html.escape(label)}</dt><dd class=now>{html.escape(now_)}</dd>"
        f"<dd class=was>{html.escape(was_)}</dd></div>"
        for label, now_, was_ in tiles
    ) + "</dl>"  # fmt: skip


def _computes_the_same(side: Mapping[str, Any], name: str) -> bool:
    """Whether the file called ``name`` computes what the torch module does."""
    return bool(side["files"][name]["precision"] == "float32")


def _accuracy(side: Mapping[str, Any], name: str, split: str) -> float:
    """A fraction: of the network in torch, or of the file itself where it computes something else."""
    if _computes_the_same(side, name):
        return float(side["accuracy"][split]["accuracy"])
    file = side["files"][name]
    return float(file["test_accuracy"] if split == "test" else file["accuracy"])


def _share(now: float, was: float, quantity: Any) -> str:
    return f"base {shown(quantity, was)}; {words.share(now / was)} of it"


def comparison_rows(side: Mapping[str, Any]) -> dict[str, str]:
    """What is known of one network (``base`` or ``result`` of a summary): label to text."""
    rows: dict[str, str] = {}
    for split in ("test", "validation"):
        if side["accuracy"][split]:
            score = side["accuracy"][split]
            rows[f"top-1, {split} (torch)"] = f"{100 * score['accuracy']:.1f} ± {100 * score['std']:.1f} %"
    for name, file in side["files"].items():
        if file["test_accuracy"] is not None:
            rows[f"{name}: top-1 of the file, test"] = f"{100 * file['test_accuracy']:.1f} %"
        rows[f"{name}: top-1 of the file, validation"] = f"{100 * file['accuracy']:.1f} %"
        if time := file["latency"]:
            label = f"{name}: latency, {time['origin']} ({_interval(time)})"
            rows[label] = f"{time['latency_ms']:.3g} ms ({time['low_ms']:.3g} to {time['high_ms']:.3g})"
            if time.get("peak_memory_mb"):
                rows[f"{name}: peak memory of the process, {time['origin']}"] = f"{time['peak_memory_mb']:.0f} MB"
        rows[f"{name}: largest difference from torch"] = f"{file['parity_max_abs']:.1e}"
        rows[f"{name}: file"] = shown("size", file["size_bytes"])
    rows["MACs, counted"] = shown("macs", side["macs"])
    rows["parameters, counted"] = shown("params", side["params"])
    rows["peak activations, counted"] = shown("memory", side["peak_activation_bytes"])
    return rows


def _interval(time: Mapping[str, Any]) -> str:
    """What a latency's bounds are. That of all rounds holds their median with probability 1 - 2^(1 - rounds)."""
    if time["origin"] == "predicted":
        return "guaranteed error"
    rounds = len(time.get("round_minima_ms", ()))
    return "95 % interval" if not 0 < rounds < _ROUNDS_FOR_95 else f"{100 * (1 - 2 ** (1 - rounds)):.0f} % interval"


def _comparison(summary: Mapping[str, Any]) -> str:
    base, result = comparison_rows(summary["base"]), comparison_rows(summary["result"])
    rows = [(label, base.get(label, ""), value) for label, value in result.items()]
    remark = "" if summary["base"]["accuracy"]["test"] else (
        "<p class=quiet>The data has no test split: the accuracy is of the validation split, on which choices were "
        "made.</p>"
    )  # fmt: skip
    return table(("", "base", "result"), rows) + remark


def budget_section(evidence: Evidence, run: str) -> str:
    """The frontier, and a slider along it that tells the choice for each limit."""
    figure = frontier(evidence)
    choices = [_choice(c, evidence, run) for c in evidence.frontier]
    at = min(range(len(choices)), key=lambda i: abs(evidence.frontier[i].limit - evidence.limit))
    axes = "".join(
        f'<div><dt>{axis}</dt><dd><span data-choice="{axis}"></span>'
        f'<span class=bar aria-hidden=true><span data-bar="{axis}"></span></span></dd></div>'
        for axis in ("depth", "width", "resolution")
    )
    facts = "".join(
        f'<div><dt>{label}</dt><dd data-choice="{key}"></dd></div>'
        for key, label in (
            ("accuracy", "accuracy, predicted (80 % interval)"),
            ("latency", "latency, predicted (80 % interval)"),
            ("macs", "MACs, counted"),
            ("params", "parameters, counted"),
            ("memory", "peak activations, counted"),
            ("size", "file, estimated"),
        )
    )
    slider = (
        f"<div class=slider><label for=budget><span>Budget: limit on {html.escape(evidence.limit_name)}</span>"
        '<output for=budget data-choice="limit"></output></label>'
        f"<input type=range id=budget min=0 max={len(choices) - 1} value={at} step=1>"
        f"<dl aria-live=polite>{axes}{facts}</dl><p class=quiet>Make this network from the same run: "
        '<code data-choice="command"></code></p>'
        "<noscript><p>The slider needs JavaScript; its numbers are in the table below.</p></noscript></div>"
        f'<script type="application/json" id=choices>{_json(choices)}</script>'
    )
    return figure_section(figure, slider)


def _choice(choice: Choice, evidence: Evidence, run: str) -> dict[str, Any]:
    """One stop of the slider, as text."""
    a, ms, s = choice.accuracy, choice.latency_ms, choice.scale
    limit = f"{choice.limit:.3g} {evidence.limit_unit}"
    accuracy = f"{100 * a[0]:.1f} % ({100 * a[1]:.1f} to {100 * a[2]:.1f})"
    asked = [word for budget in choice.budgets for word in ("--budget", budget)]
    text = {
        "limit": limit,
        "depth": f"{s.depth:.3g}",
        "width": f"{s.width:.3g}",
        "resolution": f"{s.resolution:.3g}",
        "accuracy": accuracy,
        "latency": f"{ms[0]:.3g} ms ({ms[1]:.3g} to {ms[2]:.3g})",
        "macs": shown("macs", choice.macs),
        "params": shown("params", choice.params),
        "memory": shown("memory", choice.memory),
        "size": shown("size", choice.size_bytes),
        "command": shlex.join(["mobileprune", "optimize", "--run", run, *asked]),
    }
    return {
        "x": choice.limit,
        "y": 100 * a[0],
        **{axis: getattr(s, axis) for axis in ("depth", "width", "resolution")},
        "words": f"{limit}: {s}, accuracy {100 * a[0]:.1f} %, latency {ms[0]:.3g} ms",
        "shown": text,
    }


def figure_section(figure: Figure, extra: str = "") -> str:
    """A figure with its words before it and its numbers as a table behind a disclosure."""
    text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in figure.text)
    plots = "".join(
        f'<div class=plot role=img aria-label="{html.escape(figure.title)}; the numbers are in the table below">'
        f'<script type="application/json">{plot_json(panel)}</script></div>'
        for panel in figure.panels
    )
    panels = f"<div class=panels>{plots}</div>" if len(figure.panels) > 1 else plots
    return (
        f'<section class=figure id="{figure.key}"><h2>{html.escape(figure.title)}</h2>{text}'
        f'<div id="figure-{figure.key}">{panels}</div>{extra}'
        f"{_details('The numbers', table(figure.heading, figure.rows))}</section>"
    )


def plot_json(figure: Any) -> str:
    """A plotly figure as JSON that may stand inside a script element."""
    text: str = plotly.io.to_json(figure, validate=False)
    return text.replace("<", "\\u003c")


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def table(heading: Row, rows: Sequence[Row], kind: str = "") -> str:
    """An HTML table that scrolls by itself where the page is narrow."""
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    label = html.escape(", ".join(filter(None, heading)) or "table")
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{label}"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _details(title: str, body: str, kind: str = "") -> str:
    return f'<details class="{kind}"><summary>{html.escape(title)}</summary>{body}</details>'


def _list(entries: Sequence[str], otherwise: str) -> str:
    items = "".join(f"<li>{html.escape(entry)}</li>" for entry in entries)
    return f"<ul>{items}</ul>" if items else f"<p>{otherwise}</p>"


def _notes(summary: Mapping[str, Any], missing: Sequence[str]) -> str:
    entries = list(dict.fromkeys([*summary["warnings"], *summary["notes"], *missing]))
    return _list(entries, "Everything was pruned and measured.")


def _use(summary: Mapping[str, Any]) -> str:
    result = summary["result"]
    rows = [
        (name, file["precision"], shown("size", file["size_bytes"]), file["path"])
        for name, file in result["files"].items()
    ]
    rows.append(("weights", "float32", "", summary["weights"]))
    if summary.get("android"):
        rows.append(("Android bundle", "", "", summary["android"]))
    parts = [table(("file", "precision", "size", "path"), rows, "left")]
    stored = max(file["input"]["height"] for file in summary["base"]["files"].values())  # the base sees them as stored
    for what, language, code in snippets(summary["run"], result["files"], stored):
        parts.append(_details(f"{language}: {what}", _code(code), "use"))
    parts.append(
        "<p class=quiet>manifest.json beside the files names their inputs, labels, checksums and measurements.</p>"
    )
    return "".join(parts)


def _code(text: str) -> str:
    return _copied("", html.escape(text))


def _command(line: str) -> str:
    """A command line that is broken between its options."""
    parts = [f"<span>{html.escape(part)}</span>" for part in re.split(r" (?=--)", line)]
    return _copied("wrap", " ".join(parts))


def _copied(kind: str, code: str) -> str:
    button = "<button class=copy type=button hidden>copy</button>"
    return f'<pre class="{kind}" tabindex=0><code>{code}</code>{button}</pre>'


def _again(asked: Mapping[str, Any], command: str) -> str:
    versions = [(name, version) for name, version in asked["versions"].items()]
    return (
        f"<p>Seed {asked['seed']}. The same command with the same versions on the same device:</p>"
        f"{_command(command)}{table(('package', 'version'), versions)}"
        "<p class=quiet>run.toml in the run folder holds the whole question, journal.jsonl every sample.</p>"
    )
