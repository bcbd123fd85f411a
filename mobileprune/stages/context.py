"""What the stages share: everything that follows from a run's question, built when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from device_profiles.profile import DeviceProfile
from mobileprune.data import ImageData, load_data
from mobileprune.engine import Engine, LocalEngine
from mobileprune.errors import MobilepruneError
from mobileprune.given import images_of
from mobileprune.models import ModelSource
from mobileprune.progress import Display
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.blocks import Ranking
from mobileprune.randomness import own_randomness
from mobileprune.request import timed_format
from mobileprune.run import Run
from mobileprune.stages import weights
from mobileprune.stages.records import profile_of
from mobileprune.training.batches import View
from mobileprune.training.schedule import AUTO, Schedule
from mobileprune.training.speed import PLAIN, Setting

_RATES = {"base": "learning_rate", "probe": "finetune_learning_rate", "result": "finetune_learning_rate"}
# What run.toml says under [training] in the words of Schedule.
_RECIPE = (
    "batch_size", "optimizer", "shape", "warm_up", "momentum", "weight_decay", "label_smoothing", "mixup", "cutmix",
    "ema", "distillation", "temperature",
)  # fmt: skip


class Context:
    """A run, where to report to, and the model, data and device that the run's question names."""

    def __init__(self, run: Run, display: Display, engine: Engine | None = None) -> None:
        self.run = run
        self.display = display
        self.engine: Engine = engine or LocalEngine()

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

    @property
    def has_checkpoint(self) -> bool:
        """Whether the base begins with weights from a file."""
        return "checkpoint" in self.asked["model"]

    @cached_property
    def profile(self) -> DeviceProfile:
        return profile_of(self.run)

    @property
    def precision(self) -> str:
        """Of the exported files, and of those that are timed."""
        return str(self.asked.get("precision", "float32"))

    @property
    def format(self) -> str:
        """The format whose latency the budgets are about: the profile's, where it has the run's precision."""
        return timed_format(self.profile, self.precision)

    @property
    def timing_format(self) -> str:
        """The format of throw-away files; a profile without a device reads any, and ONNX is written fastest."""
        return "onnx" if self.profile.kind == "predicted" else self.format

    @cached_property
    def data(self) -> ImageData:
        """The images; MobilepruneError when they are no longer those that the run began with."""
        asked = self.asked["data"]
        root = asked.get("root")
        data = images_of(asked["spec"]) or load_data(
            asked["spec"],
            asked.get("image_size"),
            self.seed,
            labels=asked.get("labels"),
            root=Path(root) if root else None,
            download=bool(asked.get("download")),
        )
        fingerprint = data.fingerprint()
        if self.run.journal.get("data", "fingerprint") is None:
            for note in data.notes:
                self.display.say(note, style="yellow")
        seen = self.run.once(
            "data",
            "fingerprint",
            lambda: {
                "value": fingerprint,
                "classes": list(data.classes),
                "size": data.size,
                "train": len(data.train),
                "notes": list(data.notes),
            },
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
        mean, std = self.source.normalisation(checkpoint=self.has_checkpoint) or self.data.statistics()
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

    @own_randomness()
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
        steps = self.profile.channel_steps or self.profile.channel_step
        return Anatomy.of(self.base, self.example[:1], channel_step=steps)

    @property
    def ranking(self) -> Ranking:
        """The loss that each removable block's removal costs."""
        entry = self.run.journal.get("ranking", "blocks")
        if entry is None:
            raise MobilepruneError(f"{self.run.path} has no base yet; run `mobileprune profile {self.run.path}` first")
        return dict(entry["loss_increase"])

    def schedule(self, what: str) -> Schedule:
        """The training schedule of ``base``, ``probe`` or ``result``: one recipe, but for epochs, rate and teacher."""
        training = self.asked["training"]
        rate = training[_RATES[what]]
        if rate == AUTO:
            found = self.run.journal.get("training", _RATES[what])
            rate = found["rate"] if found else 0.0  # not looked for yet
        setting = self.setting
        recipe = {name: training[name] for name in _RECIPE if name in training}
        return Schedule(
            epochs=training[f"{what}_epochs"],
            learning_rate=rate,
            **{**recipe, **({"distillation": 0.0} if what == "base" else {})},
            bfloat16=setting.bfloat16,
            channels_last=setting.channels_last,
        )

    @property
    def setting(self) -> Setting:
        """Arithmetic and memory layout: as asked, else as measured when the run began."""
        training = self.asked["training"]
        if (precision := training.get("precision", AUTO)) != AUTO:
            return Setting(precision == "bfloat16", channels_last=True)
        found = self.run.journal.get("training", "setting")
        return Setting(bool(found["bfloat16"]), bool(found["channels_last"])) if found else PLAIN

    def folder(self, *parts: str) -> Path:
        return self.run.folder(*parts)
