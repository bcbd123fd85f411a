"""``mobileprune bench``: time files on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mobileprune.commands.common import budget_option, json_option, make_display, print_out, run_stage


@click.command(short_help="Time RUN's files, or any model files.")
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|FILE...")
@click.option("--device", default="host", show_default=True, help="A device profile; of a run it is the run's own.")
@click.option("--rounds", type=click.IntRange(2, 100), default=7, show_default=True, help="Of every file.")
@click.option("--round-seconds", type=click.FloatRange(0), default=0.25, show_default=True, help="Least time a round.")
@click.option("--threads", type=click.IntRange(1), help="Of the runtime.  [default: the profile's]")
@budget_option()
@json_option
def bench(targets: tuple[Path, ...], budgets: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Time a RUN's base and result, or any .onnx and .tflite FILEs, in interleaved rounds on the device.

    \b
    Example:  mobileprune bench runs/demo
              mobileprune bench a.onnx b.tflite --device host
    """
    if len(targets) == 1 and targets[0].is_dir():
        run_stage(targets[0], "bench", ("bench",), budgets, as_json)
        return
    from mobileprune.measuring import bench_files, bench_table

    display = make_display()
    report = bench_files(targets, display=display, **how)
    for warning in report.warnings:
        display.say(warning, style="yellow")
    print_out(json.dumps(report.to_dict(), indent=1) if as_json else bench_table(report))
