"""Profile: real latencies of many scales on the device. Weights do not matter for time, so nothing is trained here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import nn

import exporters
from device_profiles.benchmark import DRIFT_LIMIT, Measurement, Report, benchmark
from device_profiles.devices import open_device
from exporters import verify
from mobileprune.errors import UsageError
from mobileprune.progress import waiting_gate
from mobileprune.pruning.prune import prune
from mobileprune.run import write_json
from mobileprune.scale import BASE, Scale
from mobileprune.stages.context import Context
from mobileprune.stages.records import CostLike, Costs, scale_key
from mobileprune.stages.train import train_base

_SESSIONS = 3  # of a measurement in which the base strays
_DRAFT_TOLERANCE = 1e-3  # of the largest logit
_FLOAT = "float32"


def profile(ctx: Context) -> None:
    """Measure the latency of a spread of scales beside the base, all in the same rounds, and count their work."""
    train_base(ctx)
    lattice_file = ctx.run.path / "profile" / "lattice.json"
    if not lattice_file.exists():
        write_json(lattice_file, _count(ctx).to_dict())
    costs = Costs.read(lattice_file)
    scales = spread(costs.candidates, int(ctx.asked["profile_scales"]))
    waiting = [s for s in scales if ctx.run.journal.get("latency", scale_key(s)) is None]
    if not waiting:
        return
    ctx.display.stage("profile", f"latency of {len(scales)} scales on {ctx.profile.title}")
    files = {scale_key(s): path for s, path in _exported(ctx, scales).items()}
    beside = _float_beside(ctx)
    report = measure(ctx, {**files, **beside}, scale_key(BASE))
    record(ctx, report.measurements, {scale_key(s): (s, files[scale_key(s)].stat().st_size) for s in scales})
    if beside:
        _say_if_slower(ctx, report.measurements[scale_key(BASE)], report.measurements[_FLOAT])
    for path in (*files.values(), *beside.values()):
        path.unlink()


def _float_beside(ctx: Context) -> dict[str, Path]:
    """The base in float32, to be timed beside those in another precision: that may be the slower one."""
    if ctx.precision == _FLOAT or ctx.profile.kind == "predicted":
        return {}
    path = ctx.folder("profile") / f"{_FLOAT}.{ctx.timing_format}"
    export_for_timing(ctx, ctx.base, ctx.data.size, path, _FLOAT)
    return {_FLOAT: path}


def _say_if_slower(ctx: Context, here: Measurement, plain: Measurement) -> None:
    if here.origin != "measured" or here.low_ms <= plain.high_ms:  # within what repeats differ by
        return
    note = (
        f"in {ctx.precision} the base takes {here.latency_ms:.3g} ms as {ctx.timing_format} on {ctx.profile.title}, in "
        f"{_FLOAT} {plain.latency_ms:.3g} ms: leave --precision out where time matters more than size"
    )
    ctx.run.journal.append("note", note)
    ctx.display.say(note, style="yellow")


def _count(ctx: Context) -> Costs:
    """Count every realisable scale; what cannot be pruned or timed is noted in the journal."""

    def covered(scale: Scale, cost: CostLike) -> bool:
        side = round(scale.resolution * ctx.data.size)
        return ctx.profile.covers(cost.macs, 3 * side * side)

    costs = Costs.of(ctx.anatomy.lattice(), lambda s: ctx.anatomy.cost(s, ctx.ranking), covered)
    notes = list(ctx.anatomy.notes)
    if not costs[BASE]["covered"]:
        raise UsageError(
            f"{ctx.profile.title} cannot tell the latency of {ctx.source.name} at {ctx.data.size} px: it is outside of "
            "the sizes that the profile was fitted to; use another --image-size, profile or a connected device"
        )
    if left := len(costs.lattice) - len(costs.candidates):
        notes.append(
            f"{left} of {len(costs.lattice)} scales left out: smaller than what {ctx.profile.name} was fitted to"
        )
    for note in notes:
        ctx.run.journal.append("note", note)
    return costs


def spread(points: Sequence[Scale], count: int) -> list[Scale]:
    """``count`` of the scales that cover them: the base, then each time the one farthest (in logs) from all so far."""
    smallest = [min(axis) for axis in zip(*(p.as_tuple() for p in points), strict=True)]
    spans = [max(-math.log(value), 1e-9) for value in smallest]

    def place(scale: Scale) -> tuple[float, ...]:
        return tuple(math.log(v) / span for v, span in zip(scale.as_tuple(), spans, strict=True))

    chosen = [BASE]
    distance = {p: math.dist(place(p), place(BASE)) for p in points}
    while len(chosen) < min(count, len(points)):
        farthest = max(points, key=lambda p: (distance[p], p.as_tuple()))
        chosen.append(farthest)
        for p in points:
            distance[p] = min(distance[p], math.dist(place(p), place(farthest)))
    return chosen


def _exported(ctx: Context, scales: Iterable[Scale]) -> dict[Scale, Path]:
    """Each scale's network with untrained weights as a file for the device; those already there are kept."""
    scales = list(scales)
    folder = ctx.folder("profile")
    paths: dict[Scale, Path] = {}
    with ctx.display.work("exporting", f"exporting {len(scales)} networks", len(scales)) as advance:
        for done, scale in enumerate(scales):
            path = folder / f"{scale_key(scale)}.{ctx.timing_format}"
            if not path.exists():
                model, size = shaped(ctx, scale)
                export_for_timing(ctx, model, size, path)
            paths[scale] = path
            advance(done + 1, str(scale))
    return paths


