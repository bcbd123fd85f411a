"""``mobileprune profile``: the latencies of a run's scales, or a profile of a connected device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mobileprune.commands.common import budget_option, json_option, make_display, no_options, print_out, run_stage
from mobileprune.errors import UsageError


@click.command(short_help="Latency of a run's scales, or a profile of a connected device.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False), metavar="[RUN]", required=False)
@click.option("--device", help="host, adb, adb://SERIAL or ssh://USER@HOST; with --calibrate a shipped profile.")
@click.option("--model", "models", multiple=True, help="A network like those to be pruned; may be repeated.")
@click.option("--image-size", type=click.IntRange(8), help="Of the networks.  [default: 224; built-in ones 32]")
@click.option("--name", help="What the profile is called.  [default: after the device]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: your folder of profiles]")
@click.option("--threads", type=click.IntRange(1), help="[default: the device's]")
@click.option("--rounds", type=click.IntRange(2, 100), default=7, show_default=True)
@click.option("--cool-down", metavar="TIME", default="5m", show_default=True, help="How long a hot device may cool.")
@click.option(
    "--calibrate",
    metavar="[DEVICE]",
    is_flag=False,
    flag_value="",
    help="Rescale the shipped profile to this connected device.  [default: the phone that --device means]",
)
@budget_option()
@json_option
def profile(
    run: Path | None,
    device: str | None,
    models: tuple[str, ...],
    image_size: int | None,
    name: str | None,
    output: Path | None,
    threads: int | None,
    rounds: int,
    cool_down: str,
    calibrate: str | None,
    budgets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the latency of a spread of scales of RUN's model on its device.

    Without RUN: measure a connected device and write its profile, with the width multiples at which it is fast and,
    from the networks named, a latency model. With --calibrate: rescale a shipped profile by anchors measured on the
    connected device. The profile's name, or its file, is then a --device.

    \b
    Example:  mobileprune profile runs/demo
              mobileprune profile --device host --model timm:mobilenetv3_small_050 --image-size 64
              mobileprune profile --device pixel --calibrate --model timm:mobilenetv3_large_100
    """
    if run is not None:
        no_options("only for a device; a run is measured as it was asked to be", but=["budgets", "as_json"])
        run_stage(run, "profile", ("profile",), budgets, as_json)
        return
    no_options("only for runs; a device has no budget to keep", among=["budgets"])
    if device is None:
        raise UsageError("nothing to profile: name a run folder, or a device with --device and networks with --model")
    from mobileprune.measuring import parse_duration
    from mobileprune.profiling import calibrate_with, profile_with

    display = make_display()
    how: dict[str, Any] = {"image_size": image_size, "name": name, "output": output, "threads": threads}
    how |= {"rounds": rounds, "cool_down": parse_duration(cool_down)}
    if calibrate is not None:
        found, path = calibrate_with(device, calibrate or device, models, display=display, **how)
    else:
        found, path = profile_with(device, models, display=display, **how)
    if as_json:
        print_out(json.dumps({"path": str(path), "name": found.name, "provenance": found.provenance}, indent=1))
        return
    print_out(found.provenance)
    print_out(f"  {path}\nuse it: mobileprune optimize --device {found.name if output is None else path}")
