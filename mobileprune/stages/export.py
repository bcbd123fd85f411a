"""Export: base and result as files in every format that is installed, each verified in its own runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import exporters
from exporters import manifest, verify
from mobileprune.data import RESIZE_RULE
from mobileprune.run import Entry
from mobileprune.stages.context import Context
from mobileprune.stages.prune import Network, restore
from mobileprune.stages.records import require, scale_key
from mobileprune.stages.solve import chosen_scale

_PARITY_IMAGES = 32


def export(ctx: Context) -> None:
    """Write and verify ``base/artifacts/`` and ``results/SCALE/artifacts/``, each with a manifest.json."""
    key = scale_key(chosen_scale(ctx.run))
    require(ctx.run, "finetuned", key, "finetune")
    owners = {"base": ctx.folder("base"), key: ctx.folder("results", key)}
    installed = [name for name in exporters.formats() if exporters.available(name) is None]
    waiting = [
        (owner, name)
        for owner in owners
        for name in installed
        if not ctx.run.journal.get("artifact", f"{owner}.{name}")
    ]
    if not waiting:
        return
    ctx.display.stage("export", "base and result as " + " and ".join(installed))
    for name in set(exporters.formats()) - set(installed):
        ctx.run.journal.append("note", f"{name} not written: {exporters.available(name)}")
        ctx.display.say(f"{name} not written: {exporters.available(name)}", style="yellow")
    for owner, name in waiting:
        folder = owners[owner]
        network = Network(ctx.base, None, ctx.data.size) if owner == "base" else restore(ctx, folder, "weights")
        found = _written(ctx, network, folder / "artifacts" / f"model.{name}", name, owner)
        ctx.run.journal.append("artifact", f"{owner}.{name}", **found)
    write_manifests(ctx)


def _written(ctx: Context, network: Network, path: Path, name: str, owner: str) -> dict[str, Any]:
    """Export one file, compare it with the torch module, and run it over the validation split."""
    view = ctx.view_at(network.size)
    spec = exporters.InputSpec(3, network.size, network.size, view.mean, view.std)
    split = ctx.data.validation
    path.parent.mkdir(parents=True, exist_ok=True)
    with ctx.display.work("exporting", f"{'base' if owner == 'base' else 'result'} as {name}", 2) as advance:
        artifact = exporters.export(network.model, spec, path, format=name)
        advance(1, "its accuracy in its runtime")
        images = view(split.images).contiguous().numpy()
        parity = verify.check(artifact, network.model, images[:_PARITY_IMAGES])
        accuracy = verify.accuracy(path, images, split.labels.numpy())
    return {
        "path": str(path.relative_to(ctx.run.path)),
        "artifact": artifact.to_dict(),
        "parity": parity.to_dict(),
        "accuracy": accuracy,
        "images": len(split),
    }


def write_manifests(ctx: Context) -> None:
    """Describe the exported files for apps, with their latencies where they have been measured."""
    key = scale_key(chosen_scale(ctx.run))
    measured = ctx.run.journal.get("measured", key)
    for owner, name in (("base", "base"), (key, "result")):
        entries = [e for e in ctx.run.journal.all("artifact") if e["key"].rpartition(".")[0] == owner]
        folder = (ctx.run.path / entries[0]["path"]).parent
        described = [_entry(ctx, e, measured, f"{name}.{e['artifact']['format']}") for e in entries]
        extra = {"name": f"{ctx.source.name} {'base' if owner == 'base' else owner}", "seed": ctx.seed}
        manifest.write_manifest(folder, described, labels=ctx.data.classes, resize=RESIZE_RULE, extra=extra)


def _entry(ctx: Context, entry: Entry, measured: Entry | None, name: str) -> manifest.Entry:
    artifact = replace(exporters.Artifact.from_dict(entry["artifact"]), path=ctx.run.path / entry["path"])
    accuracy = manifest.Accuracy(entry["accuracy"], entry["images"], "validation")
    latency = None
    if measured is not None and (found := measured["report"]["measurements"].get(name)):
        interval = (found["latency_ms"], found["low_ms"], found["high_ms"])
        latency = manifest.Latency(*interval, ctx.profile.title, found["origin"])
    return manifest.Entry(artifact, verify.Parity.from_dict(entry["parity"]), accuracy, latency)
