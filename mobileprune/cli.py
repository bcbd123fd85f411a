"""The command line: which commands there are, and how errors end them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

import click

from mobileprune.commands import (
    bench,
    compare,
    completion,
    data,
    devices,
    doctor,
    export,
    init,
    models,
    profile,
    solve,
    stages,
)
from mobileprune.commands.optimize import optimize
from mobileprune.errors import MobilepruneError, UsageError


class _Group(click.Group):
    """Commands in the order of the journey; errors as one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            _fail(str(error), 2)
        except MobilepruneError as error:
            _fail(str(error), 1)
        except Exception as error:
            # The wings have error classes of their own; importing them here would make every command slow.
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if not kinds & {"DeviceError", "ExportError"}:
                raise
            _fail(str(error), 2 if "ProfileError" in kinds else 1)


def _fail(message: str, code: int) -> None:
    text = f"error: {message}"
    if sys.stderr.isatty():  # a pipe gets one line
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    click.echo(text, err=True)
    sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mobileprune")
def main() -> None:
    """Prune a trained CNN along depth, width and input resolution to a budget measured on your device.

    \b
    Try it on the bundled digits:
      mobileprune optimize --budget 50%
    """


_COMMANDS = (
    optimize,
    profile.profile,
    stages.probe,
    solve.solve,
    stages.prune,
    stages.finetune,
    export.export,
    bench.bench,
    stages.report,
    stages.status,
    devices.devices,
    data.data,
    models.explain,
    models.diff,
    compare.compare,
    doctor.doctor,
    init.init,
    completion.completion,
)
for _command in _COMMANDS:
    main.add_command(_command)
