"""Devices and files as the command line shows them: what there is to measure on, and what files take there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from device_profiles.benchmark import Report, benchmark
from device_profiles.devices import open_device
from device_profiles.devices.base import Delegation, DeviceState
from device_profiles.inventory import Known, inventory
from device_profiles.runners import google
from device_profiles.sustained import Sustained, sustained
from mobileprune.errors import UsageError
from mobileprune.progress import Display, waiting_gate
from mobileprune.words import duration

COOL_DOWN_S = 300.0
_UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_PLACES = {"connected": "connected", "host": "this machine", "own": "your profiles", "catalog": "without a device"}


def known_devices(hosts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What is connected, this machine, and every profile: what each can measure and what stands in the way."""
    return [one.to_dict() for one in inventory(hosts)]


def devices_table(hosts: Sequence[str] = ()) -> RenderableType:
    """``known_devices`` for people: a table, and what stands in the way of each."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("--device", overflow="fold", min_width=19)
    for heading in ("what it is", "what it runs", "latency, error"):
        table.add_column(heading, overflow="fold")
    place, known = "", inventory(hosts)
    for one in known:
        if one.place != place:
            place = one.place
            table.add_row(Text(_PLACES[place], style="bold cyan"))
        table.add_row(one.name, _what(one), _runs(one), _latency(one))
    obstacles = [Text(f"{one.name}: {obstacle}", style="yellow") for one in known for obstacle in one.obstacles]
    return Group(table, *obstacles)


def _what(one: Known) -> Text:
    details = [one.soc, one.os, one.abi, f"{one.cores} cores" if one.cores else None]
    text = Text(one.title)
    if shown := ", ".join(part for part in details if part and part != one.title):
        text += Text(f"\n{shown}", style="dim")
    return text


def _runs(one: Known) -> str:
    parts = [f"{suffix} {runtime}" for suffix, runtime in sorted(one.runtimes.items())]
    if one.runtimes and one.delegates != ("cpu",):
        parts.append(f"on {', '.join(one.delegates)}")
    if one.runtimes and one.threads:
        others = [str(count) for count in one.thread_choices if count != one.threads]
        parts.append(" or ".join([_threads(one.threads), *others]))
    return "\n".join(parts)


def _latency(one: Known) -> str:
    if one.typical_error is None or one.guaranteed_error is None:
        return one.latency
    return f"{one.latency} ±{100 * one.typical_error:.0f} % (at most {100 * one.guaranteed_error:.0f})"


def use_benchmark_binary(path: Path | None) -> None:
    """Run .tflite files on phones with this benchmark_model. Raises UsageError where it is no file."""
    if path is None:
        return
    if not path.is_file():
        raise UsageError(f"{path}: there is no such benchmark_model")
    os.environ[google.VARIABLE] = str(path.resolve())


def parse_core_mask(text: str) -> int:
    """ "f0" or "0xf0", as taskset writes it: the cores that may be used. Raises UsageError."""
    try:
        mask = int(text, 16)
    except ValueError:
        mask = 0
    if not 0 < mask < 1 << 1024:
        raise UsageError(f"the core mask {text!r} is no hexadecimal number above 0, such as f0 for cores 4 to 7")
    return mask


def parse_duration(text: str) -> float:
    """ "10m", "600s", "1.5h" or "600" in seconds. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", text)
    if not found:
        raise UsageError(f"{text!r} is no time such as 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def bench_files(
    paths: Sequence[Path],
    device: str,
    *,
    rounds: int,
    round_seconds: float,
    display: Display,
    threads: int | None = None,
    delegate: str = "cpu",
    core_mask: int | None = None,
    cool_down: float = COOL_DOWN_S,
    strict: bool = False,
) -> Report:
    """Time model files on a device, interleaved.

    threads: the profile's unless given. delegate: cpu, gpu or nnapi. core_mask: the cores that may be used, bit 0 the
    first. cool_down: how many seconds a hot device may cool before. strict: refuse rather than warn where the device
    was disturbed. Raises UsageError for a file named twice.
    """
    files = by_name(paths)
    opened = open_device(device)
    try:
        what = f"{len(files)} file{'s' * (len(files) > 1)} on {opened.profile.name}"
        with display.work("measuring", what, 1) as advance:
            return benchmark(
                opened,
                files,
                rounds=rounds,
                min_seconds=round_seconds,
                threads=threads,
                delegate=delegate,
                core_mask=core_mask,
                gate=waiting_gate(display, cool_down),
                strict=strict,
                progress=lambda done, total: advance(done / total),
            )
    finally:
        opened.clean_up()


