"""Reading tables of scales: accuracy or latency per depth, width and resolution, in the units people write them in."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobileprune.errors import UsageError
from mobileprune.scale import Scale
from mobileprune.search.samples import AXES

_PIXELS = 16.0  # a resolution above this is a number of pixels
_MOST_ROWS = 100_000


@dataclass(frozen=True)
class Row:
    """One line of a table: ``line`` in the file, the three axes as written (1 where the column is missing)."""

    line: int
    axes: tuple[float, float, float]
    value: float
    std: float | None
    device: str


@dataclass(frozen=True)
class Table:
    """A table as written; ``column`` is the name of its values."""

    path: Path
    column: str
    rows: tuple[Row, ...]

    def largest(self, axis: int) -> float:
        return max(row.axes[axis] for row in self.rows)

    def error(self, row: Row, reason: str) -> UsageError:
        return UsageError(f"{self.path}, row {row.line}: {reason}")


def read_table(path: Path, column: str) -> Table:
    """Read a CSV with columns depth, width, resolution (each optional), ``column``, and optionally std and device.

    Raises UsageError that names the file, the row (its line) and the reason for anything that is not a number in range.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = [
                (i, line) for i, line in enumerate(stream, 1) if line.strip() and not line.lstrip().startswith("#")
            ]
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the path of a CSV file with a column {column!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a CSV file: {error}") from error
    if not lines:
        raise UsageError(f"{path} is empty: its first row must name the columns, one of them {column!r}")
    if len(lines) > _MOST_ROWS:
        raise UsageError(f"{path} has {len(lines)} rows, more than {_MOST_ROWS}: give the samples of one network")
    parsed = list(csv.reader([line for _, line in lines], skipinitialspace=True))
    header = [cell.strip().lower() for cell in parsed[0]]
    if column not in header:
        near = f" (it has {', '.join(filter(None, header))})"
        raise UsageError(f"{path} has no column {column!r}{near}: name the columns in its first row")
    doubled = next((h for h in header if h and header.count(h) > 1), None)
    if doubled:
        raise UsageError(f"{path} has two columns named {doubled!r}: keep one")
    rows = []
    for (line, _), cells in zip(lines[1:], parsed[1:], strict=False):
        if len(cells) != len(header):
            raise UsageError(
                f"{path}, row {line}: {len(cells)} cells under {len(header)} columns; write one per column"
            )
        rows.append(_row(path, line, dict(zip(header, (c.strip() for c in cells), strict=True)), column))
    if not rows:
        raise UsageError(f"{path} has a header but no rows: add samples")
    return Table(path, column, tuple(rows))


def _row(path: Path, line: int, cells: dict[str, str], column: str) -> Row:
    def number(name: str, *, least: float, strict: bool) -> float:
        text = cells[name]
        try:
            value = float(text)
        except ValueError:
            reason = "is empty" if not text else f"{text!r} is not a number"
            raise UsageError(f"{path}, row {line}: {name} {reason}; write a plain number") from None
        if not math.isfinite(value) or value < least or (strict and value == least):
            must = "above" if strict else "at least"
            raise UsageError(f"{path}, row {line}: {name} is {text}; it must be a finite number {must} {least:g}")
        return value

    axes = [number(axis, least=0.0, strict=True) if axis in cells else 1.0 for axis in AXES]
    value = number(column, least=0.0, strict=column != "accuracy")
    std = number("std", least=0.0, strict=False) if cells.get("std") else None
    return Row(line, (axes[0], axes[1], axes[2]), value, std, cells.get("device", ""))


@dataclass(frozen=True)
class Units:
    """What one stands for per axis in a table (1 where it holds shares) and the accuracy of a perfect network."""

    full: tuple[float, float, float]
    perfect: float = 1.0

    def scale(self, row: Row) -> Scale:
        shares = [min(a / f, 1.0) for a, f in zip(row.axes, self.full, strict=True)]
        return Scale(shares[0], shares[1], shares[2])

    def written(self, scale: Scale) -> dict[str, float]:
        """The scale as the table would write it."""
        shares = zip(AXES, scale.as_tuple(), self.full, strict=True)
        return {name: round(share * full, 9) for name, share, full in shares}


def units_of(tables: Sequence[Table]) -> list[Units]:
    """The units of tables that belong together.

    Values above 1 are multiples or pixels; they are divided by the largest among the tables that write the axis so.
    Raises UsageError where one table mixes pixels and shares, or percent and fractions.
    """
    out = []
    common = [max((t.largest(a) for t in tables if t.largest(a) > 1.0), default=1.0) for a in range(3)]
    for table in tables:
        for row in table.rows:
            if table.largest(2) > _PIXELS and row.axes[2] <= 1.0:
                reason = f"resolution {row.axes[2]:g} is a share but other rows have pixels; use one of them throughout"
                raise table.error(row, reason)
        full = [common[a] if table.largest(a) > 1.0 else 1.0 for a in range(3)]
        out.append(Units((full[0], full[1], full[2]), _perfect(table)))
    return out


def _perfect(table: Table) -> float:
    """100 where accuracy is in percent, else 1."""
    if table.column != "accuracy" or max(row.value for row in table.rows) <= 1.0:
        return 1.0
    for row in table.rows:
        if row.value > 100.0:
            raise table.error(row, f"accuracy {row.value:g} is above 100 percent; correct it")
        if 0.0 < row.value <= 1.0:
            reason = f"accuracy {row.value:g} is a fraction but other rows are in percent; use one of them throughout"
            raise table.error(row, reason)
    return 100.0
