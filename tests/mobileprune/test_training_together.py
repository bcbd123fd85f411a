"""Several processes train one network: real ones that exchange gradients by gloo, on the CPU."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TINY
from torch import nn

from mobileprune.data import load_data
from mobileprune.engine import LocalEngine, make_engine
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.progress import Quiet
from mobileprune.request import Request, open_or_create
from mobileprune.run import Journal
from mobileprune.scale import BASE
from mobileprune.stages.context import Context
from mobileprune.stages.prune import cut
from mobileprune.stages.together import processes
from mobileprune.stages.train import scores, train, train_base
from mobileprune.training.batches import Share, batches, images_per_epoch

# Without batch norm, and with memory for ten images at once in the second process.
PLAIN = """
import os
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )

    def forward(self, x):
        if self.training and os.environ.get("RANK") == "1" and len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.layers(x)

def plain():
    return Plain()
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of a sum over threads is not fixed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Told(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        self.said.append(text)


def context(path: Path, request: Request, count: int, display: Quiet | None = None) -> Context:
    return Context(open_or_create(path, request), display or Quiet(), LocalEngine(processes=count))


def losses(ctx: Context) -> list[float]:
    return [entry["loss"] for entry in ctx.run.journal.all("epoch")]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_make_up_the_batches_of_one_process(count: int, paired: bool) -> None:
    data = load_data("digits", image_size=16)
    few = data.train.take(range(101))  # in batches of 32: the last has five images

    def epoch(share: Share) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
        generator = torch.Generator().manual_seed(0)
        found = batches(few, 32, generator, torch.device("cpu"), flip=True, share=share, paired=paired)
        return [(b.images, b.labels, b.whole) for b in found]

    whole = epoch(Share(0, 1))
    shares = [epoch(Share(rank, count)) for rank in range(count)]
    for (images, labels, size), *parts in zip(whole, *shares, strict=False):
        together = sum(len(part[1]) for part in parts)
        assert {part[2] for part in parts} == {together}
        assert together == size or paired
        assert torch.equal(torch.cat([part[0] for part in parts])[:together], images[:together])
        assert torch.equal(torch.cat([part[1] for part in parts])[:together], labels[:together])
        assert all(len(part[1]) >= 2 and (len(part[1]) % 2 == 0 or not paired) for part in parts)
    for share in shares:
        assert sum(size for _, _, size in share) == images_per_epoch(101, 32, Share(0, count), paired=paired)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """The question for a network without batch norm, whose training is the same in any number of processes."""
    file = tmp_path_factory.mktemp("plain") / "plain.py"
    file.write_text(PLAIN)
    return Request(
        model=f"{file}:plain", image_size=16, base_epochs=2, batch_size=40, learning_rate=0.05,
        training_precision="float32",
    )  # fmt: skip


def test_two_processes_compute_what_one_computes_also_when_memory_is_short(plain: Request, tmp_path: Path) -> None:
    found: list[tuple[nn.Module, list[float]]] = []
    told = Told()
    for count in (1, 2):
        ctx = context(tmp_path / str(count), plain, count, told)
        model = ctx.new_model()
        train(ctx, model, ctx.view, "base", "base")
        found.append((model, losses(ctx)))
    (one, of_one), (two, of_two) = found
    assert of_two == pytest.approx(of_one, rel=1e-3)
    untrained = context(tmp_path / "1", plain, 1).new_model()
    for a, b, before in zip(one.parameters(), two.parameters(), untrained.parameters(), strict=True):
        assert (a - b).norm().item() < 0.01 * (a - before).norm().item()
    assert [text for text in told.said if "memory" in text] == [
        "out of memory: 10 of a batch's 40 images are taken at once in each process, from the last finished epoch on"
    ]


def test_what_goes_wrong_in_a_process_is_one_sentence(plain: Request, tmp_path: Path) -> None:
    ctx = context(tmp_path / "run", Request(**{**vars(plain), "learning_rate": 1e30, "batch_size": 16}), 2)
    with pytest.raises(MobilepruneError, match=r"^training diverged in epoch 1 .* lower --learning-rate"):
        train(ctx, ctx.new_model(), ctx.view, "base", "base")


TINY_NET = Request(
    model=f"{TINY}:tiny", model_arguments=("blocks=1",), image_size=16, base_epochs=3, probe_epochs=1, batch_size=32,
    training_precision="float32", finetune_learning_rate=0.05,
)  # fmt: skip


def children() -> list[psutil.Process]:
    """The processes that train for this one."""
    alive = [process for process in psutil.Process().children() if process.status() != psutil.STATUS_ZOMBIE]
    return [process for process in alive if "mobileprune.stages.together" in process.cmdline()]


class Killing(Quiet):
    """Kills the second process when the second epoch is under way."""

    def work(self, kind, description, total):  # type: ignore[no-untyped-def]
        @contextmanager
        def working() -> Iterator[object]:
            def advance(done: float, note: str = "") -> None:
                if done > 0.5 * total and len(found := children()) == 2:
                    found[1].kill()

            yield advance

        return working()


def test_a_killed_process_costs_its_epoch(tmp_path: Path) -> None:
    whole, killed = context(tmp_path / "whole", TINY_NET, 2), context(tmp_path / "killed", TINY_NET, 2, Killing())
    train_base(whole)
    with pytest.raises(MobilepruneError, match=r"^one of 2 processes .* was ended by SIGKILL .* same command again$"):
        train_base(killed)
    assert children() == []
    done = len(losses(killed))
    assert 1 <= done < 3
    train_base(again := context(tmp_path / "killed", TINY_NET, 2))
    epochs = [entry["key"] for entry in again.run.journal.entries if entry["kind"] == "epoch"]
    assert epochs == ["base#1", "base#2", "base#3"]
    for name, value in whole.base.state_dict().items():
        assert torch.equal(value, again.base.state_dict()[name]), name
    assert not list((tmp_path / "killed" / "training").glob("base*"))
    train_base(one := context(tmp_path / "one", TINY_NET, 1))
    accuracies = [ctx.run.journal.get("base", "score")["validation"]["accuracy"] for ctx in (one, whole)]
    assert min(accuracies) > 0.6
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.05)  # statistics of batch norm are of half a batch each
    _a_pruned_network(whole)


