"""What a person asks of a run: checked, completed, written to run.toml, and compared when a run goes on."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileprune.errors import UsageError
from mobileprune.limits import check_limits
from mobileprune.run import Run

if TYPE_CHECKING:
    from device_profiles.profile import DeviceProfile
    from mobileprune.models import ModelSource

_VERSIONS = (
    "mobileprune",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "numpy",
    "scipy",
)
_DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "probes": 8,
    "confidence": 0.8,
    "profile_scales": 12,
    "rounds": 7,
    "round_seconds": 0.25,
    "probe_epochs": 4,
    "probe_images": 0,  # all
    "epochs": 16,
    "batch_size": 64,
    "finetune_learning_rate": "auto",  # results/training_ingredients.csv: worth 1.6 points more than 0.02
    "distillation": 0.5,
    "temperature": 3.0,
    "optimizer": "sgd",
    "lr_schedule": "cosine",
    "warm_up": 0.1,
    "weight_decay": 5e-4,
    "label_smoothing": 0.05,
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema": 0.0,
    "norm_images": 0,
    "training_precision": "auto",
    "precision": "float32",
}
_DEFAULT_BASE_EPOCHS = 20
_SCRATCH_LEARNING_RATE = 0.1
_TRAINED_LEARNING_RATE = 0.02  # what a trained network knows would not survive the rate of one trained from scratch


@dataclass(frozen=True)
class Request:
    """The flags of ``optimize`` other than its budgets; None where the person left one out."""

    model: str | ModelSource | None = None  # a source where a network was given as an object
    model_arguments: tuple[str, ...] = ()
    checkpoint: Path | None = None
    data: str | None = None
    image_size: int | None = None
    device: str | None = None
    seed: int | None = None
    probes: int | None = None
    confidence: float | None = None
    profile_scales: int | None = None
    rounds: int | None = None
    round_seconds: float | None = None
    base_epochs: int | None = None
    probe_epochs: int | None = None
    probe_images: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | str | None = None  # or "auto": by a range test
    finetune_learning_rate: float | str | None = None
    distillation: float | None = None
    temperature: float | None = None
    optimizer: str | None = None
    lr_schedule: str | None = None
    warm_up: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    ema: float | None = None
    norm_images: int | None = None
    training_precision: str | None = None
    precision: str | None = None  # of the exported files
    labels: str | None = None
    data_root: Path | None = None
    download: bool | None = None


def complete(request: Request, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole question as it stands in run.toml.

    Raises UsageError for a model or device that is not known, and for a number out of its limits.

    earlier: the run.toml that there is already; its device is not asked again, as it may not be connected now.
    """
    from device_profiles.devices.resolve import resolve
    from device_profiles.profile import from_table, to_table
    from mobileprune.models import find_model
    from mobileprune.training.schedule import check_names

    def value(name: str) -> Any:
        given = getattr(request, name)
        return _DEFAULTS[name] if given is None else given

    check_limits(vars(request))
    named = request.model or "resnet20"
    source = find_model(named, request.model_arguments) if isinstance(named, str) else named
    device = request.device or "host"
    known = (earlier or {}).get("device_profile") if (earlier or {}).get("device") == device else None
    profile = from_table(known) if known else resolve(device)
    timed_format(profile, value("precision"))
    if request.checkpoint is not None and not request.checkpoint.is_file():
        raise UsageError(f"no checkpoint {request.checkpoint}")
    check_names(value("optimizer"), value("lr_schedule"))
    trained = bool(request.checkpoint or source.has_weights)
    base_epochs, base_rate = request.base_epochs, request.learning_rate
    if base_epochs is None:
        base_epochs = 0 if trained else _DEFAULT_BASE_EPOCHS
    if base_rate is None:
        base_rate = _TRAINED_LEARNING_RATE if trained else _SCRATCH_LEARNING_RATE
    model: dict[str, Any] = {"library": source.library, "name": source.name, "arguments": dict(source.arguments)}
    if request.checkpoint is not None:
        model["checkpoint"] = str(request.checkpoint.resolve())
    return {
        "device": device,
        "device_profile": to_table(profile),  # so that what is plugged in later changes nothing
        "precision": value("precision"),
        "seed": value("seed"),
        "probes": value("probes"),
        "confidence": value("confidence"),
        "profile_scales": value("profile_scales"),
        "measuring": {"rounds": value("rounds"), "round_seconds": value("round_seconds")},
        "model": model,
        "data": _data(request),
        "training": {
            **{
                place[1]: value(name) for name, place in _PLACES.items() if place[0] == "training" and name in _DEFAULTS
            },
            "base_epochs": base_epochs,
            "learning_rate": base_rate,
            "momentum": 0.9,
        },
        "versions": _versions(),
    }


def _data(request: Request) -> dict[str, Any]:
    """The data as it stands in run.toml: files by their whole paths."""
    spec = request.data or "digits"
    library, colon, rest = spec.rpartition(":")
    if Path(spec).exists():
        spec = str(Path(spec).resolve())
    elif colon and library.endswith(".py") and Path(library).exists():
        spec = f"{Path(library).resolve()}:{rest}"
    elif spec.startswith("hf:") and Path(spec.removeprefix("hf:")).exists():
        spec = f"hf:{Path(spec.removeprefix('hf:')).resolve()}"
    data: dict[str, Any] = {"spec": spec}
    labels = request.labels and (
        str(Path(request.labels).resolve()) if Path(request.labels).is_file() else request.labels
    )
    root = request.data_root and str(request.data_root.resolve())
    given = {"image_size": request.image_size, "labels": labels, "root": root, "download": request.download}
    return data | {name: value for name, value in given.items() if value is not None}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# flag -> where its value stands in run.toml
