"""Bench: base and result, every exported file of both, timed on the device in the same rounds."""

from __future__ import annotations

from pathlib import Path

from mobileprune.scale import BASE
from mobileprune.stages.context import Context
from mobileprune.stages.export import write_manifests
from mobileprune.stages.profile import measure, record
from mobileprune.stages.records import require, scale_key
from mobileprune.stages.solve import chosen_scale


def bench(ctx: Context) -> None:
    """Measure the exported files of the chosen scale beside the base's; the journal holds every sample's statistics."""
    scale = chosen_scale(ctx.run)
    key = scale_key(scale)
    if ctx.run.journal.get("measured", key) is not None:
        return
    require(ctx.run, "artifact", f"{key}.{ctx.format}", "export")
    files: dict[str, Path] = {}
    for entry in ctx.run.journal.all("artifact"):
        owner, _, name = entry["key"].rpartition(".")
        told = ctx.profile.kind != "predicted" or name == ctx.format  # a profile speaks of one runtime
        if owner in ("base", key) and told:
            files[f"{'base' if owner == 'base' else 'result'}.{name}"] = ctx.run.path / entry["path"]
    ctx.display.stage("bench", f"{len(files)} files on {ctx.profile.title}, in the same rounds")
    report = measure(ctx, files)
    own = ctx.format
    sample = {scale_key(BASE): report.measurements[f"base.{own}"], key: report.measurements[f"result.{own}"]}
    record(ctx, sample, {key: (scale, files[f"result.{own}"].stat().st_size)})
    ctx.run.journal.append("measured", key, scale=scale.as_tuple(), report=report.to_dict())
    write_manifests(ctx)
