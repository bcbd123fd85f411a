"""What the commands share: options, how they print, and how a stage is run on a run folder."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobileprune.errors import UsageError
from mobileprune.limits import LIMITS

if TYPE_CHECKING:
    from mobileprune.progress import Display
    from mobileprune.run import Run
    from mobileprune.stages.context import Context

_INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
_BUDGET_HELP = "What must hold: 12ms, 50% (of the base's latency), 300MMACs, 1.5MParams, 2MB. May be repeated."


def budget_option(required: bool = False) -> Callable[..., Any]:
    return click.option("--budget", "budgets", multiple=True, required=required, metavar="LIMIT", help=_BUDGET_HELP)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON for programs.")
run_argument = click.argument("run", type=click.Path(path_type=Path, file_okay=False), metavar="RUN")


def within(name: str) -> click.ParamType:
    """The type of the option ``name``: a number within its limits."""
    limits = LIMITS[name]
    kind = click.IntRange if limits.whole else click.FloatRange
    return kind(limits.least, limits.most, limits.open_, limits.open_ and limits.most is not None)


class RateType(click.ParamType):
    """A learning rate: a number above zero, or "auto"."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value == "auto":
            return "auto"
        return within("learning_rate").convert(value, param, ctx)


def no_options(why: str, *, but: Iterable[str] = (), among: Iterable[str] | None = None) -> None:
    """Raises UsageError, "FLAG: why", where the command line has an option that means nothing here.

    among: the options in question by their parameters' names; unless given, all of the command but for ``but``.
    """
    ctx = click.get_current_context()
    options = {one.name: max(one.opts, key=len) for one in ctx.command.params if isinstance(one, click.Option)}
    names = set(options if among is None else among) - set(but)
    typed = click.core.ParameterSource.COMMANDLINE
    if found := [options[name] for name in options if name in names and ctx.get_parameter_source(str(name)) is typed]:
        raise UsageError(f"{' and '.join(found)}: {why}")


def context_of(run: Run, where: Sequence[Any] = ()) -> Context:
    """The run's context. where: name, address, CPUs and GPUs of the engine that trains, and its processes."""
    from mobileprune.engine import make_engine
    from mobileprune.stages.context import Context

    return Context(run, make_display(), make_engine(*where))


def make_display() -> Display:
    from rich.console import Console

    from mobileprune.progress import Terminal

    return Terminal(Console(stderr=True))


@contextmanager
def resumable(*words: object) -> Iterator[None]:
    """Ctrl-C ends with the command that goes on from there."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["mobileprune", *map(str, words)])
        click.echo(f"\nstopped; what is finished is kept. Go on with: {command}", err=True)
        sys.exit(_INTERRUPTED)


def print_summary(run: Run, as_json: bool) -> None:
    from mobileprune.stages.summary import summarise, tables

    summary = summarise(run)
    for part in [json.dumps(summary, indent=1)] if as_json else tables(summary):
        print_out(part)


def run_stage(
    path: Path,
    name: str,
    steps: tuple[str, ...],
    budgets: tuple[str, ...],
    as_json: bool,
    show: Callable[[Run, bool], None] | None = None,
) -> None:
    """Do on a run folder what of these steps is not done yet; with ``as_json`` print how far the run is.

    show: prints instead what the stage came to, however it was asked for, and is told whether anything was done now.
    """
    from importlib import import_module

    from mobileprune.run import Run, locked
    from mobileprune.stages.solve import set_budgets

    Run.open(path)  # before the lock: a folder that is no run must not be touched
    with resumable(name, path), locked(path):
        run = Run.open(path)
        if budgets:
            set_budgets(run, budgets)
        finished = len(run.journal.entries)
        for step in steps:
            getattr(import_module(f"mobileprune.stages.{step}"), step)(context_of(run))
        if show:
            show(run, len(run.journal.entries) > finished)
        elif as_json:
            from mobileprune.stages.summary import status as status_of

            print_out(json.dumps(status_of(run), indent=1))


def print_lines(lines: Iterable[str]) -> None:
    """Lines of text; on a terminal long ones are broken between words and go on indented. A pipe, and what has lines
    of its own, such as JSON, gets them as they are."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        if width < len(line) and width and "\n" not in line:
            line = textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        click.echo(line)


def print_out(what: Any) -> None:
    """Text as it is, tables and styled text as the terminal allows; a pipe gets unbroken lines."""
    if isinstance(what, str):
        click.echo(what)
        return
    from rich.console import Console

    console = Console()
    console.print(what, soft_wrap=not console.is_terminal)
