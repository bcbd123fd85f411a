"""Training: it learns, repeats itself, resumes bit by bit, and says when it diverges."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobileprune.data import ImageData, Split, load_data
from mobileprune.errors import MobilepruneError
from mobileprune.training import threads
from mobileprune.training.batches import View
from mobileprune.training.distill import distillation_loss
from mobileprune.training.evaluate import evaluate, usual_batch
from mobileprune.training.finetune import Progress, Schedule, Teacher, fit
from mobileprune.training.rates import find_rate
from mobileprune.training.speed import fastest_setting

VIEW = View(16, (0.5,) * 3, (0.5,) * 3)
SCHEDULE = Schedule(epochs=3, learning_rate=0.1, batch_size=32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of a sum over threads is not fixed; one thread repeats itself bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", image_size=16)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_it_learns_and_repeats_itself(data: ImageData) -> None:
    first, second = net(), net()
    before = evaluate(first, data.validation, VIEW).accuracy
    fit(first, data, VIEW, SCHEDULE, seed=1)
    fit(second, data, VIEW, SCHEDULE, seed=1)
    after = evaluate(first, data.validation, VIEW)
    assert after.accuracy > max(0.6, before + 0.3)
    assert same(first, second)
    assert not first.training
    third = net()
    fit(third, data, VIEW, SCHEDULE, seed=2)
    assert not same(first, third)


class WithAuxiliary(nn.Module):
    """Gives a second set of logits while it is trained, as torchvision's GoogLeNet and Inception do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        logits: torch.Tensor = self.network(x)
        return (logits, logits.detach()) if self.training else logits


def test_what_a_network_gives_besides_its_logits_changes_nothing(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_AVAILABLE", 1)  # more change the order of sums
    plain, other = net(), WithAuxiliary(net())
    schedule = replace(SCHEDULE, epochs=1)
    for model in (plain, other):
        fit(model, data, VIEW, schedule, seed=1, teacher=Teacher(net().eval(), VIEW))
    assert same(plain, other.network)
    monkeypatch.setattr(threads, "_AVAILABLE", 2)
    images, labels = VIEW(data.train.images[:4]), data.train.labels[:4]
    assert threads.use_fastest_threads(other, images, labels, bfloat16=False) in (1, 2)
    assert len(fastest_setting(other, images, labels)[1]) == 4


class _KilledError(Exception):
    pass


_RECIPES = {
    "plain": SCHEDULE,
    "averaged and mixed": replace(SCHEDULE, ema=0.99, mixup=0.2, cutmix=1.0),
    "adamw": replace(SCHEDULE, optimizer="adamw", learning_rate=0.002, shape="linear"),
}


@pytest.mark.parametrize(
    ("recipe", "killed_after"),
    [("plain", 100), ("plain", 1500), ("plain", 4200), ("averaged and mixed", 3000), ("adamw", 3000)],
)
def test_resuming_gives_the_very_same_weights(data: ImageData, tmp_path: Path, recipe: str, killed_after: int) -> None:
    schedule = _RECIPES[recipe]
    whole = net()
    fit(whole, data, VIEW, schedule, seed=3)
    checkpoint = tmp_path / "state.pt"

    def die(progress: Progress) -> None:
        if progress.seen >= killed_after:
            raise _KilledError

    with pytest.raises(_KilledError):
        fit(net(), data, VIEW, schedule, seed=3, progress=die, checkpoint=checkpoint)
    seen: list[int] = []
    resumed = net()
    fit(resumed, data, VIEW, schedule, seed=3, progress=lambda p: seen.append(p.seen), checkpoint=checkpoint)
    assert same(whole, resumed)
    assert seen[0] > (killed_after - 1) // len(data.train) * len(data.train)  # finished epochs are not done again
    finished = net()  # killed when all was trained and nothing yet kept elsewhere
    fit(finished, data, VIEW, schedule, seed=3, progress=lambda _: pytest.fail("trained again"), checkpoint=checkpoint)
    assert same(whole, finished)


def test_divergence_is_one_sentence(data: ImageData) -> None:
    with pytest.raises(MobilepruneError, match=r"diverged in epoch 1 .* lower --learning-rate"):
        fit(net(), data, VIEW, replace(SCHEDULE, learning_rate=1e30), seed=0)


def test_a_teacher_is_followed_where_labels_say_nothing(data: ImageData) -> None:
    teacher = net()
    fit(teacher, data, VIEW, SCHEDULE, seed=1)
    shuffled = Split(data.train.images, data.train.labels[torch.randperm(len(data.train))])
    noise = replace(data, train=shuffled)
    student = net()
    schedule = replace(SCHEDULE, distillation=1.0, epochs=4)
    fit(student, noise, VIEW, schedule, seed=2, teacher=Teacher(copy.deepcopy(teacher), VIEW))
    assert evaluate(student, data.validation, VIEW).accuracy > 0.6


def test_distillation_loss_is_zero_only_for_equal_answers() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert distillation_loss(logits, logits).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits, logits + 5).item() == pytest.approx(0, abs=1e-5)  # a shift changes no answer
    other = torch.tensor([[3.0, 2.0, 1.0]])
    p, q = F.softmax(other / 2, 1), F.softmax(logits / 2, 1)
    expected = 4 * float((p * (p / q).log()).sum())
    assert distillation_loss(logits, other, temperature=2.0).item() == pytest.approx(expected, rel=1e-5)


