"""Jobs and where they run; a cluster's part is in tests/peers."""

from __future__ import annotations

import io
import shutil
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from rich.console import Console
from safetensors.torch import load_file

from mobileprune import progress
from mobileprune.engine import Job, LocalEngine, Parcel, RayEngine, make_engine
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.progress import Pace, Quiet, Terminal
from mobileprune.request import Request, complete, open_or_create, words_of
from mobileprune.run import Journal, Run
from mobileprune.scale import BASE, Scale
from mobileprune.search.probes import parent_of
from mobileprune.stages.accuracies import probed_scales, start_of
from mobileprune.stages.context import Context
from mobileprune.stages.probe import probe, probe_one
from mobileprune.stages.profile import profile
from mobileprune.stages.prune import cut
from mobileprune.stages.records import read_costs
from mobileprune.stages.remaining import images_left, probe_cost, training_under_way
from mobileprune.stages.solve import set_budgets
from mobileprune.stages.train import train_base
from mobileprune.words import duration


def test_a_job_names_what_it_reads_and_leaves() -> None:
    small, smaller = Scale(1.0, 0.5, 1.0), Scale(0.5, 0.5, 1.0)
    first, second = Job("probe", "p", small, BASE), Job("probe", "p", smaller, small)
    assert first.inputs == []
    assert second.inputs == first.outputs
    assert second.outputs == [f"probes/{second.key}/recipe.json", f"probes/{second.key}/weights.safetensors"]
    last = Job("finetuned", "f", small)
    assert last.inputs == [f"results/{last.key}/recipe.json", f"results/{last.key}/pruned.safetensors"]
    assert last.outputs == [f"results/{last.key}/weights.safetensors"]


