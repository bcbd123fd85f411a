"""What the stages share: everything that follows from a run's question, built when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from device_profiles.profile import DeviceProfile, load_profile
from mobileprune.data import ImageData, load_data
from mobileprune.errors import MobilepruneError
from mobileprune.models import ModelSource
from mobileprune.progress import Display
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.blocks import Ranking
from mobileprune.run import Run
from mobileprune.stages import weights
from mobileprune.training.batches import View
from mobileprune.training.finetune import Schedule


class Context:
    """A run, where to report to, and the model, data and device that the run's question names."""

    def __init__(self, run: Run, display: Display) -> None:
        self.run = run
        self.display = display

    @property
    def asked(self) -> Mapping[str, Any]:
        return self.run.asked

    @property
    def seed(self) -> int:
        return int(self.asked["seed"])

    @cached_property
    def device(self) -> torch.device:
        """Where networks are trained."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def source(self) -> ModelSource:
        model = self.asked["model"]
        return ModelSource(model["library"], model["name"], model.get("arguments", {}))

    @cached_property
    def profile(self) -> DeviceProfile:
        return load_profile(self.asked["device"])

    @property
    def timing_format(self) -> str:
        """The format of throw-away files; a profile without a device reads any, and ONNX is written fastest."""
        return "onnx" if self.profile.kind == "predicted" else self.profile.format

    @cached_property
    def data(self) -> ImageData:
        """The images; MobilepruneError when they are no longer those that the run began with."""
        asked = self.asked["data"]
        data = load_data(asked["spec"], asked.get("image_size"), self.seed)
        fingerprint = data.fingerprint()
        seen = self.run.once(
            "data",
            "fingerprint",
            lambda: {"value": fingerprint, "classes": list(data.classes), "size": data.size, "notes": list(data.notes)},
        )
        if seen["value"] != fingerprint:
            raise MobilepruneError(
                f"the data in {asked['spec']} changed since {self.run.path} began; "
                "restore it, or start a new run with --run"
            )
        return data

    @cached_property
    def view(self) -> View:
        """What the base network sees."""
        mean, std = self.source.normalisation() or self.data.statistics()
        return View(self.data.size, mean, std)

    def view_at(self, size: int) -> View:
        return View(size, self.view.mean, self.view.std)

    @cached_property
    def example(self) -> Tensor:
        """A batch of two images as the base sees it; on the CPU."""
        return self.view(self.data.validation.images[:2])

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names; from the journal where it has them, so that loading a result needs no data."""
        seen = self.run.journal.get("data", "fingerprint")
        return tuple(seen["classes"]) if seen else self.data.classes

    def new_model(self) -> nn.Module:
        """The base's architecture as its constructor makes it; the same weights each time for the same seed."""
        torch.manual_seed(self.seed)
        return self.source.build(len(self.classes))

    @cached_property
    def base(self) -> nn.Module:
        """The base network with its trained weights, on the CPU."""
        model = self.new_model()
        weights.load(model, self.run.path / "base" / "weights.safetensors")
        return model

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.base, self.example[:1], channel_step=self.profile.channel_step)

    @property
    def ranking(self) -> Ranking:
        """The loss that each removable block's removal costs."""
        entry = self.run.journal.get("ranking", "blocks")
        if entry is None:
            raise MobilepruneError(f"{self.run.path} has no base yet; run `mobileprune profile {self.run.path}` first")
        return dict(entry["loss_increase"])

    def schedule(self, what: str) -> Schedule:
        """The training schedule of ``base``, ``probe`` or ``result``."""
        training = self.asked["training"]
        rate = training["learning_rate" if what == "base" else "finetune_learning_rate"]
        return Schedule(
            epochs=training[f"{what}_epochs"],
            learning_rate=rate,
            batch_size=training["batch_size"],
            distillation=0.0 if what == "base" else training["distillation"],
            bfloat16=training["bfloat16"],
        )

    def folder(self, *parts: str) -> Path:
        return self.run.folder(*parts)
