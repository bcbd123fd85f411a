"""``mobileprune doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mobileprune.commands.common import json_option, print_out

if TYPE_CHECKING:
    from mobileprune.doctor import Check

_MARKS = {"ok": ("ok", "green"), "warn": ("!", "yellow"), "missing": ("-", "yellow"), "broken": ("!!", "red")}


@click.command(short_help="What this machine has, and what is missing.")
@json_option
def doctor(as_json: bool) -> None:
    """Say what of Python, torch, exporters, runtimes, adb, ssh, GPU and disk is here, what each missing piece would
    enable, and the command that gets it. Ends with code 1 where something is missing that everything needs.

    \b
    Example:  mobileprune doctor
    """
    from mobileprune.doctor import examine

    checks = examine()
    if as_json:
        print_out(json.dumps([check.to_dict() for check in checks], indent=1))
    else:
        _show(checks)
    sys.exit(any(check.fatal for check in checks))


def _show(checks: Sequence[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        mark, style = _MARKS[check.state]
        words = Text(check.found)
        if check.state in ("missing", "broken"):
            words += Text(f"\n{'needed for' if check.required else 'would enable'} {check.enables}", style="dim")
        if check.remedy:
            words += Text(f"\n{check.remedy}", style="bold")
        table.add_row(Text(mark, style=style), check.name, words)
    print_out(table)
    fatal = [check.name for check in checks if check.fatal]
    print_out(f"\nmobileprune cannot work without: {', '.join(fatal)}" if fatal else "\nmobileprune can work here")
