"""Training curves: one journal entry of kind ``epoch`` per finished epoch, with key ``NAME#EPOCH`` (from 1)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from mobileprune.report.evidence import Curve
from mobileprune.run import Journal
from mobileprune.scale import Scale
from mobileprune.stages.records import scale_key, scale_of
from mobileprune.training.finetune import Progress


class EpochRecord:
    """Records the means of each epoch's batch losses and accuracies, and its pace, as ``fit`` tells its progress.

    An epoch that is trained again after a kill replaces its entry. name: of the training, "base" or "probe 3 at ...".
    """

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal, self._name = journal, name
        self._epoch, self._batches, self._start = -1, list[Progress](), 0.0

    def __call__(self, p: Progress) -> None:
        if p.epoch != self._epoch:
            self._write()
            self._epoch, self._batches, self._start = p.epoch, [], time.monotonic()
        self._batches.append(p)
        if p.seen >= p.total:
            self._write()

    def _write(self) -> None:
        if self._batches:
            loss = fmean(p.loss for p in self._batches)
            known = [p.accuracy for p in self._batches if p.accuracy is not None]
            accuracy = fmean(known) if known else None
            images = self._batches[-1].seen - self._batches[0].seen  # from the end of the first batch on
            pace = round(images / (time.monotonic() - self._start), 1) if images else None
            key = f"{self._name}#{self._epoch + 1}"
            self._journal.append("epoch", key, loss=loss, accuracy=accuracy, images_per_s=pace)


def read_curves(journal: Journal, chosen: Scale) -> list[Curve]:
    """The trainings of the base, of the probes and, called "result", of the network at the chosen scale."""
    trainings: dict[str, list[Mapping[str, Any]]] = {}
    for entry in journal.all("epoch"):
        name, _, epoch = entry["key"].rpartition("#")
        trainings.setdefault(name, []).append({**entry, "epoch": int(epoch)})
    own = f"finetune {scale_key(chosen)}"
    ends = _held_out(journal, own, chosen)
    curves = []
    for name, entries in trainings.items():
        if name.startswith("finetune") and name != own:
            continue  # of another budget
        ordered = sorted(entries, key=lambda e: e["epoch"])
        epochs, losses = [e["epoch"] for e in ordered], [float(e["loss"]) for e in ordered]
        accuracies = [e.get("accuracy") for e in ordered]
        curves.append(Curve("result" if name == own else name, epochs, losses, accuracies, ends.get(name)))
    return curves


def _held_out(journal: Journal, own: str, chosen: Scale) -> dict[str, float]:
    """By the training's name: accuracy on the validation split at its end."""
    scored = {"base": journal.get("base", "score"), own: journal.get("finetuned", scale_key(chosen))}
    scored |= {f"probe at {scale_of(e)}": e for e in journal.all("probe")}
    return {name: float(e["validation"]["accuracy"]) for name, e in scored.items() if e is not None}
