"""One CSV row per finished run: what was asked, what it came to, and the command that makes it again.

.venv/bin/python tools/tabulate_runs.py runs/a runs/b --csv results/journeys.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from mobileprune.run import Run
from mobileprune.stages.report import command_of
from mobileprune.stages.summary import summarise


def row(path: Path) -> dict[str, Any]:
    """The figures of one run; latencies in ms with half the width of their 95 % interval, relative."""
    run = Run.open(path)
    summary = summarise(run)
    found: dict[str, Any] = {"model": run.asked["model"]["name"], "data": Path(run.asked["data"]["spec"]).stem}
    found |= {"device": run.asked["device"], "budget": " ".join(b["budget"] for b in summary["budgets"])}
    found |= {key: f"{value:.4f}" for key, value in summary["scale"].items()}
    found["budget_kept"] = all(b["kept"] for b in summary["budgets"])
    for side in ("base", "result"):
        for split, score in summary[side]["accuracy"].items():
            found[f"{side}_{split}_top1"] = f"{score['accuracy']:.4f}" if score else ""
        found[f"{side}_macs"], found[f"{side}_params"] = summary[side]["macs"], summary[side]["params"]
        for name, file in summary[side]["files"].items():
            found[f"{side}_{name}_bytes"] = file["size_bytes"]
            if latency := file["latency"]:
                found[f"{side}_{name}_ms"] = f"{latency['latency_ms']:.4f}"
                found[f"{side}_{name}_spread"] = f"{latency['spread']:.4f}"
                found["latency"] = latency["origin"]
    found["versions"] = " ".join(f"{name}={version}" for name, version in run.asked["versions"].items())
    found["command"] = command_of(run).replace(f"{Path.cwd().parent}/", "../")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--csv", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row(path) for path in arguments.runs]
    with arguments.csv.open("w", newline="") as file:
        file.write(f"# python {' '.join(sys.argv)}\n")
        writer = csv.DictWriter(file, list(dict.fromkeys(key for one in rows for key in one)), restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
