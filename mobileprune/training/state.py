"""What a training in progress consists of: kept in memory for a step back, and in a file for a restart."""

from __future__ import annotations

import copy
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mobileprune.run import writing


@dataclass
class Numbers:
    """The part of the state that is no tensor. batch: images that fit into memory at once."""

    epochs: int = 0
    factor: float = 1.0
    batch: int = 0
    lowest_loss: float = float("inf")


class State:
    """Everything that changes while a network is trained: ``parts`` have state dicts, ``numbers`` are plain.

    writes: whether this process writes the file: one does of several that train together.
    """

    def __init__(self, path: Path | None, numbers: Numbers, *parts: Any, writes: bool = True) -> None:
        self.path, self.numbers, self.parts, self.writes = path, numbers, parts, writes
        self._good: dict[str, Any] = {}

    def restore(self) -> None:
        """Take the state from the file, if there is one; else it stays as it is."""
        if self.path is not None and self.path.exists():
            self._take(torch.load(self.path, weights_only=True, map_location="cpu"))
        self._good = copy.deepcopy(self._whole())

    def save(self) -> None:
        """Keep the state as the last good one."""
        self._good = copy.deepcopy(self._whole())
        if self.path is None or not self.writes:
            return
        buffer = io.BytesIO()  # torch's own writer turns a full disk into a crash of its own
        torch.save(self._good, buffer)
        with writing(self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def step_back(self) -> None:
        """Return to the last good state."""
        self._take(copy.deepcopy(self._good))

    def _whole(self) -> dict[str, Any]:
        return {"numbers": asdict(self.numbers), "parts": [part.state_dict() for part in self.parts]}

    def _take(self, saved: dict[str, Any]) -> None:
        for part, state in zip(self.parts, saved["parts"], strict=True):
            part.load_state_dict(state)
        for name, value in saved["numbers"].items():
            setattr(self.numbers, name, value)
