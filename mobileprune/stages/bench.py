"""Bench: base and result, every exported file of both, timed on the device in the same rounds."""

from __future__ import annotations

from pathlib import Path

from device_profiles.benchmark import Report
from device_profiles.devices import open_device
from mobileprune.run import Run
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
    files = _files(ctx, key)
    ctx.display.stage("bench", f"{len(files)} files on {ctx.profile.title}, in the same rounds")
    own = ctx.format
    report = measure(ctx, files, f"base.{own}")
    sample = {scale_key(BASE): report.measurements[f"base.{own}"], key: report.measurements[f"result.{own}"]}
    record(ctx, sample, {key: (scale, files[f"result.{own}"].stat().st_size)})
    ctx.run.journal.append("measured", key, scale=scale.as_tuple(), report=report.to_dict())
    write_manifests(ctx)


def measured_report(run: Run) -> Report:
    """What was measured of the files of the chosen scale and of the base's, as ``base.onnx``, ``result.onnx``, ...

    Raises MobilepruneError where that is still to be done.
    """
    key = scale_key(chosen_scale(run))
    require(run, "measured", key, "bench")
    entry = run.journal.get("measured", key)
    assert entry is not None  # as it is required
    return Report.from_dict(entry["report"])


def _files(ctx: Context, key: str) -> dict[str, Path]:
    """The files of the base and of the scale with that key, as ``base.onnx`` and so on, that the device can time."""
    runtimes = open_device(ctx.profile).describe().runtimes
    files: dict[str, Path] = {}
    for entry in ctx.run.journal.all("artifact"):
        owner, _, name = entry["key"].rpartition(".")
        path = ctx.run.path / entry["path"]
        if owner not in ("base", key) or (ctx.profile.kind == "predicted" and name != ctx.format):
            continue  # a profile speaks of one runtime
        if path.suffix in runtimes:
            files[f"{'base' if owner == 'base' else 'result'}.{name}"] = path
        elif owner == key:
            ctx.display.say(f"{name} files are not timed: {ctx.profile.title} has no runtime for them", style="yellow")
    return files
