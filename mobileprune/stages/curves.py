"""Training curves: one journal entry of kind ``epoch`` per finished epoch, with key ``NAME#EPOCH`` (from 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobileprune.report.evidence import Curve
from mobileprune.run import Journal
from mobileprune.scale import Scale
from mobileprune.stages.records import scale_key
from mobileprune.training.finetune import Progress


class EpochLosses:
    """Records the mean of each epoch's batch losses as ``fit`` tells its progress.

    An epoch that is trained again after a kill replaces its entry. name: of the training, "base" or "probe 3 at ...".
    """

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal, self._name = journal, name
        self._epoch, self._losses = -1, list[float]()

    def __call__(self, p: Progress) -> None:
        if p.epoch != self._epoch:
            self._write()
            self._epoch, self._losses = p.epoch, []
        self._losses.append(p.loss)
        if p.seen >= p.total:
            self._write()

    def _write(self) -> None:
        if self._losses:
            loss = sum(self._losses) / len(self._losses)
            self._journal.append("epoch", f"{self._name}#{self._epoch + 1}", loss=loss)


def read_curves(journal: Journal, chosen: Scale) -> list[Curve]:
    """The trainings of the base, of the probes and, called "result", of the network at the chosen scale."""
    trainings: dict[str, list[Mapping[str, Any]]] = {}
    for entry in journal.all("epoch"):
        name, _, epoch = entry["key"].rpartition("#")
        trainings.setdefault(name, []).append({**entry, "epoch": int(epoch)})
    own = f"finetune {scale_key(chosen)}"
    curves = []
    for name, entries in trainings.items():
        if name.startswith("finetune") and name != own:
            continue  # of another budget
        ordered = sorted(entries, key=lambda e: e["epoch"])
        epochs, losses = [e["epoch"] for e in ordered], [float(e["loss"]) for e in ordered]
        curves.append(Curve("result" if name == own else name, epochs, losses, [e.get("accuracy") for e in ordered]))
    return curves
