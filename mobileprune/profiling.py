"""Profiles of connected devices: the networks that they are measured with, and where what was found is written."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from device_profiles.devices import open_device
from device_profiles.profile import DeviceProfile, check_place, load_profile, save_profile, write_profile
from device_profiles.profiling import calibrate_profile, profile_device
from mobileprune.errors import UsageError
from mobileprune.measuring import COOL_DOWN_S, by_name
from mobileprune.progress import Display, waiting_gate

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)  # of the image's side, for the files that a latency model is fitted to
ANCHOR_SHARES = (1.0, 0.75)


def network_files(
    model: str,
    folder: Path,
    *,
    format: str,  # noqa: A002 (the exporters' word)
    arguments: Sequence[str] = (),
    image_size: int | None = None,
    shares: Sequence[float] = SHARES,
) -> dict[str, Path]:
    """Throw-away files of a model by name at several input sizes, untrained, for profiles and their calibration.

    shares: of image_size (32 for built-in models, else 224), each to even pixels. Raises UsageError for a model that is
    not known and ExportError for one that cannot be exported.
    """
    import torch

    import exporters
    from mobileprune.models import find_model
    from mobileprune.randomness import own_randomness

    source = find_model(model, arguments)
    own = source.library == "mobileprune"
    largest = image_size or (32 if own else 224)
    with own_randomness():
        torch.manual_seed(0)
        network = source.build(10 if own else 1000).eval()
    files = {}
    for side in dict.fromkeys(max(2, 2 * round(share * largest / 2)) for share in shares):
        spec = exporters.InputSpec(3, side, side, (0.0,) * 3, (1.0,) * 3)
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source.name)}-{side}.{format}"
        exporters.export_draft(network, spec, path, format=format)
        files[path.stem] = path
    return files


def profile_connected(
    device: str,
    files: Mapping[str, Path],
    *,
    name: str,
    output: Path | None,
    display: Display,
    rounds: int = 7,
    round_seconds: float = 0.25,
    threads: int | None = None,
    cool_down: float = COOL_DOWN_S,
) -> tuple[DeviceProfile, Path]:
    """Measure a connected device, with files of one or more networks, and write its profile; returns it and where.

    output: where it shall stand; the user's folder of profiles unless given, where ``--device NAME`` finds it.
    cool_down: how many seconds a hot device may cool before.
    """
    opened = open_device(device)
    try:
        what = f"the channel step and {len(files)} files on {opened.profile.name}"
        with display.work("measuring", what, 2) as advance:
            found = profile_device(
                opened,
                files,
                name=name,
                threads=threads,
                rounds=rounds,
                min_seconds=round_seconds,
                gate=waiting_gate(display, cool_down),
                progress=lambda part, done, total: advance((part == "files") + done / total),
            )
    finally:
        opened.clean_up()
    return found, _write(found, output)


def calibrate_connected(
    shipped: str,
    device: str,
    anchors: Sequence[Path],
    *,
    name: str,
    output: Path | None,
    display: Display,
    threads: int | None = None,
    rounds: int = 7,
    cool_down: float = COOL_DOWN_S,
) -> tuple[DeviceProfile, Path]:
    """Rescale a shipped profile to a connected device by two or three files; returns the new one and where it is."""
    short = {path.name: path for path in anchors}  # folders are nobody's business where a profile is shared
    opened = open_device(device)
    try:
        with display.work("measuring", f"{len(anchors)} anchors on {opened.profile.name}", 1) as advance:
            found = calibrate_profile(
                load_profile(shipped),
                opened,
                short if len(short) == len(anchors) else by_name(anchors),
                name=name,
                threads=threads,
                rounds=rounds,
                gate=waiting_gate(display, cool_down),
                progress=lambda done, total: advance(done / total),
            )
    finally:
        opened.clean_up()
    return found, _write(found, output)


def _write(profile: DeviceProfile, output: Path | None) -> Path:
    if output is None:
        return save_profile(profile)
    write_profile(profile, output)
    return output


def profile_with(
    device: str,
    models: Sequence[str],
    *,
    display: Display,
    image_size: int | None = None,
    name: str | None = None,
    output: Path | None = None,
    threads: int | None = None,
    rounds: int = 7,
    cool_down: float = COOL_DOWN_S,
) -> tuple[DeviceProfile, Path]:
    """``profile_connected`` with the networks of these names at several sizes; without a name, after the device.

    Raises ProfileError before anything is measured where the profile could not be written under that name.
    """
    called = name or f"my-{open_device(device).profile.name}"[:64]
    check_place(called, output)
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
        return profile_connected(
            device,
            _networks(models, Path(folder), device, image_size, SHARES),
            name=called,
            output=output,
            display=display,
            rounds=rounds,
            threads=threads,
            cool_down=cool_down,
        )


def calibrate_with(
    shipped: str,
    device: str,
    models: Sequence[str],
    *,
    display: Display,
    image_size: int | None = None,
    name: str | None = None,
    output: Path | None = None,
    threads: int | None = None,
    rounds: int = 7,
    cool_down: float = COOL_DOWN_S,
) -> tuple[DeviceProfile, Path]:
    """``calibrate_connected`` with the networks of these names at two sizes each as its anchors.

    Raises ProfileError as ``profile_with`` does.
    """
    if not models:
        raise UsageError("nothing to calibrate with: name a network like those to be pruned with --model")
    called = name or f"my-{load_profile(shipped).name}"[:64]
    check_place(called, output)
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
        anchors = _networks(models, Path(folder), device, image_size, ANCHOR_SHARES)
        return calibrate_connected(
            shipped,
            device,
            list(anchors.values()),
            name=called,
            output=output,
            display=display,
            threads=threads,
            rounds=rounds,
            cool_down=cool_down,
        )


def _networks(
    models: Sequence[str], folder: Path, device: str, image_size: int | None, shares: Sequence[float]
) -> dict[str, Path]:
    form = open_device(device).profile.format
    files: dict[str, Path] = {}
    for model in models:
        files |= network_files(model, folder, format=form, image_size=image_size, shares=shares)
    return files