def test_progress_tells_how_many_images_were_recognised(data: ImageData) -> None:
    class Three(nn.Module):
        """Answers 3 whatever it sees, and learns nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias + F.one_hot(torch.full((len(x),), 3), len(data.classes)).float()

    told: list[Progress] = []
    fit(Three(), data, VIEW, replace(SCHEDULE, epochs=1), seed=0, progress=told.append)
    sizes = [b - a for a, b in itertools.pairwise([0, *(p.seen for p in told)])]
    recognised = sum(size * (p.accuracy or 0) for size, p in zip(sizes, told, strict=True))
    assert sum(sizes) == len(data.train)
    assert recognised == pytest.approx(int((data.train.labels == 3).sum()))
    told.clear()
    fit(Three(), data, VIEW, replace(SCHEDULE, epochs=1, mixup=0.2), seed=0, progress=told.append)
    assert {p.accuracy for p in told} == {None}


def test_score_of_a_known_network(data: ImageData) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias.expand(len(x), 10)

    score = evaluate(Constant(), data.validation, VIEW, batch_size=100)
    zeros = int((data.validation.labels == 0).sum())
    assert score.accuracy == pytest.approx(zeros / len(data.validation))
    assert score.loss == pytest.approx(math.log(10), rel=1e-5)
    assert score.std > 0


def test_the_callers_random_numbers_are_its_own(data: ImageData) -> None:
    def drawn() -> tuple[float, float]:
        return float(torch.rand(())), float(np.random.rand())

    torch.manual_seed(5)
    np.random.seed(5)
    expected = [drawn(), drawn()]
    few, model = replace(data, train=data.train.sample(64)), net()
    torch.manual_seed(5)
    np.random.seed(5)
    fit(model, few, VIEW, replace(SCHEDULE, epochs=1, mixup=0.2), seed=1)
    assert drawn() == expected[0]
    find_rate(model, few, VIEW, replace(SCHEDULE, mixup=0.2), seed=1)
    assert drawn() == expected[1]


def test_trying_threads_changes_nothing_but_their_number(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = net(), VIEW(data.train.images[:4])
    before = copy.deepcopy(model)
    monkeypatch.setattr(threads, "_AVAILABLE", 2)
    seconds = {1: 0.5, 2: 0.1}
    monkeypatch.setattr(threads, "_time", lambda model, images, labels, count, bfloat16: seconds[count])
    assert threads.use_fastest_threads(model, images, data.train.labels[:4], bfloat16=False) == 2
    seconds[2] = 0.9
    assert threads.use_fastest_threads(model, images, data.train.labels[:4], bfloat16=False) == 1
    monkeypatch.undo()
    monkeypatch.setattr(threads, "_AVAILABLE", 2)
    assert threads.use_fastest_threads(model, images, data.train.labels[:4], bfloat16=False) in (1, 2)
    assert same(model, before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("side", "device", "batch"), [(32, "cpu", 256), (160, "cpu", 64), (4000, "cpu", 1), (160, "cuda", 256)]
)
def test_a_cpu_scores_fewer_large_images_at_once(side: int, device: str, batch: int) -> None:
    assert usual_batch(side, torch.device(device)) == batch
