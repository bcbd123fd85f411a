"""``mobileprune init``: a commented mobileprune.toml from answers or flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mobileprune.commands.configured import keys_of, question_options
from mobileprune.commands.optimize import optimize
from mobileprune.configuration import NAME, write
from mobileprune.errors import UsageError

# What is asked on a terminal, with what Enter answers.
_QUESTIONS = (
    ("model", "Which model (NAME, torchvision:NAME, timm:NAME or path/to/file.py:factory)?", "resnet20"),
    ("checkpoint", "Trained weights (a file; empty to train the model first)?", ""),
    ("data", "Which images (digits, a folder of class folders, an .npz file)?", "digits"),
    ("device", "Which device (see `mobileprune devices`)?", "host"),
    ("budgets", "What must hold (12ms, 50%, 300MMACs, 2MB)?", "50%"),
    ("path", "Where should the run be kept?", "runs/first"),
)


@question_options(optimize)
@click.command(short_help="Write a commented mobileprune.toml.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=Path(NAME), show_default=True)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(output: Path, force: bool, **flags: Any) -> None:
    """Write a commented mobileprune.toml that holds what `mobileprune optimize` is asked, from the flags that are given
    or, on a terminal without any, from your answers.

    \b
    Example:  mobileprune init --model resnet20 --data digits --budget 50%
    """
    from mobileprune.budget import parse_budgets
    from mobileprune.run import write_text

    if output.exists() and not force:
        raise UsageError(f"{output} is there already; edit it, name another with --output, or replace it with --force")
    source = click.get_current_context().get_parameter_source
    given = {name: value for name, value in flags.items() if source(name) is ParameterSource.COMMANDLINE}
    if not given and sys.stdin.isatty():
        given = {field: click.prompt(text, default=default, show_default=bool(default)) or None
                 for field, text, default in _QUESTIONS}  # fmt: skip
        given["budgets"] = str(given["budgets"]).split()
    elif "budgets" not in given:
        given["budgets"] = ["50%"]
    parse_budgets(given["budgets"])
    write_text(output, write(keys_of(optimize), given))
    click.echo(f"{output} written; go on with: mobileprune optimize" + (
        "" if output == Path(NAME) else f" --config {output}"
    ))  # fmt: skip
