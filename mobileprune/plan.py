"""``optimize --dry-run``: what would be done, on what, how long it should take and how much disk it needs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

import exporters
from mobileprune.borrow import open_or_borrow
from mobileprune.budget import budgets_key, parse_budgets
from mobileprune.progress import Quiet
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.request import Request, open_or_create
from mobileprune.run import Journal
from mobileprune.scale import Scale
from mobileprune.stages.context import Context
from mobileprune.stages.files import FORMATS
from mobileprune.stages.losses import MOST, next_untrained
from mobileprune.stages.records import probe_limit, scale_key
from mobileprune.stages.train import check_classifier
from mobileprune.training.speed import fastest_setting
from mobileprune.words import counted, duration

_TRIAL_IMAGES = 64
_EXPORT_S = 15.0  # of one file with its verification; rough
_DRAFT_S = 0.5  # of a throw-away ONNX file; a TFLite one takes as long as a final one
_SCORED_IMAGES = 10_000  # that could be trained on in the time in which those networks are cut and scored; rough
_MEGA, _GIGA = 1e6, 1e9


@dataclass(frozen=True)
class Work:
    """One stage: what it does, whether it is done, and how many seconds it should take."""

    stage: str
    what: str
    seconds: float
    done: bool = False


@dataclass(frozen=True)
class Plan:
    """seconds: of all that is not done. disk_bytes: what the run folder grows to. images_per_s: in training, here."""

    run: str
    model: str
    data: str
    device: str
    budgets: tuple[str, ...]
    images_per_s: float
    work: tuple[Work, ...]
    disk_bytes: float
    free_bytes: float
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(work.seconds for work in self.work if not work.done)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}

    def rows(self) -> list[tuple[str, str]]:
        """The plan for people: what each line is about, and what it says."""
        rows = [
            ("run", self.run),
            ("model", self.model),
            ("data", self.data),
            ("device", self.device),
            ("budget", " and ".join(self.budgets)),
            ("", ""),
        ]
        for work in self.work:
            cost = "done" if work.done else f"about {duration(work.seconds)}"
            rows.append((work.stage, f"{work.what}: {cost}"))
        speed = f"{self.images_per_s:.0f} images/s in training, timed here just now on the whole network"
        disk = f"about {self.disk_bytes / _MEGA:.0f} MB; {self.free_bytes / _GIGA:.0f} GB are free"
        rows += [("", ""), ("in all", f"about {duration(self.seconds)} at {speed}"), ("disk", disk)]
        return rows + [("note", note) for note in self.notes]


def plan(path: Path, request: Request, budgets: Sequence[str], probes_from: Path | None = None) -> Plan:
    """What ``optimize`` would do in ``path``, where nothing is written. Raises what it would raise at its start.

    The time comes from timing training steps of the base here and counting images; measuring takes what its protocol
    takes; exporting is a rough figure.
    """
    with tempfile.TemporaryDirectory(prefix="mobileprune-plan-") as folder:
        copy = Path(folder) / "run"
        if (path / "run.toml").exists():
            open_or_create(path, request)  # the checks of a run that goes on
            probes_from = None  # it has them
            (copy / "profile").mkdir(parents=True)
            for name in ("run.toml", "journal.jsonl", "profile/lattice.json"):
                if (path / name).exists():
                    shutil.copy(path / name, copy / name)
        run = open_or_borrow(copy, request, probes_from)
        asked = budgets or _asked_before(run.journal)
        parse_budgets(asked)
        return _plan(Context(run, Quiet()), path, tuple(asked))


def _asked_before(journal: Journal) -> Sequence[str]:
    newest = journal.newest("question")
    return newest["budgets"] if newest else ()


def _plan(ctx: Context, path: Path, budgets: tuple[str, ...]) -> Plan:
    check_classifier(ctx)
    model = ctx.new_model()
    anatomy = Anatomy.of(model, ctx.example[:1], channel_step=ctx.profile.channel_steps or ctx.profile.channel_step)
    cost = anatomy.cost(Scale(), dict.fromkeys((b.name for b in anatomy.blocks), 1.0))
    speed = images_per_second(ctx, model)
    lattice, data = anatomy.lattice(), ctx.data
    splits = [f"{len(data.train):,} to train, {len(data.validation):,} to validate"]
    splits += [f"{len(data.test):,} to test"] if data.test is not None else []
    installed = [name for name in FORMATS if exporters.available(name) is None]
    free = next(p for p in (path, *path.resolve().parents) if p.exists())
    weights = 4 * cost.params
    kept = 1 + ctx.asked["probes"] + 2  # base, probes, and the result before and after its fine-tuning
    return Plan(
        run=str(path) + (" (goes on)" if (path / "run.toml").exists() else " (new)"),
        model=(
            f"{ctx.source.spec}, {cost.macs / _MEGA:.4g} MMACs, {cost.params / _MEGA:.3g} MParams; "
            f"{len(lattice)} scales down to {lattice.smallest}"
        ),
        data=f"{data.name}: {', '.join(splits)}; {len(data.classes)} classes, {data.size} px",
        device=f"{ctx.profile.title}, latency {'predicted' if ctx.profile.kind == 'predicted' else 'measured'}",
        budgets=budgets,
        images_per_s=speed,
        work=tuple(_work(ctx, speed, installed, budgets)),
        disk_bytes=weights * kept + 2 * len(installed) * weights + 4 * weights,
        free_bytes=float(shutil.disk_usage(free).free),
        notes=(*anatomy.notes, *data.notes),
    )


def images_per_second(ctx: Context, model: nn.Module) -> float:
    """How many images a second the base is trained on here, by a few training steps as the run would take them."""
    few = ctx.data.train.sample(_TRIAL_IMAGES)
    _, seconds = fastest_setting(model.to(ctx.device), ctx.view(few.images.to(ctx.device)), few.labels.to(ctx.device))
    model.cpu()
    return len(few) / min(seconds.values())


def _answered(journal: Journal, budgets: Sequence[str]) -> str | None:
    """The scale that this question was settled on before, as the journal names it."""
    answer = journal.get("answer", budgets_key(parse_budgets(budgets)))
    return scale_key(Scale(*answer["scale"])) if answer else None


def _scored(ctx: Context) -> bool:
    """Whether all networks are scored that are before probes: where there is no profile yet, those of another run."""
    if ctx.run.journal.newest("latency") is None:
        return ctx.run.journal.newest("untrained") is not None
    return next_untrained(ctx.run) is None


def _work(ctx: Context, speed: float, installed: Sequence[str], budgets: Sequence[str]) -> list[Work]:
    asked, journal, training = ctx.asked, ctx.run.journal, ctx.asked["training"]
    images = dict.fromkeys(("base", "probe", "result"), len(ctx.data.train))
    images["probe"] = min(images["probe"], training.get("probe_images") or images["probe"])
    taught = 1.33 if training["distillation"] else 1.0  # the teacher's forward pass
    each = {what: training[f"{what}_epochs"] * count / speed for what, count in images.items()}
    scales, rounds = asked["profile_scales"], asked["measuring"]
    timed = 0.0 if ctx.profile.kind == "predicted" else rounds["rounds"] * max(rounds["round_seconds"], 0.05)
    draft = _DRAFT_S if ctx.timing_format == "onnx" else _EXPORT_S
    done = len(journal.all("probe"))
    limit = probe_limit(ctx.run, budgets_key(parse_budgets(budgets)))
    waiting = max(0, limit - done)
    probed = f"at most {limit} scales, {counted(training['probe_epochs'], 'epoch')} each"
    latencies = len(journal.all("latency"))
    answered = _answered(journal, budgets)
    base = counted(training["base_epochs"], "epoch") if training["base_epochs"] else "taken as given, scored"

    def finished(kind: str) -> bool:
        return answered is not None and journal.get(kind, answered) is not None

    return [
        Work("base", base, each["base"] + 3, journal.get("base", "score") is not None),
        Work("profile", f"latency of {scales} scales, {rounds['rounds']} rounds", scales * (timed + draft),
             latencies >= scales),
        Work("score", f"up to {3 * MOST} networks cut along one dimension, not trained", _SCORED_IMAGES / speed,
             waiting == 0 or _scored(ctx)),
        Work("probe", probed + (f", {done} done" if done else ""), waiting * each["probe"] * taught, waiting == 0),
        Work("solve", "the best scale, measured", 3 * (timed + draft), answered is not None),
        Work("finetune", f"the result, {counted(training['result_epochs'], 'epoch')}", each["result"] * taught,
             finished("finetuned")),
        Work("export", f"base and result as {' and '.join(installed)}", 2 * len(installed) * _EXPORT_S,
             any(e["key"].startswith(f"{answered}.") for e in journal.all("artifact"))),
        Work("bench", "their files, in the same rounds", 2 * len(installed) * timed + 3, finished("measured")),
        Work("report", "report.html", 2.0, finished("report")),
    ]  # fmt: skip
