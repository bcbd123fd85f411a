"""Which network of a rival's line is taken for a speed-up: all are timed, those near the limit again in more rounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rivals import Candidate, built

import exporters
from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from mobileprune.scale import BASE
from mobileprune.stages.context import Context

_NEAR = 0.06  # of the limit: what few short rounds, or a clock of two speeds, may hide


class Ledger:
    """What is finished, one JSON line each, so that a killed comparison goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.done[entry["key"]] = entry

    def has(self, key: str, label: str) -> bool:
        """Whether the network of this label was made; another is where its line was measured anew."""
        return key in self.done and self.done[key]["label"] == label

    def add(self, key: str, **data: Any) -> dict[str, Any]:
        entry = {"key": key, **data}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.done[key] = entry
        return entry


def shares_of(ctx: Context, candidates: Sequence[Candidate], rounds: int, seconds: float) -> dict[str, float]:
    """The latency of each network that runs as a share of the first's, the base's, in the same interleaved rounds."""
    folder = ctx.folder("lines")
    files = {}
    for number, (candidate, model, size) in enumerate(built(candidates)):
        path = folder / f"{number}.onnx"
        spec = exporters.InputSpec(3, size, size, ctx.view.mean, ctx.view.std)
        exporters.export_draft(model, spec, path, format="onnx", precision=ctx.precision)
        files[candidate.label] = path
    report = benchmark(open_device("host"), files, rounds=rounds, min_seconds=seconds, threads=1)
    if next(iter(files)) != str(BASE):
        raise SystemExit("the base does not stand first on a line: shares are of the base's latency")
    base = report.measurements[str(BASE)]
    shares = {label: report.measurements[label].share_of(base)[0] for label in files}
    for path in files.values():
        path.unlink()
    return shares


def timed_line(ctx: Context, ledger: Ledger, name: str, candidates: Sequence[Candidate]) -> dict[str, float]:
    """The share of every network of a line that runs, in short rounds; once per line."""
    key = f"line {name}"
    known = ledger.done.get(key)
    if not known or not set(known["labels"]) <= {c.label for c in candidates}:  # else other probes made another line
        found = shares_of(ctx, candidates, rounds=9, seconds=0.1)
        broken = len(candidates) - len(found)
        known = ledger.add(key, labels=list(found), shares=list(found.values()), broken=broken)
    return dict(zip(known["labels"], known["shares"], strict=True))


def first_within(
    ctx: Context, ledger: Ledger, name: str, candidates: Sequence[Candidate], speedup: float
) -> Candidate | None:
    """The first of a line, which starts at the base, that is as fast as asked.

    It and those near the limit are timed again in as many rounds as the last session has, as mobileprune does with its
    choice, until the first that is fast enough is one of these.
    """
    limit, shares = 1 / speedup, timed_line(ctx, ledger, name, candidates)
    key = f"near {name} {speedup:g}x"
    known = ledger.done.get(key, {"shares": {}})["shares"]
    if not set(known) <= set(shares):  # of another line
        known = {}
    while True:
        label = next((label for label, share in (shares | known).items() if share <= limit), None)
        near = {other for other, share in shares.items() if abs(share / limit - 1) <= _NEAR or other == label}
        again = near - set(known)
        if not again:
            return next((c for c in candidates if c.label == label), None)
        timed = shares_of(ctx, [c for c in candidates if c.label in {str(BASE), *again}], rounds=25, seconds=0.25)
        known = known | {other: timed[other] for other in again}
        ledger.add(key, shares=known)