def test_a_parcel_carries_files_and_entries(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a", {"seed": 0})
    run.journal.append("base", "score", validation=0.5)
    run.journal.append("latency", "x", ms=3)
    (run.folder("probes", "s") / "weights").write_bytes(b"123")
    parcel = Parcel.of(run, ["run.toml", "probes/s/weights"], ("base",))
    parcel.unpack(tmp_path / "b")
    assert (tmp_path / "b" / "probes" / "s" / "weights").read_bytes() == b"123"
    assert Run.open(tmp_path / "b").asked == run.asked
    assert [e["kind"] for e in parcel.entries] == ["base"]
    assert parcel.key != Parcel.of(run, ["run.toml"], ("base",)).key


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base is trained and whose device is known."""
    request = Request(
        model=f"{TINY}:tiny", model_arguments=("blocks=1",), image_size=16, base_epochs=1, probe_epochs=1, probes=5,
        profile_scales=10, rounds=2, round_seconds=0.0, training_precision="float32",
    )  # fmt: skip
    run = open_or_create(tmp_path_factory.mktemp("profiled") / "run", request)
    set_budgets(run, ["0.5MMACs"])
    profile(Context(run, Quiet()))
    return run.path


@pytest.fixture(scope="module")
def probed(profiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run after its probes, one after the other."""
    path = tmp_path_factory.mktemp("probed") / "run"
    shutil.copytree(profiled, path)
    probe(Context(Run.open(path), Quiet()))
    return path


def found_probes(path: Path) -> dict[str, object]:
    return {e["key"]: (e["parent"], e["validation"]) for e in Journal(path / "journal.jsonl").all("probe")}


class Shuffling(LocalEngine):
    """Does the job that came last first, as a cluster might."""

    def wait(self, ctx: Context):  # type: ignore[no-untyped-def]
        self._jobs.rotate(1)
        return super().wait(ctx)


def test_probes_do_not_depend_on_their_order(profiled: Path, probed: Path, tmp_path: Path) -> None:
    shutil.copytree(profiled, tmp_path / "run")
    probe(Context(Run.open(tmp_path / "run"), Quiet(), Shuffling()))
    assert found_probes(tmp_path / "run") == found_probes(probed)
    assert list(found_probes(tmp_path / "run")) != list(found_probes(probed))


def test_a_result_begins_with_the_weights_of_its_own_probe(probed: Path) -> None:
    ctx = Context(Run.open(probed), Quiet())
    entry = ctx.run.journal.all("probe")[-1]
    scale = Scale(*entry["scale"])
    assert start_of(ctx.run, scale) == scale
    network, weights = cut(ctx, scale, scale), load_file(probed / "probes" / str(entry["key"]) / "weights.safetensors")
    assert all(torch.equal(network.model.state_dict()[name], weights[name]) for name in weights)
    other = next(s for s in ctx.anatomy.lattice() if s not in probed_scales(ctx.run))
    assert start_of(ctx.run, other) == parent_of(other, probed_scales(ctx.run)) != other


def test_a_failed_probe_leaves_the_finished_ones(
    profiled: Path, probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(profiled, tmp_path / "run")
    calls: list[Job] = []

    def third_fails(ctx: Context, job: Job) -> dict[str, object]:
        calls.append(job)
        if len(calls) == 3:
            raise MobilepruneError("the power went")
        return probe_one(ctx, job)

    with monkeypatch.context() as patch:
        patch.setattr("mobileprune.stages.probe.probe_one", third_fails)
        with pytest.raises(MobilepruneError, match="the power went"):
            probe(Context(Run.open(tmp_path / "run"), Quiet()))
    assert len(found_probes(tmp_path / "run")) == 2
    probe(Context(Run.open(tmp_path / "run"), Quiet()))
    assert found_probes(tmp_path / "run") == found_probes(probed)


class Interrupted(Quiet):
    """A display at which a person presses Ctrl-C when the second probe is told of."""

    def __init__(self) -> None:
        self.told = 0

    def say(self, text: str, style: str = "") -> None:
        self.told += text.startswith("    ")
        if self.told == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["in a probe", "between two"])
def test_an_interrupted_engine_has_no_jobs_left(
    profiled: Path, probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    shutil.copytree(profiled, tmp_path / "run")
    calls: list[Job] = []

    def second_is_interrupted(ctx: Context, job: Job) -> dict[str, object]:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return probe_one(ctx, job)

    engine, run = LocalEngine(), Run.open(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "in a probe":
            patch.setattr("mobileprune.stages.probe.probe_one", second_is_interrupted)
        probe(Context(run, Quiet() if where == "in a probe" else Interrupted(), engine))
    assert engine.pending == 0
    if where == "between two":  # what goes on is the same
        return
    probe(Context(run, Quiet(), engine))
    assert found_probes(tmp_path / "run") == found_probes(probed)
    keys = [entry["key"] for entry in run.journal.entries if entry["kind"] == "probe"]
    assert len(set(keys)) == len(keys)


def test_an_interrupted_cluster_is_left_no_jobs(tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cancelled: list[str] = []
    engine = RayEngine.__new__(RayEngine)
    engine._ray = SimpleNamespace(wait=interrupted, cancel=lambda task, force: cancelled.append(task))
    engine._jobs = {name: Job("probe", name, BASE) for name in ("first", "second")}
    with pytest.raises(KeyboardInterrupt):
        engine.wait(Context(Run.create(tmp_path / "run", {"seed": 0}), Quiet()))
    assert cancelled == ["first", "second"]
    assert engine.pending == 0


def test_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MobilepruneError, match=r"needs Ray; run: pip install"):
        make_engine("ray")
    with pytest.raises(UsageError, match="--address is of a Ray cluster"):
        make_engine("local", "auto")
    assert isinstance(make_engine(), LocalEngine)


def test_every_choice_of_training_is_in_the_question(tmp_path: Path) -> None:
    request = Request(
        data="digits", optimizer="adamw", lr_schedule="linear", warm_up=0.2, weight_decay=0.01, label_smoothing=0.1,
        mixup=0.3, cutmix=0.4, ema=0.99, temperature=2.0, norm_images=256,
        training_precision="float32", probe_images=100,
        finetune_learning_rate="auto",
    )  # fmt: skip
    run = open_or_create(tmp_path / "run", request)
    written = tomllib.loads((tmp_path / "run" / "run.toml").read_text())["training"]
    schedule = Context(run, Quiet()).schedule("probe")
    names = ("optimizer", "warm_up", "weight_decay", "label_smoothing", "mixup", "cutmix", "ema", "temperature")
    for name in names:
        assert written[name] == getattr(schedule, name) == getattr(request, name)
    assert (schedule.shape, schedule.bfloat16) == ("linear", False)
    assert words_of(run.asked)[words_of(run.asked).index("--lr-schedule") + 1] == "linear"
    assert open_or_create(tmp_path / "run", request).asked == run.asked
    with pytest.raises(UsageError, match=r"was begun with --ema 0\.99, not 0\.5"):
        open_or_create(tmp_path / "run", Request(ema=0.5))
    with pytest.raises(UsageError, match="no optimizer 'sdg' in timm"):
        complete(Request(optimizer="sdg"))


def test_what_is_measured_at_the_start_holds_for_the_run(tmp_path: Path) -> None:
    request = Request(
        model=f"{TINY}:tiny", model_arguments=("blocks=1",), image_size=16, base_epochs=1, learning_rate="auto"
    )
    ctx = Context(open_or_create(tmp_path / "run", request), Quiet())
    train_base(ctx)
    setting = ctx.run.journal.get("training", "setting")
    assert setting is not None
    assert len(setting["seconds"]) == 4
    assert (ctx.setting.bfloat16, ctx.setting.channels_last) == (setting["bfloat16"], setting["channels_last"])
    rate = ctx.run.journal.get("training", "learning_rate")
    assert rate is not None
    assert ctx.schedule("base").learning_rate == rate["rate"] > 0
    ctx.run.journal.append("training", "setting", bfloat16=True, channels_last=False, seconds={})
    assert ctx.schedule("probe").bfloat16 is True
    assert ctx.schedule("probe").channels_last is False
    left = images_left(ctx.run)
    assert left == (8 * 4 + 16) * 1438
    ctx.run.journal.append("probe", "x", scale=[1, 1, 0.5])
    assert images_left(ctx.run) == left - 4 * 1438


def test_status_tells_of_the_training_under_way(tmp_path: Path) -> None:
    run = open_or_create(tmp_path / "run", Request(data="digits", probe_images=100, base_epochs=3))
    assert training_under_way(run) is None
    run.journal.append("data", "fingerprint", train=1000)
    run.journal.append("epoch", "base#1", images_per_s=100.0)
    found = training_under_way(run)
    assert found == {"name": "base", "epoch": 1, "images_per_s": 100.0, "left": "4 min"}  # (2 + 16) * 10 s, 8 * 4 * 1 s
    run.journal.append("base", "score", validation=0.5)
    assert training_under_way(run) is None
    run.journal.append("epoch", "probe at x#3", images_per_s=50.0)
    assert images_left(run) == 16 * 1000 + 8 * 4 * 100
    assert training_under_way(run) == {"name": "probe at x", "epoch": 3, "images_per_s": 50.0, "left": "6 min"}


def test_what_probes_cost_is_counted(probed: Path) -> None:
    run = Run.open(probed)
    costs = read_costs(run)
    shares = [costs[Scale(*e["scale"])]["macs"] / costs[BASE]["macs"] for e in run.journal.all("probe")]
    assert 0 < sum(shares) < len(shares)
    # An epoch each: three forward passes of the probe and one of its teacher; the base's 20 epochs take three each.
    assert probe_cost(run) == pytest.approx(sum(3 * share + 1 for share in shares) / 60)


def test_pace_and_duration_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace(64, 10_064) == "…"
    now[0] += 2
    assert pace(264, 10_064) == "100 images/s, all trained in 2 min"
    assert pace(264, 10_064, 1_264) == "100 images/s, probes in 10 s, all in 2 min"
    assert [duration(s) for s in (-1, 40, 95, 3599, 11100)] == ["0 s", "40 s", "2 min", "1 h 00 min", "3 h 05 min"]


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    text = io.StringIO()
    display = Terminal(Console(file=text, force_terminal=False, width=200))
    display.stage("probe", "accuracy of a few scales")
    with display.work("training", "probe 1", 200) as advance:
        advance(50, "epoch 1/4, loss 0.5")
    lines = text.getvalue().splitlines()
    assert lines[1].strip() == "probe 1: 25 %, epoch 1/4, loss 0.5"
    assert lines[2].strip().startswith("probe 1: 0 s")
