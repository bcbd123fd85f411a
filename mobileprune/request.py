"""What a person asks of a run: checked, completed, written to run.toml, and compared when a run goes on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mobileprune.errors import UsageError
from mobileprune.run import Run

_VERSIONS = (
    "mobileprune",
    "torch",
    "torchvision",
    "torch-pruning",
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
    "epochs": 16,
    "batch_size": 64,
    "finetune_learning_rate": 0.02,
    "distillation": 0.5,
}
_DEFAULT_BASE_EPOCHS = 20
_SCRATCH_LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Request:
    """The flags of ``optimize`` other than its budgets; None where the person left one out."""

    model: str | None = None
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
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    finetune_learning_rate: float | None = None
    distillation: float | None = None


def complete(request: Request) -> dict[str, Any]:
    """The whole question as it stands in run.toml. Raises UsageError for a model or device that is not known."""
    from device_profiles.profile import load_profile
    from mobileprune.models import find_model
    from mobileprune.training.finetune import has_fast_bfloat16

    def value(name: str) -> Any:
        given = getattr(request, name)
        return _DEFAULTS[name] if given is None else given

    source = find_model(request.model or "resnet20", request.model_arguments)
    device = request.device or "host"
    load_profile(device)
    if request.checkpoint is not None and not request.checkpoint.is_file():
        raise UsageError(f"no checkpoint {request.checkpoint}")
    trained = bool(request.checkpoint or source.has_weights)
    base_epochs, base_rate = request.base_epochs, request.learning_rate
    if base_epochs is None:
        base_epochs = 0 if trained else _DEFAULT_BASE_EPOCHS
    if base_rate is None:  # what a trained network knows would not survive the rate of one trained from scratch
        base_rate = value("finetune_learning_rate") if trained else _SCRATCH_LEARNING_RATE
    model: dict[str, Any] = {"library": source.library, "name": source.name, "arguments": dict(source.arguments)}
    if request.checkpoint is not None:
        model["checkpoint"] = str(request.checkpoint.resolve())
    spec = request.data or "digits"
    data: dict[str, Any] = {"spec": str(Path(spec).resolve()) if Path(spec).exists() else spec}
    if request.image_size is not None:
        data["image_size"] = request.image_size
    return {
        "device": device,
        "seed": value("seed"),
        "probes": value("probes"),
        "confidence": value("confidence"),
        "profile_scales": value("profile_scales"),
        "measuring": {"rounds": value("rounds"), "round_seconds": value("round_seconds")},
        "model": model,
        "data": data,
        "training": {
            "base_epochs": base_epochs,
            "probe_epochs": value("probe_epochs"),
            "result_epochs": value("epochs"),
            "batch_size": value("batch_size"),
            "learning_rate": base_rate,
            "finetune_learning_rate": value("finetune_learning_rate"),
            "distillation": value("distillation"),
            "bfloat16": has_fast_bfloat16(),
        },
        "versions": _versions(),
    }


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
    "epochs": ("training", "result_epochs"),
    "batch_size": ("training", "batch_size"),
    "learning_rate": ("training", "learning_rate"),
    "finetune_learning_rate": ("training", "finetune_learning_rate"),
    "distillation": ("training", "distillation"),
}


def _at(data: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    value: Any = data
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


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
    asked = complete(request)
    for name, place in given.items():
        before, now = _at(run.asked, place), _at(asked, place)
        if before != now:
            flag = "--" + {"model_arguments": "model-arg"}.get(name, name.replace("_", "-"))
            raise UsageError(
                f"{path} was begun with {flag} {before}, not {now}; leave {flag} out to go on with it, "
                "or name another folder with --run"
            )
    return run
