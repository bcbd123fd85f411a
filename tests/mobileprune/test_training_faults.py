"""What goes wrong in training: a loss that runs away, memory that is short; and what is done about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import SCHEDULE, VIEW, net, same
from torch import Tensor, nn

from mobileprune.data import ImageData, load_data
from mobileprune.errors import MobilepruneError
from mobileprune.training.evaluate import evaluate
from mobileprune.training.finetune import Progress, fit
from mobileprune.training.memory import out_of_memory, parts


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", image_size=16)


class Spoilt(nn.Module):
    """A network whose answers are spoilt by ``factor`` in some of its training steps."""

    def __init__(self, steps: range, factor: float) -> None:
        super().__init__()
        self.inner, self.steps, self.factor, self.count = net(), steps, factor, 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if self.training:
            self.count += 1
            if self.count in self.steps:
                return y * self.factor
        return y


STEPS = 45  # of an epoch: 1,438 images in batches of 32


@pytest.mark.parametrize(
    ("steps", "factor"), [(range(60, 61), float("nan")), (range(50, 90), 200.0)], ids=["not finite", "runs away"]
)
def test_a_divergence_goes_back_to_the_last_good_epoch(data: ImageData, steps: range, factor: float) -> None:
    model, said, seen = Spoilt(steps, factor), list[str](), list[Progress]()
    fit(model, data, VIEW, SCHEDULE, seed=0, say=said.append, progress=seen.append)
    assert said == ["training diverged in epoch 2: back to the end of epoch 1 with 0.3 times the learning rate, 0.03"]
    epochs = [p.epoch for p in seen]
    assert epochs.count(0) == STEPS  # the good one is not done again
    assert epochs.count(1) > STEPS
    assert evaluate(model, data.validation, VIEW).accuracy > 0.6


def test_the_lower_rate_outlives_a_kill(data: ImageData, tmp_path: Path) -> None:
    whole = Spoilt(range(60, 61), float("nan"))
    fit(whole, data, VIEW, SCHEDULE, seed=0)

    def die(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        broken = Spoilt(range(60, 61), float("nan"))
        fit(broken, data, VIEW, SCHEDULE, seed=0, progress=die, checkpoint=checkpoint)
    resumed = Spoilt(range(0), 1.0)
    fit(resumed, data, VIEW, SCHEDULE, seed=0, checkpoint=checkpoint)
    assert same(whole, resumed)


def test_a_network_that_no_rate_helps_is_given_up(data: ImageData) -> None:
    said: list[str] = []
    with pytest.raises(MobilepruneError, match=r"diverged in epoch 1 .* every lower one down to 0\.0027"):
        fit(Spoilt(range(1000), float("inf")), data, VIEW, SCHEDULE, seed=0, say=said.append)
    assert len(said) == 3


class Narrow(nn.Module):
    """A network on a machine whose memory holds ``most`` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        self.most, self.largest = most, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.largest = max(self.largest, len(x))
        y: Tensor = self.inner(x)
        return y


def test_short_memory_halves_the_batch_and_learns_the_same(data: ImageData) -> None:
    wide, narrow, said = Narrow(1000), Narrow(9), list[str]()
    schedule = replace(SCHEDULE, epochs=1, learning_rate=0.02)
    fit(wide, data, VIEW, schedule, seed=0)
    fit(narrow, data, VIEW, schedule, seed=0, say=said.append)
    assert [text.split(":")[0] for text in said] == ["out of memory", "out of memory"]
    assert "8 of a batch's 32 images" in said[-1]
    assert narrow.largest == 8
    for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert evaluate(narrow, data.validation, VIEW).accuracy == pytest.approx(
        evaluate(wide, data.validation, VIEW).accuracy, abs=0.01
    )


def test_memory_for_not_even_a_few_images(data: ImageData) -> None:
    with pytest.raises(MobilepruneError, match=r"not even \d images of 16 px fit into memory .*--image-size"):
        fit(Narrow(0), data, VIEW, SCHEDULE, seed=0)


def test_what_torch_says_when_memory_runs_out_is_understood() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(found.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@given(count=st.integers(2, 70), most=st.integers(2, 70))
def test_parts_hold_every_image_once_and_never_a_single_one(count: int, most: int) -> None:
    found = parts(torch.arange(count), most)
    assert torch.equal(torch.cat(found), torch.arange(count))
    assert all(len(part) >= 2 for part in found)
    assert max(map(len, found)) <= max(most, 3)
