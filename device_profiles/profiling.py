"""Profiles of connected devices: what was measured on one, written down so that others can use it.

A profile made here holds the channel step per kind of convolution and, where enough files were measured, a latency
model of them with its leave-one-out error. With that model the profile predicts where the device is not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_profiles.benchmark import Measurement, Report, benchmark
from device_profiles.channel_step import ChannelStep, Make, channel_steps
from device_profiles.devices.base import Device, DeviceInfo
from device_profiles.errors import DeviceError
from device_profiles.fitting import FEWEST_FILES, fit_files
from device_profiles.latency_model import LatencyModel
from device_profiles.operators import Work, count
from device_profiles.predict import calibrate
from device_profiles.profile import FORMAT_OF_RUNTIME, DeviceProfile
from device_profiles.thermal import Gate

_LAYER_SECONDS = 0.1  # there are many of them, and they are short


def profile_device(
    device: Device,
    files: Mapping[str, Path],
    *,
    name: str,
    make: Make | None = None,
    threads: int | None = None,
    rounds: int = 7,
    min_seconds: float = 0.25,
    gate: Gate | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DeviceProfile:
    """Measure a connected device: single convolutions for its channel step, then the files for its latency model.

    files: name -> networks of several sizes and shapes, best of those that shall be pruned; fewer than four give no
    model. make: see `channel_steps`. progress: called with ("layers" or "files", file-rounds done, in all). Raises
    DeviceError for a device that is not there or emulated, or that fails.
    """
    info = _real(device)
    threads = device.profile.threads if threads is None else threads
    say = progress or (lambda what, done, total: None)
    layers = {"threads": threads, "gate": gate, "min_seconds": min(min_seconds, _LAYER_SECONDS), "rounds": rounds}
    steps = channel_steps(device, make=make, progress=lambda done, total: say("layers", done, total), **layers)  # type: ignore[arg-type]
    report = None
    if files:
        report = benchmark(
            device,
            files,
            rounds=rounds,
            min_seconds=min_seconds,
            threads=threads,
            gate=gate,
            progress=lambda done, total: say("files", done, total),
        )
    model, why_not = _model(info, files, report, threads) if report else (None, "no files were measured")
    return replace(
        device.profile,
        # A serial number is that of one phone, and nobody else's business: the phone is known by its title.
        address=None if device.profile.kind == "adb" else device.profile.address,
        name=name,
        title=info.title,
        soc=info.soc,
        cores=info.cores,
        threads=threads,
        channel_step=max(one.step for one in steps.values()),
        channel_steps={kind: one.step for kind, one in steps.items()},
        latency=(model,) if model else (),
        provenance=_provenance(info, steps, report, model, why_not),
    )


def calibrate_profile(
    shipped: DeviceProfile, device: Device, anchors: Mapping[str, Path], *, name: str, **how: Any
) -> DeviceProfile:
    """A profile that predicts, rescaled to the device at hand by two or three files that are measured on it.

    anchors: name -> networks of two sizes or more, best the second smallest and the largest of those in question. The
    new profile knows the threads it was calibrated for: how["threads"], else the shipped profile's. how: see
    `benchmark`. Raises DeviceError for a profile that does not predict, a device that is not there, and anchors that
    say too little.
    """
    models = {one.threads: one for one in shipped.latency}
    threads = how.pop("threads", None) or shipped.threads
    if threads not in models:
        known = " or ".join(map(str, models)) or "no"
        raise DeviceError(
            f"the profile {shipped.name} predicts for {known} threads, so there is nothing to calibrate for {threads}"
        )
    info = _real(device)
    works = {label: count(path) for label, path in anchors.items()}
    found = benchmark(device, anchors, threads=threads, **how).measurements
    measured = [(works[label], found[label].latency_ms) for label in anchors]
    model = calibrate(models[threads], measured, runtime=_runtime(found))
    factor = model.ms_per_operator / models[threads].ms_per_operator if models[threads].ms_per_operator else None
    times = f"Its coefficients times {factor:.3g}. " if factor else ""
    listed = ", ".join(f"{label} {one.latency_ms:.4g} ms" for label, one in found.items())
    return replace(
        shipped,
        name=name,
        title=f"{info.title}, calibrated (predicted)",
        kind="predicted",
        threads=threads,
        soc=info.soc,
        cores=info.cores,
        latency=(replace(model, sources=(*model.sources, _source(info))),),
        provenance=(
            f"The profile {shipped.name} rescaled to {_words(info)} by {len(anchors)} files measured on "
            f"{_today()} with {model.runtime} and {threads} threads: {listed}. {times}The stated errors are those of "
            f"the profile, or of the anchors where these are larger.\n{shipped.provenance}"
        ),
    )


def _real(device: Device) -> DeviceInfo:
    """What the device is; raises DeviceError for one whose times would be no measurement."""
    if device.profile.kind == "predicted":
        raise DeviceError(f"{device.profile.name} is predicted, so nothing can be measured on it: connect the device")
    info = device.describe()
    if info.emulated:
        raise DeviceError(f"{info.name} is emulated: its times say nothing of a real device, and make no profile")
    return info


def _model(
    info: DeviceInfo, files: Mapping[str, Path], report: Report, threads: int
) -> tuple[LatencyModel | None, str]:
    """The fitted model, or none and why."""
    works: dict[str, Work] = {}
    left_out = []
    for name, path in files.items():
        try:
            works[name] = _countable(path)
        except DeviceError as error:
            left_out.append(f"{name} ({error})")
    found = report.measurements
    if len(works) < FEWEST_FILES:
        because = f"; left out: {', '.join(left_out)}" if left_out else ""
        return None, f"{len(works)} of {FEWEST_FILES} files that it needs were measured{because}"
    rows = {name: (work, found[name].latency_ms) for name, work in works.items()}
    try:
        return fit_files(rows, threads=threads, runtime=_runtime(found), source=_source(info)), ""
    except DeviceError as error:
        return None, str(error)


def _countable(path: Path) -> Work:
    """The work of a file that a model can be fitted to."""
    if path.suffix.lower().lstrip(".") not in FORMAT_OF_RUNTIME.values():
        raise DeviceError(f"operators are not counted in {path.suffix} files")
    work = count(path)
    if work.unsupported:
        raise DeviceError(f"the cost of {', '.join(work.unsupported)} is not known")
    return work


def _runtime(found: Mapping[str, Measurement]) -> str:
    return " and ".join(sorted({one.runtime for one in found.values()}))


def _source(info: DeviceInfo) -> str:
    return f"measured on {_words(info)} on {_today()}"


def _words(info: DeviceInfo) -> str:
    parts = [one for one in (info.soc, info.os) if one not in ("", info.title)]
    return f"{info.title} ({', '.join(parts)})" if parts else info.title


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _provenance(
    info: DeviceInfo,
    steps: Mapping[str, ChannelStep],
    report: Report | None,
    model: LatencyModel | None,
    why_not: str,
) -> str:
    parts = [f"Measured on {_words(info)} on {_today()} by mobileprune profile."]
    for kind, one in steps.items():
        losses = ", ".join(f"{step}: {loss:+.0%}" for step, loss in one.losses.items())
        parts.append(
            f"Channel step {one.step} of {kind} convolutions: odd multiples of a number take longer than their work is "
            f"worth by {losses}."
        )
    if report is not None:
        protocol = report.protocol
        listed = ", ".join(f"{name} {one.latency_ms:.4g} ms" for name, one in report.measurements.items())
        parts.append(f"Latencies of {protocol.rounds} rounds of {protocol.min_seconds:g} s: {listed}.")
    if model is not None:
        parts.append(
            f"The latency model is fitted to these files; each left out in turn was off by {model.typical_error:.1%} "
            f"on average, at most by {model.guaranteed_error:.1%}."
        )
    else:
        parts.append(f"There is no latency model: {why_not}.")
    if report is not None:
        parts += [f"Note: {warning}." for warning in report.warnings]
    return "\n".join(parts)
