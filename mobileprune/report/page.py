"""One self-contained HTML page: the answer first, then why. It loads nothing from a network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from mobileprune.budget import shown
from mobileprune.report.figures import Evidence, figures

Row = Sequence[str]

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 18%, Canvas); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
td + td, th + th { text-align: right; } .kept { color: #009E73; } .missed { color: #D55E00; }
pre { font: .9em monospace; overflow-x: auto; padding: .8rem; border: 1px solid var(--line); }
@media print { body { max-width: none; } .figure { break-inside: avoid; } }
</style></head><body>
<h1>$title</h1>
$answer
<h2>Base against result</h2>
$comparison
$remarks
$figures
<h2>How the scale was found</h2>
$search
<h2>Not pruned, not measured, and why</h2>
$notes
<h2>Use it</h2>
<pre>$use</pre>
<h2>Make it again</h2>
$versions
</body></html>
""")


def page(
    summary: Mapping[str, Any], evidence: Evidence, search: Sequence[str], asked: Mapping[str, Any], command: str
) -> str:
    """The report of a finished run.

    summary: what ``optimize --json`` prints. search: the solution in lines of text. asked: the run's question.
    command: the command line that makes the run again.
    """
    s = summary["scale"]
    title = f"{asked['model']['name']} on {summary['device']['name']}"
    scale = f"depth {s['depth']:.3g}, width {s['width']:.3g}, resolution {s['resolution']:.3g}"
    return _PAGE.substitute(
        title=html.escape(title),
        answer=_answer(summary, scale),
        comparison=_table(("", "base", "result"), _comparison(summary)),
        remarks=""
        if summary["base"]["accuracy"]["test"]
        else "<p>The data has no test split: the accuracy is of the validation split, on which choices were made.</p>",
        figures=_figures(evidence),
        search=f"<pre>{html.escape(chr(10).join(search))}</pre>",
        notes=_list([*summary["warnings"], *summary["notes"]], "Everything was pruned and measured."),
        use=html.escape(_use(summary)),
        versions=f"<pre>{html.escape(command)}</pre>"
        + _table(("package", "version"), [(name, version) for name, version in asked["versions"].items()]),
    )


def _answer(summary: Mapping[str, Any], scale: str) -> str:
    lines = []
    for b in summary["budgets"]:
        value, limit = shown(b["quantity"], b["value"]), shown(b["quantity"], b["limit"])
        kind = "kept" if b["kept"] else "missed"
        lines.append(
            f"<p>Budget {html.escape(b['budget'])} <strong class={kind}>{b['verdict']}</strong>: "
            f"{value} {b['origin']}, limit {limit}; at {scale}.</p>"
        )
    return "\n".join(lines)


def _comparison(summary: Mapping[str, Any]) -> list[Row]:
    base, result = summary["base"], summary["result"]
    rows: list[Row] = []

    def add(label: str, values: Sequence[str]) -> None:
        rows.append((label, *values))

    for split in ("test", "validation"):
        if base["accuracy"][split]:
            scores = [side["accuracy"][split] for side in (base, result)]
            add(f"top-1, {split}", [f"{100 * v['accuracy']:.1f} ± {100 * v['std']:.1f} %" for v in scores])
    for name in result["files"]:
        files = [side["files"][name] for side in (base, result)]
        add(f"{name}: top-1 of the file, validation", [f"{100 * f['accuracy']:.1f} %" for f in files])
        times = [f["latency"] for f in files if f["latency"]]
        if times:
            add(
                f"{name}: latency, {times[0]['origin']} (95 % interval)",
                [f"{t['latency_ms']:.3g} ms ({t['low_ms']:.3g} to {t['high_ms']:.3g})" for t in times],
            )
        add(f"{name}: largest difference from torch", [f"{f['parity_max_abs']:.1e}" for f in files])
        add(f"{name}: file", [shown("size", f["size_bytes"]) for f in files])
    add("MACs, counted", [shown("macs", side["macs"]) for side in (base, result)])
    add("parameters, counted", [shown("params", side["params"]) for side in (base, result)])
    add("peak activations, counted", [shown("memory", side["peak_activation_bytes"]) for side in (base, result)])
    return rows


def _table(heading: Row, rows: Sequence[Row]) -> str:
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list(entries: Sequence[str], otherwise: str) -> str:
    items = "".join(f"<li>{html.escape(entry)}</li>" for entry in entries)
    return f"<ul>{items}</ul>" if items else f"<p>{otherwise}</p>"


def _figures(evidence: Evidence) -> str:
    parts = []
    for number, (title, text, figure) in enumerate(figures(evidence)):
        drawn = figure.to_html(
            full_html=False,
            include_plotlyjs=number == 0,  # the script once, in the page itself
            config={"displaylogo": False, "responsive": True},
            div_id=f"figure-{number}",
        )
        parts.append(f"<div class=figure><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{drawn}</div>")
    return "\n".join(parts)


def _use(summary: Mapping[str, Any]) -> str:
    lines = ["import mobileprune", f'model = mobileprune.load("{summary["run"]}")', ""]
    lines += [file["path"] for file in summary["result"]["files"].values()]
    return "\n".join(lines)