def sustain_file(
    path: Path,
    device: str,
    seconds: float,
    *,
    display: Display,
    threads: int | None = None,
    delegate: str = "cpu",
    core_mask: int | None = None,
    cool_down: float = COOL_DOWN_S,
) -> Sustained:
    """Run one model file for so long without a pause: its throttling curve. The options are those of `bench_files`."""
    opened = open_device(device)
    try:
        what = f"{path.name} on {opened.profile.name} for {duration(seconds)}"
        with display.work("measuring", what, 1) as advance:
            return sustained(
                opened,
                path,
                seconds,
                threads=threads,
                delegate=delegate,
                core_mask=core_mask,
                gate=waiting_gate(display, cool_down),
                progress=advance,
            )
    finally:
        opened.clean_up()


def by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by their paths as they were named. Raises UsageError for one that was named twice."""
    files = {str(path): path for path in paths}
    if len({path.absolute() for path in paths}) < len(paths):
        raise UsageError("a file was named twice: name each once")
    return files


def bench_table(report: Report, names: Sequence[str]) -> Table:
    """A report for people, with these names for its files. Under the interval stands half its width, relative to the
    latency."""
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("file and what ran it", overflow="fold", min_width=20)
    for heading in ("latency, ms", "95 % interval", "p50, p90", "init", "memory"):
        table.add_column(heading, justify="right")
    for label, one in zip(names, report.measurements.values(), strict=True):
        how = _how(one.runtime, one.delegation, one.threads, report.core_mask, one.origin)
        described = Text(f"{label}\n") + Text(how, style="dim")
        between = f"{_ms(one.low_ms)} to {_ms(one.high_ms)}"
        if not one.runs:  # predicted: nothing ran
            table.add_row(described, _ms(one.latency_ms), f"{between}\nby the error", "", "", "")
            continue
        memory = "" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f} MB"
        quantiles = f"{_ms(one.p50_ms)}, {_ms(one.p90_ms)}"
        spread = f"±{100 * one.spread:.1f} %"
        table.add_row(
            described, _ms(one.latency_ms), f"{between}\n{spread}", quantiles, f"{one.init_ms:.0f} ms", memory
        )
    return table


def _how(runtime: str, delegation: Delegation | None, threads: int, core_mask: int | None, origin: str) -> str:
    """What ran a file, on what, and what its times are."""
    cores = "" if core_mask is None else f" on the cores {core_mask:x}"
    return "; ".join([runtime, *([str(delegation)] if delegation else []), f"{_threads(threads)}{cores}, {origin}"])


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def labels(paths: Sequence[Path]) -> list[str]:
    """The files by as little of their paths as tells them apart."""
    whole = [path.absolute() for path in paths]  # some may be named from here, others from the root
    bare = [path.name for path in whole]
    if len(set(bare)) == len(bare):
        return bare
    common = os.path.commonpath([path.parent for path in whole])
    return [str(path.relative_to(common)) for path in whole]


def _ms(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def states_line(before: DeviceState, after: DeviceState, waited_s: float = 0.0) -> str | None:
    """The device before and after, in a line, as far as it tells. waited_s: how long it was left to cool before."""
    told = [f"left to cool for {waited_s:.0f} s"] if waited_s else []
    for words, state in (("before", before), ("after", after)):
        parts = [
            None if state.temperature_c is None else f"{state.temperature_c:.0f} °C",
            None if state.thermal_status is None else f"thermal status {state.thermal_status}",
            None if state.busy is None else f"{state.busy:.0%} busy",
            None if state.battery_percent is None else f"battery {state.battery_percent:.0f} %",
            state.governor,
        ]
        if known := ", ".join(part for part in parts if part):
            told.append(f"{words}: {known}")
    return "; ".join(told) or None


def sustained_table(found: Sustained, rows: int = 12) -> Table:
    """The throttling curve for people, thinned out to so many rows; its verdict is the title, what ran the caption."""
    how = _how(found.runtime, found.delegation, found.threads, found.core_mask, found.origin)
    table = Table(
        title=found.verdict, title_justify="left", caption=f"{Path(found.file).name}: {how}", caption_justify="left",
        box=SIMPLE_HEAD, header_style="bold",
    )  # fmt: skip
    for heading in ("after", "latency", "against the start", "temperature"):
        table.add_column(heading, justify="right", no_wrap=True)
    every = max(1, len(found.points) // rows)
    digits = 0 if found.points[-1].time_s >= 60 else 1
    for one in found.points[every - 1 :: every]:
        warm = "" if one.temperature_c is None else f"{one.temperature_c:.0f} °C"
        change = one.latency_ms / found.first_ms - 1
        table.add_row(f"{one.time_s:.{digits}f} s", f"{one.latency_ms:.3g} ms", f"{change:+.0%}", warm)
    return table
