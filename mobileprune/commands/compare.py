"""``mobileprune compare``: finished runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mobileprune.commands.common import json_option, print_out


@click.command(short_help="Finished runs side by side.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False), metavar="RUN RUN...")
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with figures.")
@json_option
def compare(runs: tuple[Path, ...], page: Path | None, as_json: bool) -> None:
    """Show finished RUNs side by side: what was asked, what came out, and with --html their frontiers in one figure.

    \b
    Example:  mobileprune compare runs/demo runs/other --html compare.html
    """
    from mobileprune.compare import columns, compare_table, to_dict, write_page

    found = columns(runs)
    print_out(json.dumps(to_dict(found), indent=1) if as_json else compare_table(found))
    if page is not None:
        write_page(found, page)
        click.echo(f"written: {page}", err=True)
