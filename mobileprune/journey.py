"""The journey from Python: the same run folder and the same stages as the command line, with your own objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from torch import nn

from mobileprune.borrow import open_or_borrow
from mobileprune.budget import parse_budgets
from mobileprune.engine import Engine
from mobileprune.errors import UsageError
from mobileprune.given import MODULE, Normalisation, as_images, fingerprint, keep_images, keep_module
from mobileprune.models import ModelSource
from mobileprune.optimize import optimize as whole_journey
from mobileprune.progress import Advance, Display, Kind, Quiet
from mobileprune.report.page import comparison_rows, table
from mobileprune.request import Request
from mobileprune.run import Run, locked
from mobileprune.scale import Scale
from mobileprune.search.solver import Solution
from mobileprune.stages.context import Context
from mobileprune.stages.prune import restore
from mobileprune.stages.records import scale_key
from mobileprune.stages.solve import chosen_scale, current_budgets, set_budgets, solve_run
from mobileprune.stages.summary import Summary, status, summarise


@dataclass(frozen=True)
class Event:
    """What ``progress`` is called with: a stage begins, something is finished, or a piece of work has come further.

    done, total: in units of the work (images, files), for kind "progress" alone.
    """

    kind: Literal["stage", "message", "progress"]
    stage: str
    text: str
    done: float = 0.0
    total: float = 0.0


ProgressCallback = Callable[[Event], None]


class Options(TypedDict, total=False):
    """What ``optimize`` takes besides: the command line's options of the same names (`mobileprune optimize --help`)."""

    model_arguments: Sequence[str] | Mapping[str, Any]
    checkpoint: Path
    image_size: int
    seed: int
    probes: int
    confidence: float
    profile_scales: int
    rounds: int
    round_seconds: float
    base_epochs: int
    probe_epochs: int
    probe_images: int
    epochs: int
    batch_size: int
    learning_rate: float | str
    finetune_learning_rate: float | str
    distillation: float
    temperature: float
    optimizer: str
    lr_schedule: str
    warm_up: float
    weight_decay: float
    label_smoothing: float
    mixup: float
    cutmix: float
    ema: float
    norm_images: int
    training_precision: str
    precision: str
    labels: str
    data_root: Path
    download: bool


@dataclass(frozen=True)
class Result:
    """A finished run. ``summary`` is what ``mobileprune optimize --json`` prints; accuracies are fractions."""

    path: Path
    summary: Summary

    @cached_property
    def model(self) -> nn.Module:
        """The pruned, fine-tuned network in eval mode; it takes normalised (N, 3, S, S) float32."""
        return load(self.path)

    @property
    def scale(self) -> Scale:
        return Scale(**self.summary["scale"])

    @property
    def kept(self) -> bool:
        """Whether every budget is kept, as measured (or predicted, where the device is not here)."""
        return all(budget["kept"] for budget in self.summary["budgets"])

    @property
    def files(self) -> dict[str, Path]:
        """The exported files by format."""
        return {name: Path(file["path"]) for name, file in self.summary["result"]["files"].items()}

    @property
    def accuracy(self) -> float:
        """Top-1 on the test split, or on the validation split where there is none."""
        found = self.summary["result"]["accuracy"]
        return float((found["test"] or found["validation"])["accuracy"])

    @property
    def report(self) -> Path:
        return Path(self.summary["report"])

    def __str__(self) -> str:
        base, result = comparison_rows(self.summary["base"]), comparison_rows(self.summary["result"])
        lines = [f"{b['budget']} {b['verdict']}" for b in self.summary["budgets"]]
        lines += [f"{self.scale}, in {self.path}"]
        return "\n".join(lines + [f"{label}: {base.get(label, '')} -> {value}" for label, value in result.items()])

    def _repr_html_(self) -> str:
        """A table in a notebook."""
        base, result = comparison_rows(self.summary["base"]), comparison_rows(self.summary["result"])
        return table(("", "base", "result"), [(label, base.get(label, ""), value) for label, value in result.items()])


