"""``mobileprune data``: what a data set looks like to mobileprune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mobileprune.commands.common import json_option, print_lines


@click.command(short_help="What a data set looks like to mobileprune.")
@click.argument("spec", metavar="DATA")
@click.option("--image-size", type=click.IntRange(8), help="[default: the smallest shorter side]")
@click.option("--labels", help="imagenet-1k, or a file that names the model's outputs, where it has more.")
@click.option("--data-root", "root", type=click.Path(path_type=Path), help="Where torchvision's sets lie or are put.")
@click.option("--download", is_flag=True, help="Fetch a data set by name where it is not here.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Fixes the splits.")
@json_option
def data(spec: str, as_json: bool, **how: Any) -> None:
    """Say what DATA holds: splits, classes, sizes, broken images, and the same image on two sides of a split.

    DATA: digits, a folder or tar of class folders, an .npz file, torchvision:NAME, hf:NAME, file.py:function.

    \b
    Example:  mobileprune data digits
    """
    from mobileprune.data import describe_data

    found = describe_data(spec, **how)
    print_lines([json.dumps(found.to_dict(), indent=1)] if as_json else found.lines())