def _a_pruned_network(ctx: Context) -> None:
    """Each process makes it from its recipe, and learns from the base."""
    smaller = min(ctx.anatomy.lattice(), key=lambda scale: abs(scale.nominal_cost - 0.5))
    network = cut(ctx, smaller, BASE)
    view = ctx.view_at(network.size)
    before = scores(ctx, network.model, view)["validation"]["accuracy"]
    train(ctx, network.model, view, "probe", "probe", distill=True, recipe=network.recipe)
    assert scores(ctx, network.model, view)["validation"]["accuracy"] > before


_DRIVER = """
import sys
from pathlib import Path
from mobileprune.engine import LocalEngine
from mobileprune.progress import Quiet
from mobileprune.run import Run
from mobileprune.stages.context import Context
from mobileprune.stages.train import train_base
train_base(Context(Run.open(Path(sys.argv[1])), Quiet(), LocalEngine(processes=2)))
"""


def test_none_outlives_the_command(tmp_path: Path) -> None:
    context(tmp_path / "run", Request(**{**vars(TINY_NET), "base_epochs": 1000}), 2)
    with subprocess.Popen([sys.executable, "-c", _DRIVER, tmp_path / "run"], stderr=subprocess.DEVNULL) as driver:
        while not Journal(tmp_path / "run" / "journal.jsonl").all("epoch"):
            assert driver.poll() is None
            time.sleep(0.1)
        found = psutil.Process(driver.pid).children()
        assert len(found) == 2
        driver.send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(found, timeout=60)[1]


def test_how_many_there_are(plain: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(asked: int | None, batch: int = 64) -> int:
        request = Request(**{**vars(plain), "batch_size": batch})
        path = tmp_path / f"{batch}"
        return processes(Context(open_or_create(path, request), Quiet(), LocalEngine(processes=asked)))

    assert count(None) == 1
    assert count(3) == 3
    with pytest.raises(UsageError, match=r"--processes 33: a batch of 64 images is too small"):
        count(33)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert count(None) == 4  # of 16 images each
    assert count(None, 512) == 8
    assert count(1, 512) == 1
    with pytest.raises(UsageError, match=r"--processes 9: each trains on a GPU of its own, and there are 8"):
        count(9, 512)
    with pytest.raises(UsageError, match=r"--processes is of one machine"):
        make_engine("ray", processes=2)