class Journey:
    """A run and its stages, each of which may be called alone; what a run has finished is not done again."""

    def __init__(
        self,
        model: nn.Module | str | None = None,
        data: Any = None,
        *,
        run: str | Path,
        budget: str | Sequence[str] = (),
        device: str | None = None,
        probes_from: str | Path | None = None,
        normalisation: Normalisation | None = None,
        flip: bool = True,
        progress: ProgressCallback | None = None,
        display: Display | None = None,
        engine: Engine | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Open or begin the run folder ``run``; see ``mobileprune.optimize`` for the arguments."""
        unknown = sorted(set(options) - {field.name for field in fields(Request)})
        if unknown:
            raise UsageError(f"no option is called {unknown[0]!r}; see `mobileprune optimize --help`")
        self.path = Path(run)
        texts = (budget,) if isinstance(budget, str) else tuple(budget)
        parse_budgets(texts)
        request = _request(model, data, device, normalisation, flip, options)
        with locked(self.path):
            self._check_network(model)
            self._run = open_or_borrow(self.path, request, None if probes_from is None else Path(probes_from))
            if texts:
                set_budgets(self._run, texts)
        shown: Display = display or (Quiet() if progress is None else _Told(progress))
        self._context = Context(self._run, shown, engine)

    def _check_network(self, model: nn.Module | str | None) -> None:
        """A run that was begun with a network goes on with that one."""
        if not isinstance(model, nn.Module) or not (self.path / "run.toml").exists():
            return
        before = Run.open(self.path).asked["model"]
        if before["library"] != MODULE or before["arguments"]["fingerprint"] != fingerprint(model):
            raise UsageError(
                f"{self.path} was begun with another network ({before['name']}) than this {type(model).__name__}: "
                "their layers differ; give that one, or name another folder with run="
            )

    def profile(self) -> None:
        """Measure the latency of a spread of scales on the device; trains the base first where it has no weights."""
        self._stage("profile")

    def probe(self) -> None:
        """Prune and briefly fine-tune a few scales, to learn what accuracy they keep."""
        self._stage("probe")

    def solve(self, budget: str | Sequence[str] = ()) -> Solution:
        """The best scale by what is known so far, in under a second and without training."""
        texts = (budget,) if isinstance(budget, str) else tuple(budget)
        return solve_run(self._run, parse_budgets(texts) or current_budgets(self._run))

    def prune(self) -> None:
        """Settle on a scale that keeps the budgets as measured, and cut it from the nearest probe."""
        self._stage("settle", "prune")

    def finetune(self) -> None:
        """Train the pruned network, taught by the base."""
        self._stage("finetune")

    def export(self) -> None:
        """Write base and result as ONNX and, where it is installed, TFLite, and verify the files in their runtimes."""
        self._stage("export")

    def bench(self) -> None:
        """Measure base and result on the device, in the same rounds."""
        self._stage("bench")

    def report(self) -> Path:
        """Write report.html; its path."""
        self._stage("report")
        return self.path / "report.html"

    def optimize(self) -> Result:
        """All stages that are not done yet. Whether the result keeps its budgets as measured is its ``kept``."""
        with self._held():
            current_budgets(self._run)  # says so now where there is none
            try:
                whole_journey(self._context)
            except UsageError:
                self._run.discard_if_unbegun()
                raise
        return self.result()

    def result(self) -> Result:
        """What a finished run came to. Raises MobilepruneError where it is not that far."""
        return Result(self.path, summarise(self._run))

    def status(self) -> dict[str, Any]:
        """How far the run is."""
        return status(self._run)

    def _stage(self, *steps: str) -> None:
        with self._held():
            for step in steps:
                getattr(import_module(f"mobileprune.stages.{step}"), step)(self._context)

    @contextmanager
    def _held(self) -> Iterator[None]:
        with locked(self.path):
            self._run.journal.refresh()
            yield


def load(run: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The finished network of a run folder, in eval mode; no pickle is read.

    The architecture is the base's constructor and recipe.json, the weights are safetensors. It takes normalised float32
    (N, 3, H, W) at the size that the run's manifest names. model: the base network, where the run was begun with a
    module and this is another process; its weights do not matter. Raises MobilepruneError where the run has no result
    yet, UsageError where ``model`` is another network.
    """
    opened = Run.open(Path(run))
    if model is not None:
        asked = opened.asked["model"]
        if asked["library"] != MODULE:
            raise UsageError(f"{run} builds its network itself ({asked['library']}:{asked['name']}): leave model out")
        if keep_module(model, None)["fingerprint"] != asked["arguments"]["fingerprint"]:
            raise UsageError(f"{run} was begun with another network than this {type(model).__name__}: layers differ")
    ctx = Context(opened, Quiet())
    folder = opened.path / "results" / scale_key(chosen_scale(opened))
    return restore(ctx, folder, "weights").model.eval()


def _request(
    model: nn.Module | str | None,
    data: Any,
    device: str | None,
    normalisation: Normalisation | None,
    flip: bool,
    options: Options,
) -> Request:
    """The question in the words of the command line; objects are kept and named."""
    given: dict[str, Any] = {**options, "device": device}
    if isinstance(model, nn.Module):
        if given.get("model_arguments"):
            raise UsageError("model_arguments are for a model that is named; this one is built already")
        given["model"] = ModelSource(MODULE, type(model).__name__, keep_module(model, normalisation))
    elif model is not None:
        given["model"] = model
    if isinstance(arguments := given.get("model_arguments"), Mapping):
        given["model_arguments"] = tuple(f"{key}={value!r}" for key, value in arguments.items())
    if data is None or isinstance(data, str | Path):
        given["data"] = None if data is None else str(data)
    else:
        given["data"] = keep_images(as_images(data, normalisation, flip=flip))
    if isinstance(model, nn.Module) and normalisation is None and data is not None and not options.get("base_epochs"):
        raise UsageError(
            "say normalisation=(mean, std) that the network's images have; ((0, 0, 0), (1, 1, 1)) for pixels in [0, 1]"
        )
    return Request(**given)


class _Told:
    """A display that calls a function."""

    def __init__(self, tell: ProgressCallback) -> None:
        self._tell, self._stage = tell, ""

    def stage(self, name: str, what: str) -> None:
        self._stage = name
        self._tell(Event("stage", name, what))

    def say(self, text: str, style: str = "") -> None:
        self._tell(Event("message", self._stage, text.strip()))

    @contextmanager
    def work(self, kind: Kind, description: str, total: float) -> Iterator[Advance]:
        def advance(done: float, note: str = "") -> None:
            text = f"{description}: {note}" if note else description
            self._tell(Event("progress", self._stage, text, done, total))

        yield advance
