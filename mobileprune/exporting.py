"""``mobileprune export``: verified files of a run's result or of any model, beside what its journey writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import nn

import exporters
from exporters import manifest
from mobileprune.budget import shown
from mobileprune.data import load_data
from mobileprune.errors import UsageError
from mobileprune.models import check_outputs, find_model, load_checkpoint
from mobileprune.progress import Display
from mobileprune.run import Run
from mobileprune.stages.context import Context
from mobileprune.stages.files import FORMATS, Images, Job, Written, entry_of, refused, unbundled
from mobileprune.stages.prune import restore
from mobileprune.stages.records import require, scale_key
from mobileprune.stages.solve import chosen_scale
from mobileprune.training.batches import View
from mobileprune.training.evaluate import evaluate


def export_run(
    run: str | Path, output: Path | None, *, formats: Sequence[str], precision: str | None, display: Display, **how: Any
) -> tuple[Path, list[Written]]:
    """Files of a run's result, calibrated on its training images and verified on its validation split.

    precision: the run's unless given. how: the other options of ``mobileprune export``; those that describe a model
    must be left out, and a seed that is None is the run's. Raises UsageError, MobilepruneError and ExportError.
    """
    for name in ("data", "checkpoint", "arguments", "image_size"):
        if how.get(name):
            flag = {"arguments": "model-arg"}.get(name, name).replace("_", "-")
            raise UsageError(f"{run} is a run, which knows its own model and data: leave --{flag} out")
    ctx = Context(Run.open(Path(run)), display)
    key = scale_key(chosen_scale(ctx.run))
    require(ctx.run, "finetuned", key, "finetune")
    network = restore(ctx, ctx.run.path / "results" / key, "weights")
    seed = ctx.seed if how["seed"] is None else how["seed"]
    images = Images(ctx.view_at(network.size), ctx.data.train, ctx.data.validation, seed)
    precision = precision or ctx.precision
    folder = output or ctx.run.path / "exported"
    label = f"{ctx.source.name} {key}"
    return folder, _files(network.model, images, folder, label, ctx.classes, formats, precision, display, how)


def export_model(
    spec: str, output: Path | None, *, formats: Sequence[str], precision: str | None, display: Display, **how: Any
) -> tuple[Path, list[Written]]:
    """Files of any model by name, whether mobileprune pruned it or not; see ``export_run``.

    precision: float32 unless given. A seed that is None is 0.
    """
    if output is None:
        raise UsageError("say where the files shall go: --output FOLDER")
    source = find_model(spec, how["arguments"])
    own, seed = source.library == "mobileprune", how["seed"] or 0
    data = load_data(how["data"], how["image_size"], seed) if how["data"] else None
    size = data.size if data else how["image_size"] or (32 if own else 224)
    classes = data.classes if data else tuple(f"class {i}" for i in range(10 if own else 1000))
    model = source.build(len(classes))
    if how["checkpoint"]:
        load_checkpoint(model, how["checkpoint"])
    if not how["checkpoint"] and not source.has_weights:
        display.say(f"{spec} comes without trained weights: name them with --checkpoint", style="yellow")
    normalisation = source.normalisation(checkpoint=bool(how["checkpoint"])) or (data.statistics() if data else None)
    if how["checkpoint"] and (note := source.assumed_normalisation()):
        display.say(note, style="yellow")
    if normalisation is None:
        normalisation = ((0.0,) * 3, (1.0,) * 3)
        display.say("its normalisation is not known: the files take pixels in [0, 1]", style="yellow")
    view = View(size, *normalisation)
    check_outputs(model, torch.zeros(1, 3, size, size), len(classes), spec)
    images = Images(view, data.train, data.validation, seed) if data else Images(view)
    precision = precision or "float32"
    return output, _files(model, images, output, source.name, classes, formats, precision, display, how)


def _files(
    model: nn.Module,
    images: Images,
    folder: Path,
    label: str,
    classes: Sequence[str],
    formats: Sequence[str],
    precision: str,
    display: Display,
    how: Mapping[str, Any],
) -> list[Written]:
    """Every format asked for, a manifest and, of a TFLite file, the Android bundle."""
    options = {"dynamic_batch": how["dynamic_batch"], "opset": how["opset"]}
    chosen = tuple(dict.fromkeys(formats)) or tuple(n for n in FORMATS if precision in exporters.exporter(n).precisions)
    for name in chosen:  # before anything is written
        if reason := exporters.available(name) or refused(name, precision, options):
            raise UsageError(reason)
        if caution := exporters.exporter(name).cautions.get(precision):
            display.say(f"{name} in {precision}: {caution}", style="yellow")
    reference = None
    if images.validation is not None:
        reference = evaluate(model, images.validation, images.view).accuracy
    job = Job(model, images, precision, reference, how["allowed_drop"] / 100, options)
    written = []
    for name in chosen:
        path = folder / f"model{exporters.suffix(name)}"
        with display.work("exporting", f"{name} in {precision}, and its verification", 1):
            written.append(job.write(path, name))
    manifest.write_manifest(
        folder, [entry_of(one) for one in written], labels=classes, resize=images.resize, extra={"name": label}
    )
    for one in written:
        if one.artifact.format != "tflite":
            continue
        if reason := unbundled(precision):
            display.say(reason, style="yellow")
        else:
            with display.work("exporting", "the Android bundle", 1):
                job.write_android(one, folder / "android", classes, label)
    return written


def files_table(written: Sequence[Written]) -> Table:
    """What was written and verified, for people."""
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for heading in ("file", "size", "accuracy", "difference to torch", "taken by XNNPACK", "memory"):
        table.add_column(heading, overflow="fold", justify="left" if heading == "file" else "right")
    for one in written:
        found = one.verification
        share = found.acceleration.share
        memory = found.peak_memory_bytes
        table.add_row(
            Text(f"{one.artifact.path.name}\n")
            + Text(f"{one.artifact.precision}, run by {found.runtime}", style="dim"),
            shown("size", found.size_bytes),
            "no data" if found.accuracy is None else f"{100 * found.accuracy:.1f} %",
            f"{found.parity.max_abs:.1e} of {found.parity.scale:.3g}",
            "not told" if share is None else f"{100 * share:.0f} % of the work",
            "not told" if memory is None else f"{memory / 1e6:.0f} MB",
        )
    return table
