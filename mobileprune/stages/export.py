"""Export: base and result as files in every format of the run, each verified in its own runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import exporters
from exporters import manifest, verify
from exporters.artifact import sha256_of
from exporters.manifest import Entry as FileEntry
from mobileprune.run import Entry
from mobileprune.stages.context import Context
from mobileprune.stages.files import FORMATS, Images, Job, Seen, Written, refused, unbundled
from mobileprune.stages.prune import Network, restore
from mobileprune.stages.records import require, scale_key
from mobileprune.stages.solve import chosen_scale


def export(ctx: Context) -> None:
    """Write and verify ``base/artifacts/`` and ``results/SCALE/artifacts/``, each with a manifest and Android bundle.

    Raises ExportError where a file fails a gate; it is then in ``rejected/`` beside, with the reason.
    """
    key = scale_key(chosen_scale(ctx.run))
    require(ctx.run, "finetuned", key, "finetune")
    owners = {"base": ctx.folder("base"), key: ctx.folder("results", key)}
    names = _formats(ctx)
    waiting = [(owner, name) for owner in owners for name in names if not _whole(ctx, owner, name)]
    described = all((folder / "artifacts" / manifest.NAME).is_file() for folder in owners.values())
    if not waiting and described:
        return
    ctx.display.stage("export", f"base and result as {' and '.join(names)} in {ctx.precision}")
    for owner, name in waiting:
        folder = owners[owner]
        network = Network(ctx.base, None, ctx.data.size) if owner == "base" else restore(ctx, folder, "weights")
        found = _written(ctx, network, folder / "artifacts", name, owner)
        before = ctx.run.journal.get("artifact", f"{owner}.{name}")
        if before and before["artifact"]["sha256"] != found["artifact"]["sha256"]:
            ctx.display.say(_changed(found, before), style="yellow")
        ctx.run.journal.append("artifact", f"{owner}.{name}", **found)
    write_manifests(ctx)


def _whole(ctx: Context, owner: str, name: str) -> bool:
    """Whether the file, and what lies beside it, is there as it was written."""
    entry = ctx.run.journal.get("artifact", f"{owner}.{name}")
    if entry is None:
        return False
    path = ctx.run.path / entry["path"]
    bundled = name != "tflite" or unbundled(ctx.precision) or (path.parent / "android" / "model.json").is_file()
    return path.is_file() and sha256_of(path) == entry["artifact"]["sha256"] and bool(bundled)


def _changed(found: Entry, before: Entry) -> str:
    """Why a file that was written again has other bytes than the first one, which was measured."""
    now, then = found["artifact"]["versions"], before["artifact"]["versions"]
    other = [f"{name} {now[name]} instead of {then.get(name)}" for name in now if then.get(name) != now[name]]
    why = f"written with {', '.join(other)}" if other else "written on another machine or from other weights"
    return f"{found['path']} has other bytes than the file that was measured: {why}"


def _formats(ctx: Context) -> list[str]:
    """The formats that can be written here in the run's precision; the others are noted with the reason."""
    chosen = []
    for name in FORMATS:
        if reason := exporters.available(name) or refused(name, ctx.precision):
            _note(ctx, f"{name} not written: {reason}")
        else:
            chosen.append(name)
    return chosen


def _note(ctx: Context, text: str) -> None:
    """Say what is left out, once in a run."""
    if ctx.run.journal.get("note", text) is None:
        ctx.run.journal.append("note", text)
        ctx.display.say(text, style="yellow")


def _written(ctx: Context, network: Network, folder: Path, name: str, owner: str) -> dict[str, Any]:
    """Export one file, compare it with the torch module, and run it over the validation split."""
    which = "base" if owner == "base" else "result"
    score = ctx.run.journal.get("base", "score") if owner == "base" else ctx.run.journal.get("finetuned", owner)
    assert score is not None  # export comes after both
    images = Images(ctx.view_at(network.size), ctx.data.train, ctx.data.validation, ctx.seed)
    job = Job(network.model, images, ctx.precision, score["validation"]["accuracy"])
    with ctx.display.work("exporting", f"{which} as {name}", 3) as advance:
        written = job.write(folder / f"model{exporters.suffix(name)}", name)
        advance(2, "what else it needs")
        if name == "tflite" and (reason := unbundled(ctx.precision)):
            _note(ctx, reason)
        elif name == "tflite":
            label = f"{ctx.source.name} {'base' if owner == 'base' else owner}"
            job.write_android(written, folder / "android", ctx.classes, label)
        tested = _test_accuracy(ctx, network, written)
    ctx.display.say(f"{which} as {name}: {written.sentence}")
    return {
        "path": str(written.artifact.path.relative_to(ctx.run.path)),
        **written.to_dict(),
        "parity": written.verification.parity.to_dict(),
        "accuracy": written.verification.accuracy,
        "test_accuracy": tested,
        "images": written.verification.samples,
        "resize": images.resize,
    }


def _test_accuracy(ctx: Context, network: Network, written: Written) -> float | None:
    """Of a file that computes something else than the module: its own accuracy on the test split."""
    if ctx.data.test is None or written.artifact.precision == "float32":
        return None
    images = Seen(ctx.view_at(network.size), ctx.data.test.images)
    return verify.accuracy(written.artifact.path, images, ctx.data.test.labels.numpy())


def write_manifests(ctx: Context) -> None:
    """Describe the exported files for apps, with their latencies where they have been measured."""
    key = scale_key(chosen_scale(ctx.run))
    measured = ctx.run.journal.get("measured", key)
    for owner, name in (("base", "base"), (key, "result")):
        entries = [e for e in ctx.run.journal.all("artifact") if e["key"].rpartition(".")[0] == owner]
        folder = (ctx.run.path / entries[0]["path"]).parent
        described = [_entry(ctx, e, measured, f"{name}.{e['artifact']['format']}") for e in entries]
        extra = {"name": f"{ctx.source.name} {'base' if owner == 'base' else owner}", "seed": ctx.seed}
        manifest.write_manifest(folder, described, labels=ctx.classes, resize=entries[0]["resize"], extra=extra)


def _entry(ctx: Context, entry: Entry, measured: Entry | None, name: str) -> FileEntry:
    artifact = replace(exporters.Artifact.from_dict(entry["artifact"]), path=ctx.run.path / entry["path"])
    latency = None
    if measured is not None and (found := measured["report"]["measurements"].get(name)):
        interval = (found["latency_ms"], found["low_ms"], found["high_ms"])
        latency = manifest.Latency(*interval, ctx.profile.title, found["origin"])
    verified = verify.Verification.from_dict(entry["verification"])
    accuracy = manifest.Accuracy(entry["accuracy"], entry["images"], "validation")
    return FileEntry(artifact, verified.parity, accuracy, latency, verified, entry["quantisation"])
