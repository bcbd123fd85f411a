"""What a person sees while a run works: a live line with time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from device_profiles.thermal import Gate
from mobileprune.words import duration

_LINE_EVERY_S = 60.0  # where there is no terminal to draw on
Kind = Literal["training", "exporting", "measuring", "scoring"]


class Advance(Protocol):
    """Tells how far a piece of work is: units done, and a short note such as the current loss."""

    def __call__(self, done: float, note: str = "") -> None: ...


class Pace:
    """How fast a training is, and how long the probes and all that is left will take at that pace; in words."""

    def __init__(self) -> None:
        self._start, self._first = time.monotonic(), 0

    def __call__(self, seen: int, left: int, probes: int = 0) -> str:
        """seen: images trained on so far in this training, of the ``left`` that the journey had when it began.

        probes: of which belong to probes; 0 where this is none."""
        if not self._first:
            self._start, self._first = time.monotonic(), seen
            return "…"
        rate = (seen - self._first) / max(time.monotonic() - self._start, 1e-6)
        stage, whole = (duration((images - seen) / max(rate, 1e-6)) for images in (probes, left))
        words = f"probes in {stage}, all in {whole}" if probes else f"all trained in {whole}"
        return f"{rate:,.0f} images/s, {words}"


_INDENT = 11  # what is said stands under what a stage says
_WIDE = 110  # columns from which the live line has room for a bar


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
        self._line(Text(f"{name:>{_INDENT - 2}}", style="bold cyan"), Text(what))

    def say(self, text: str, style: str = "") -> None:
        self._line(Text(), Text(text, style=style))

    def _line(self, label: Text, text: Text) -> None:
        """On a terminal broken between words, under one another; a log keeps its lines whole."""
        if self.console.is_terminal:
            line = Table.grid(padding=(0, 2, 0, 0))
            line.add_column(width=_INDENT - 2)
            line.add_column()
            line.add_row(label, text)
            self.console.print(line)
        else:
            label.pad_right(_INDENT - len(label))
            self.console.print(label + text, soft_wrap=True)

    @contextmanager
    def work(self, kind: Kind, description: str, total: float) -> Iterator[Advance]:
        start = time.monotonic()
        if not self.console.is_terminal:
            yield self._plain(description, total)
            self.say(f"{description}: {time.monotonic() - start:.0f} s")
            return
        columns: list[ProgressColumn] = [
            SpinnerColumn(finished_text=" "),
            *([BarColumn(bar_width=24)] if self.console.width >= _WIDE else []),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("left"),
            # What there is no room for is cut off.
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        ]
        with Progress(*columns, console=self.console, transient=True, expand=True) as progress:
            task = progress.add_task(description, total=total)

            def advance(done: float, note: str = "") -> None:
                progress.update(task, completed=done, description=f"{description}: {note}" if note else description)

            yield advance
        self.say(f"{description}: {time.monotonic() - start:.0f} s")

    def _plain(self, description: str, total: float) -> Advance:
        """A line now and then, for logs."""
        told = time.monotonic()

        def advance(done: float, note: str = "") -> None:
            nonlocal told
            if time.monotonic() - told >= _LINE_EVERY_S:
                told = time.monotonic()
                self.say(f"{description}: {100 * done / total:.0f} %{note and ', ' + note}")

        return advance


def waiting_gate(display: Display, seconds: float = 300.0) -> Gate:
    """Leaves a hot device so long to cool before it is measured, and says so twice a minute."""

    def waiting(waited: float, why: str) -> None:
        if waited % 30 < 5:
            display.say(f"{why}: waiting for it to cool ({waited:.0f} of {seconds:.0f} s)", style="yellow")

    return Gate(seconds, waiting)
