"""How much training a run still has before it, by its question and its journal alone."""

from __future__ import annotations

from typing import Any

from mobileprune.run import Run
from mobileprune.scale import BASE
from mobileprune.stages.records import probe_limit, read_costs, scale_of
from mobileprune.words import duration

FULL_EPOCHS = 20  # of a base from scratch, by default
_OUTCOMES = ("base", "probe", "finetuned")  # kinds of entries that end a training


def images_left(run: Run) -> int:
    """Images that the whole journey still has to train on, over all epochs; trainings under way count as a whole.

    0 where nothing is known of the data yet.
    """
    training = run.asked["training"]
    epochs = int(training["result_epochs"])
    if run.journal.get("base", "score") is None:
        epochs += int(training["base_epochs"])
    return epochs * _images(run, "base") + probe_images_left(run)


def probe_images_left(run: Run) -> int:
    """Those of them that probes train on, if as many are made as may be."""
    probes = max(probe_limit(run) - len(run.journal.all("probe")), 0)
    return probes * int(run.asked["training"]["probe_epochs"]) * _images(run, "probe")


def probe_cost(run: Run) -> float:
    """What the probes so far took, as a share of training the base for 20 epochs on all images.

    Counted in MACs: a training step is three forward passes, and one of the base where that teaches.
    """
    training, costs = run.asked["training"], read_costs(run)
    taught = 1.0 if training["distillation"] else 0.0
    passes = sum(3 * costs[scale_of(e)]["macs"] / costs[BASE]["macs"] + taught for e in run.journal.all("probe"))
    part = _images(run, "probe") / max(_images(run, "base"), 1) if training.get("probe_images") else 1.0
    return float(passes * part * int(training["probe_epochs"]) / (3 * FULL_EPOCHS))


def _images(run: Run, what: str) -> int:
    """Training images in an epoch."""
    found = run.journal.get("data", "fingerprint")
    every = int(found.get("train", 0)) if found else 0
    few = int(run.asked["training"].get("probe_images", 0)) if what == "probe" else 0
    return min(few or every, every)


def training_under_way(run: Run) -> dict[str, Any] | None:
    """The training that has finished an epoch and not yet its last, as its journal tells; None where there is none.

    name, epoch: the last that is finished. images_per_s: in that epoch. left: of all training of the run, in words.
    """
    last = next((e for e in reversed(run.journal.entries) if e["kind"] in (*_OUTCOMES, "epoch")), None)
    if last is None or last["kind"] != "epoch" or not last.get("images_per_s"):
        return None
    name, _, epoch = last["key"].rpartition("#")
    seen = int(epoch) * _images(run, "probe" if name.startswith("probe") else "base")
    seconds = (images_left(run) - seen) / last["images_per_s"]
    return {"name": name, "epoch": int(epoch), "images_per_s": last["images_per_s"], "left": duration(seconds)}
