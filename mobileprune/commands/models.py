"""``mobileprune explain`` and ``diff``: what can be cut, and what was."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mobileprune.commands.common import json_option, print_lines


@click.command(short_help="What can be pruned in a model, and what cannot.")
@click.argument("model")
@click.option("--model-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="Passed to the constructor.")
@click.option("--image-size", type=click.IntRange(8), help="[default: 32 for built-in models, else 224]")
@json_option
def explain(model: str, arguments: tuple[str, ...], image_size: int | None, as_json: bool) -> None:
    """Say what can be pruned in MODEL along each dimension, what cannot and why, and the smallest scale.

    \b
    Example:  mobileprune explain torchvision:mobilenet_v2
    """
    from mobileprune.api import explain as explain_model

    found = explain_model(model, arguments, image_size)
    print_lines([json.dumps(found.to_dict(), indent=1)] if as_json else found.lines())


@click.command(short_help="What was cut from the base, layer by layer.")
@click.argument("path", type=click.Path(path_type=Path), metavar="RUN|FOLDER|RECIPE")
@json_option
def diff(path: Path, as_json: bool) -> None:
    """Say what RUN's result, or one of its scales, has lost: blocks in words, layers before and after.

    A scale is named by its FOLDER in the run's probes/ or results/, or by the recipe.json in it.

    \b
    Example:  mobileprune diff runs/demo
              mobileprune diff runs/demo/probes/SCALE
    """
    from mobileprune.api import diff as diff_recipe

    found = diff_recipe(path)
    print_lines([json.dumps(found.to_dict(), indent=1)] if as_json else found.lines())
