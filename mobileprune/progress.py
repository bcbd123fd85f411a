"""What a person sees while a run works: a live line with time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

Kind = Literal["training", "exporting", "measuring"]


class Advance(Protocol):
    """Tells how far a piece of work is: units done, and a short note such as the current loss."""

    def __call__(self, done: float, note: str = "") -> None: ...


class Display(Protocol):
    """Where the stages report to."""

    def stage(self, name: str, what: str) -> None:
        """A stage begins."""

    def say(self, text: str, style: str = "") -> None:
        """One finished thing, in words; ``style`` as rich names them."""

    def work(self, kind: Kind, description: str, total: float) -> AbstractContextManager[Advance]:
        """A piece of work of ``total`` units; gives an ``Advance``."""


class Quiet:
    """Says nothing."""

    def stage(self, name: str, what: str) -> None:
        return

    def say(self, text: str, style: str = "") -> None:
        return

    @contextmanager
    def work(self, kind: Kind, description: str, total: float) -> Iterator[Advance]:
        yield lambda done, note="": None


class Terminal:
    """Writes to a console (standard error), live where it is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def stage(self, name: str, what: str) -> None:
        self.console.print(Text(f"{name:>9}", style="bold cyan") + Text(f"  {what}"), soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(f"{'':>9}  {text}", style=style), soft_wrap=True)

    @contextmanager
    def work(self, kind: Kind, description: str, total: float) -> Iterator[Advance]:
        start = time.monotonic()
        if not self.console.is_terminal:
            yield lambda done, note="": None
            self.say(f"{description}: {time.monotonic() - start:.0f} s")
            return
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(f"{'':>8}{description}", total=total, note="")
            yield lambda done, note="": progress.update(task, completed=done, note=note)
        self.say(f"{description}: {time.monotonic() - start:.0f} s")
