"""``mobileprune devices``: what ``--device`` takes."""

from __future__ import annotations

import json

import click

from mobileprune.commands.common import json_option, print_out


@click.command(short_help="What --device takes.")
@json_option
def devices(as_json: bool) -> None:
    """List what --device takes, and how far latencies that are predicted are off.

    \b
    Example:  mobileprune devices
    """
    from mobileprune.measuring import devices_table, known_devices

    print_out(json.dumps(known_devices(), indent=1) if as_json else devices_table())