_PLACES: dict[str, tuple[str, ...]] = {
    "model": ("model", "name"),
    "model_arguments": ("model", "arguments"),
    "checkpoint": ("model", "checkpoint"),
    "data": ("data", "spec"),
    "image_size": ("data", "image_size"),
    "device": ("device",),
    "seed": ("seed",),
    "probes": ("probes",),
    "confidence": ("confidence",),
    "profile_scales": ("profile_scales",),
    "rounds": ("measuring", "rounds"),
    "round_seconds": ("measuring", "round_seconds"),
    "base_epochs": ("training", "base_epochs"),
    "probe_epochs": ("training", "probe_epochs"),
    "probe_images": ("training", "probe_images"),
    "epochs": ("training", "result_epochs"),
    "batch_size": ("training", "batch_size"),
    "learning_rate": ("training", "learning_rate"),
    "finetune_learning_rate": ("training", "finetune_learning_rate"),
    "distillation": ("training", "distillation"),
    "temperature": ("training", "temperature"),
    "optimizer": ("training", "optimizer"),
    "lr_schedule": ("training", "shape"),
    "warm_up": ("training", "warm_up"),
    "weight_decay": ("training", "weight_decay"),
    "label_smoothing": ("training", "label_smoothing"),
    "mixup": ("training", "mixup"),
    "cutmix": ("training", "cutmix"),
    "ema": ("training", "ema"),
    "norm_images": ("training", "norm_images"),
    "training_precision": ("training", "precision"),
    "precision": ("precision",),
    "labels": ("data", "labels"),
    "data_root": ("data", "root"),
}


def _at(data: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    value: Any = data
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def filled(request: Request, asked: Mapping[str, Any]) -> Request:
    """``request`` with what it leaves out taken from a run.toml; its model is taken whole, with its checkpoint."""
    from mobileprune.models import ModelSource

    missing = {name for name in _PLACES if getattr(request, name) in (None, ())}
    model: Mapping[str, Any] = asked["model"]
    values: dict[str, Any] = {}
    if "model" in missing:
        values["model"] = ModelSource(model["library"], model["name"], model["arguments"])
        if "checkpoint" in missing and "checkpoint" in model:
            values["checkpoint"] = Path(model["checkpoint"])
    for name in missing - {"model", "model_arguments", "checkpoint"}:
        values[name] = _at(asked, _PLACES[name])
    if values.get("data_root") is not None:
        values["data_root"] = Path(values["data_root"])
    if request.download is None:
        values["download"] = asked["data"].get("download")
    return replace(request, **values)


def words_of(asked: Mapping[str, Any]) -> list[str]:
    """The flags of ``optimize`` that ask the question in a run.toml again, all of them spelled out."""
    words: list[str] = []
    for name, place in _PLACES.items():
        value = _at(asked, place)
        if value is None:
            continue
        if name == "model" and asked["model"]["library"] != "mobileprune":
            value = f"{asked['model']['library']}:{value}"
        values = [f"{k}={v}" for k, v in value.items()] if isinstance(value, Mapping) else [value]
        for one in values:
            words += [flag_of(name), str(one)]
    return words


def flag_of(name: str) -> str:
    """How a field of ``Request`` is written on the command line."""
    return "--" + {"model_arguments": "model-arg"}.get(name, name.replace("_", "-"))


def open_or_create(path: Path, request: Request) -> Run:
    """The run in ``path``, made from ``request`` where there is none yet.

    Raises UsageError where the run there was begun with another question than the flags that were given.
    """
    if not (path / "run.toml").exists():
        return Run.create(path, complete(request))
    run = Run.open(path)
    given = {name: place for name, place in _PLACES.items() if getattr(request, name) not in (None, ())}
    if not given:
        return run
    asked = complete(request, run.asked)
    for name, place in given.items():
        before, now = _at(run.asked, place), _at(asked, place)
        if before != now:
            flag = flag_of(name)
            raise UsageError(
                f"{path} was begun with {flag} {before}, not {now}; leave {flag} out to go on with it, "
                "or name another folder with --run"
            )
    return run


def new_folder(model: str | None, data: str | None) -> Path:
    """A folder under runs/ named after the model, the data and a number; never one that is there."""
    stem = f"{(model or 'resnet20').rpartition(':')[2]}-{Path(data or 'digits').stem}"
    number = next(n for n in itertools.count(1) if not (Path("runs") / f"{stem}-{n}").exists())
    return Path("runs") / f"{stem}-{number}"


def timed_format(profile: DeviceProfile, precision: str) -> str:
    """The format whose latency a device's budgets are about: the profile's, or another that has ``precision``.

    Raises UsageError where the device cannot tell the latency of files in that precision.
    """
    import exporters

    if profile.kind == "predicted" and precision != profile.precision:
        raise UsageError(
            f"{profile.name} predicts {profile.precision} only, not {precision}: what was published does not carry it; "
            "connect the device, or leave --precision out"
        )
    formats = dict.fromkeys((profile.format, *exporters.formats()))
    for name in formats:
        if precision in exporters.exporter(name).precisions:
            return name
    known = sorted({p for name in formats for p in exporters.exporter(name).precisions})
    raise UsageError(f"no format can be written in {precision}; choose one of: {', '.join(known)}")
