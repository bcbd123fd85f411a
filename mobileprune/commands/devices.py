"""``mobileprune devices``: what is connected, what ``--device`` takes, and what stands in the way."""

from __future__ import annotations

import json

import click

from mobileprune.commands.common import json_option, print_out


@click.command(short_help="What is connected, and what --device takes.")
@click.option("--ssh", "hosts", multiple=True, metavar="USER@HOST", help="A board to ask too; may be repeated.")
@json_option
def devices(hosts: tuple[str, ...], as_json: bool) -> None:
    """List what is connected now and every profile: what each can measure, what stands in the way and the remedy.

    \b
    Example:  mobileprune devices
              mobileprune devices --ssh pi@raspberrypi.local
    """
    from mobileprune.measuring import devices_table, known_devices

    print_out(json.dumps(known_devices(hosts), indent=1) if as_json else devices_table(hosts))
