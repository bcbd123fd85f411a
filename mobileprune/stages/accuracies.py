"""Every accuracy that a run has found, with how long its network was trained; read from the journal alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobileprune.run import Entry, Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.probes import parent_of, parents_of
from mobileprune.search.samples import Array
from mobileprune.stages.records import scale_key, scale_of


@dataclass(frozen=True)
class Sample:
    """Validation accuracy (a fraction) with its binomial error, and the trainings since the base, in those of a probe.

    epochs: how many times as many images the network saw as one probe's training has; infinite for the base.
    """

    scale: Scale
    accuracy: float
    std: float
    epochs: float


def accuracy_samples(run: Run, without: Scale | None = None) -> list[Sample]:
    """The base, the probes by scale, and the results but for the one at ``without``."""
    base = run.journal.get("base", "score")
    found = [] if base is None else [_sample(BASE, base, math.inf)]
    probes = {scale_of(e): e for e in sorted(run.journal.all("probe"), key=lambda e: str(e["key"]))}  # in any order
    trained = _trainings(run)
    found += [_sample(scale, entry, trained[scale]) for scale, entry in probes.items() if scale != BASE]
    for entry in run.journal.all("finetuned"):
        scale = scale_of(entry)
        if scale != without and (cut := run.journal.get("pruned", scale_key(scale))):
            found.append(_sample(scale, entry, trained.get(_parent(cut), 0.0) + _result_trainings(run)))
    return found


def probed_scales(run: Run) -> list[Scale]:
    """The base, and the scales that have been probed, in the order in which they were."""
    return [BASE, *(scale_of(e) for e in run.journal.all("probe") if scale_of(e) != BASE)]


def start_of(run: Run, scale: Scale) -> Scale:
    """The probe whose weights a result at ``scale`` begins with: its own, else the nearest it can be cut from."""
    probes = probed_scales(run)
    return scale if scale in probes else parent_of(scale, probes)


def probe_epochs(run: Run, parent: Scale) -> float:
    """How long a probe that is cut from ``parent`` has been trained in the end."""
    return _trainings(run).get(parent, 0.0) + 1.0


def result_epochs(run: Run, scales: Sequence[Scale]) -> Array:
    """How long a result at each of ``scales`` (n,) has been trained in the end, in trainings of a probe."""
    probes, trained = probed_scales(run), _trainings(run)
    starts = (s if s in probes else parent for s, parent in zip(scales, parents_of(scales, probes), strict=True))
    return np.array([trained.get(start, 0.0) for start in starts]) + _result_trainings(run)


def _sample(scale: Scale, entry: Entry, epochs: float) -> Sample:
    return Sample(scale, entry["validation"]["accuracy"], entry["validation"]["std"], epochs)


def _parent(entry: Entry) -> Scale:
    return Scale(*entry["parent"]) if "parent" in entry else BASE


def _trainings(run: Run) -> dict[Scale, float]:
    """How many probes' trainings lie between the base and each probe, its own included."""
    parents = {scale_of(e): _parent(e) for e in run.journal.all("probe")}

    def count(scale: Scale) -> float:
        return 1.0 + count(parents[scale]) if scale in parents and scale != BASE else 0.0

    return {scale: count(scale) for scale in parents}


def _result_trainings(run: Run) -> float:
    training, data = run.asked["training"], run.journal.get("data", "fingerprint")
    images = int(data["train"]) if data else 0
    few = int(training.get("probe_images", 0))
    share = few / images if 0 < few < images else 1.0
    return float(training["result_epochs"] / (training["probe_epochs"] * share))
