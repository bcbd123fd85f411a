"""Devices and files as the command line shows them: what there is to measure on, and what files take there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from device_profiles.benchmark import Report, benchmark
from device_profiles.devices import open_device
from device_profiles.profile import catalog, load_profile
from mobileprune.errors import UsageError
from mobileprune.progress import Display


def known_devices() -> list[dict[str, Any]]:
    """Every profile of the catalog: whether it is measured or predicted, on what, and how far predictions are off."""
    found = []
    for name in catalog():
        profile = load_profile(name)
        models = {model.threads: model for model in profile.latency}
        model = models.get(profile.threads)
        found.append(
            {
                "name": name,
                "title": profile.title,
                "latency": "predicted" if profile.kind == "predicted" else "measured",
                "runtime": profile.runtime,
                "precision": profile.precision,
                "threads": profile.threads,
                "typical_error": model.typical_error if model else None,
                "guaranteed_error": model.guaranteed_error if model else None,
            }
        )
    return found


def devices_table() -> Table:
    """``known_devices`` for people."""
    table = Table("--device", "what it is", "runtime, threads", "latency, error", box=SIMPLE_HEAD, header_style="bold")
    for one in known_devices():
        latency = one["latency"]
        if one["typical_error"]:
            latency += f" ±{100 * one['typical_error']:.0f} % (at most {100 * one['guaranteed_error']:.0f})"
        title = one["title"].removesuffix(" (predicted)")
        table.add_row(one["name"], title, f"{one['runtime']}, {one['threads']}", latency)
    return table


def bench_files(
    paths: Sequence[Path], device: str, *, rounds: int, round_seconds: float, threads: int | None, display: Display
) -> Report:
    """Time model files on a device, interleaved. Raises UsageError for a file named twice."""
    profile = load_profile(device)
    files = {str(path): path for path in paths}
    if len(files) < len(paths):
        raise UsageError("a file was named twice: name each once")
    with display.work("measuring", f"{len(files)} files on {profile.name}", 1) as advance:
        return benchmark(
            open_device(profile),
            files,
            rounds=rounds,
            min_seconds=round_seconds,
            threads=threads,
            progress=lambda done, total: advance(done / total),
        )


def bench_table(report: Report) -> Table:
    """A report for people; latency with its 95 % interval."""
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("file and runtime", overflow="fold")
    for heading in ("latency", "95 % interval", "p90", "init", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in report.measurements.items():
        memory = "" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f} MB"
        interval = f"{one.low_ms:.3g} to {one.high_ms:.3g}"
        last = (f"{one.p90_ms:.3g}", f"{one.init_ms:.0f} ms", memory)
        described = Text(f"{name}\n") + Text(f"{one.runtime}, {one.threads} threads, {one.origin}", style="dim")
        table.add_row(described, f"{one.latency_ms:.3g} ms", interval, *last)
    return table
