"""A command's options as keys of mobileprune.toml, and the option that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from mobileprune.configuration import NAME, Key, read

_ELSEWHERE = ("as_json", "config", "dry_run", "help")  # ways of asking, not part of the question


def keys_of(command: click.Command) -> list[Key]:
    """The keys that a configuration of ``command`` may hold, in the order of its help."""
    return [_key(p) for p in command.params if isinstance(p, click.Option) and p.name not in _ELSEWHERE]


def _key(option: click.Option) -> Key:
    number = isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
    name = max(option.opts, key=len).lstrip("-")
    help_ = option.help or ""
    if option.show_default and option.default is not None:
        help_ += f"  [default: {option.default}]"
    table = option.metavar == "KEY=VALUE"
    return Key(name, option.name or name, option.multiple, option.is_flag, number, table, help_)


def _load(ctx: click.Context, option: click.Parameter, value: Path | None) -> None:
    path = value
    if path is None:
        path = Path(NAME)
        if not path.is_file():
            return
    ctx.default_map = read(path, keys_of(ctx.command))
    click.echo(f"options from {path}: {', '.join(sorted(ctx.default_map)) or 'none'}", err=True)


def config_option() -> Callable[..., Any]:
    """``--config FILE``: options from a file, by default from mobileprune.toml in the current folder if it is there."""
    return click.option(
        "--config", type=click.Path(path_type=Path, dir_okay=False), is_eager=True, expose_value=False, callback=_load,
        help=f"Options from a file; flags win over it.  [default: {NAME}, if it is there]",
    )  # fmt: skip


def question_options(command: click.Command) -> Callable[..., Any]:
    """The options of ``command`` that are part of the question, for another command that takes the same."""
    own: Sequence[click.Parameter] = [p for p in command.params if p.name not in _ELSEWHERE]

    def add(wrapped: click.Command) -> click.Command:
        wrapped.params = [*own, *wrapped.params]
        return wrapped

    return add
