"""What a command on a device came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completed:
    """A program that ended on a device, by itself: its exit status and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout without the line ends around it."""
        return self.stdout.decode(errors="replace").replace("\r\n", "\n").strip()

    @property
    def words(self) -> str:
        """The last line it complained with, else the last it wrote."""
        lines = (self.stderr.decode(errors="replace").strip() or self.text).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.status}"