def shaped(ctx: Context, scale: Scale) -> tuple[nn.Module, int]:
    """The base pruned to ``scale``, not fine-tuned, and its input size."""
    if scale == BASE:
        return ctx.base, ctx.data.size
    pruned = prune(ctx.base, scale, ctx.example[:1], anatomy=ctx.anatomy, ranking=ctx.ranking)
    return pruned.model, pruned.input_size[0]


def export_for_timing(ctx: Context, model: nn.Module, size: int, path: Path, precision: str = "") -> None:
    """A file that takes the time of the final artifact; it is not kept.

    It is written the fast way, and the careful way where that computes something else.
    precision: the run's where it is empty.
    """
    spec = exporters.InputSpec(3, size, size, ctx.view.mean, ctx.view.std)
    precision = precision or ctx.precision
    exporters.export_draft(model, spec, path, format=ctx.timing_format, precision=precision)
    if precision != _FLOAT:  # an integer file of untrained weights computes nothing that could be compared
        return
    image = np.random.default_rng(ctx.seed).normal(size=spec.shape()).astype(np.float32)
    if not verify.parity(path, model, image).passes(_DRAFT_TOLERANCE):
        exporters.export(model, spec, path, format=ctx.timing_format)


def measure(ctx: Context, files: Mapping[str, Path], base: str, rounds: int = 0) -> Report:
    """Time the files on the run's device, interleaved; again where ``base``, the base's among them, strays.

    rounds: those that were asked for, unless given.

    What is kept of a measurement are shares of the base. One in which the base took a time that it never took before in
    this run may be of a moment that slowed it alone, so it counts only if the next one agrees. The last one is taken
    however that ends.
    """
    seen = [float(entry["base_ms"]) for entry in ctx.run.journal.all("latency")]
    for more in reversed(range(_SESSIONS)):
        report = _measure_once(ctx, files, rounds or int(ctx.asked["measuring"]["rounds"]))
        now = report.measurements[base].latency_ms
        if not seen or min(abs(now / before - 1) for before in seen) <= DRIFT_LIMIT:
            break
        what = "measured again" if more else "the device does not settle, so times may be off as much"
        ctx.display.say(f"the base took {now:.3g} ms, and {median(seen):.3g} ms before: {what}", style="yellow")
        seen.append(now)
    return report


def _measure_once(ctx: Context, files: Mapping[str, Path], rounds: int) -> Report:
    device = open_device(ctx.profile)
    verb = "predicting" if ctx.profile.kind == "predicted" else "measuring"
    try:
        with ctx.display.work("measuring", f"{verb} {len(files)} files on {ctx.profile.name}", 1) as advance:
            report = benchmark(
                device,
                files,
                rounds=rounds,
                min_seconds=ctx.asked["measuring"]["round_seconds"],
                seed=ctx.seed,
                gate=waiting_gate(ctx.display),
                progress=lambda done, total: advance(done / total),
            )
    finally:
        device.clean_up()
    for warning in report.warnings:
        ctx.display.say(warning, style="yellow")
    return report


def record(ctx: Context, found: Mapping[str, Measurement], scales: Mapping[str, tuple[Scale, int]]) -> None:
    """Journal each scale's latency with that of the base in the same rounds, so that drift of the device cancels.

    found: measurements by scale key, the base among them. scales: by scale key, the scale and its file's bytes.
    """
    base = found[scale_key(BASE)]
    for key, (scale, size) in scales.items():
        data: dict[str, Any] = {"scale": scale.as_tuple(), "size_bytes": size, "base_ms": base.latency_ms}
        data["share"] = found[key].share_of(base)
        ctx.run.journal.append("latency", key, **data, measurement=found[key].to_dict())
