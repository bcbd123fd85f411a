"""``mobileprune bench``: time files on a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobileprune.commands.common import budget_option, json_option, make_display, no_options, print_out, run_stage
from mobileprune.errors import UsageError

if TYPE_CHECKING:
    from device_profiles.benchmark import Report
    from mobileprune.progress import Display
    from mobileprune.run import Run


@click.command(short_help="Time RUN's files, or any model files.")
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|FILE...")
@click.option("--device", default="host", show_default=True, help="As `mobileprune devices` lists them.")
@click.option("--rounds", type=click.IntRange(2, 100), default=7, show_default=True, help="Of every file.")
@click.option("--round-seconds", type=click.FloatRange(0), default=0.25, show_default=True, help="Least time a round.")
@click.option("--threads", type=click.IntRange(1), help="Of the runtime.  [default: the profile's]")
@click.option("--delegate", type=click.Choice(["cpu", "gpu", "nnapi"]), default="cpu", show_default=True)
@click.option("--core-mask", metavar="HEX", help="Cores to run on, such as f0 for cores 4 to 7.")
@click.option("--sustained", metavar="TIME", help="Run one file for so long, 10m: its throttling curve.")
@click.option("--cool-down", metavar="TIME", default="5m", show_default=True, help="How long a hot device may cool.")
@click.option("--strict/--lenient", default=True, show_default=True, help="Refuse, or warn, if it was disturbed.")
@click.option("--benchmark-binary", type=click.Path(path_type=Path), help="Google's benchmark_model for .tflite files.")
@budget_option()
@json_option
def bench(targets: tuple[Path, ...], budgets: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Time a RUN's base and result, or any .onnx, .tflite and .pte FILEs, in interleaved rounds on the device.

    A RUN is measured once; after that its latencies are shown.

    \b
    Example:  mobileprune bench runs/demo
              mobileprune bench a.onnx b.tflite --device host
              mobileprune bench a.tflite --device adb --threads 4 --sustained 10m
    """
    if len(targets) == 1 and targets[0].is_dir():
        no_options("only for files; a run is measured as it was asked to be", but=["budgets", "as_json"])
        run_stage(targets[0], "bench", ("bench",), budgets, as_json, lambda run, now: _show_run(run, now, as_json))
        return
    no_options("only for runs; files have no budget to keep", among=["budgets"])
    from mobileprune import measuring

    measuring.use_benchmark_binary(how.pop("benchmark_binary"))
    how["cool_down"] = measuring.parse_duration(how["cool_down"])
    how["core_mask"] = measuring.parse_core_mask(how["core_mask"]) if how["core_mask"] else None
    sustained, display = how.pop("sustained"), make_display()
    if sustained is not None:
        _sustain(targets, measuring.parse_duration(sustained), display, as_json, how)
        return
    labels = measuring.labels(targets)
    report = measuring.bench_files(targets, display=display, **how)
    for warning in report.warnings:
        display.say(warning, style="yellow")
    if as_json:
        print_out(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report, labels)


def _show_run(run: Run, now: bool, as_json: bool) -> None:
    """The latencies of a run. now: whether they were measured by this command."""
    from mobileprune.stages.bench import measured_report
    from mobileprune.stages.summary import status

    report, display = measured_report(run), make_display()
    if not now:
        display.stage("bench", "measured already: these are the latencies of then")
        for warning in report.warnings:
            display.say(warning, style="yellow")
    if as_json:
        print_out(json.dumps({**status(run), **report.to_dict()}, indent=1))
    else:
        _print(report, [*report.measurements])


def _print(report: Report, labels: Sequence[str]) -> None:
    from mobileprune.measuring import bench_table, states_line

    print_out(bench_table(report, labels))
    if states := states_line(report.before, report.after, report.waited_s):
        print_out(states)


def _sustain(targets: tuple[Path, ...], seconds: float, display: Display, as_json: bool, how: dict[str, Any]) -> None:
    from mobileprune.measuring import states_line, sustain_file, sustained_table

    no_options("not with --sustained, which has no rounds", among=["rounds", "round_seconds", "strict"])
    if len(targets) > 1:
        raise UsageError(f"--sustained runs one file without a pause, and {len(targets)} were named: name one")
    kept = {name: how[name] for name in ("device", "threads", "delegate", "core_mask", "cool_down")}
    found = sustain_file(targets[0], seconds=seconds, display=display, **kept)
    if as_json:
        print_out(json.dumps(found.to_dict(), indent=1))
        return
    print_out(sustained_table(found))
    if states := states_line(found.before, found.after, found.waited_s):
        print_out(states)
