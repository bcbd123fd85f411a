"""The choices of a recipe: rates, optimisers, mixing, averaging, range test, and the machine's fastest arithmetic."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
from test_training import SCHEDULE, VIEW, net, same
from torch import nn

from mobileprune.data import ImageData, load_data
from mobileprune.errors import UsageError
from mobileprune.training import speed
from mobileprune.training.evaluate import evaluate
from mobileprune.training.finetune import fit
from mobileprune.training.rates import find_rate
from mobileprune.training.schedule import Rates, check_names, make_optimizer
from mobileprune.training.speed import PLAIN, Setting, fastest_setting


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", image_size=16)


def rates(shape: str, images: int = 320, warm_up: float = 0.1) -> list[float]:
    """The rate of every step of 10 epochs of 10 steps."""
    schedule = replace(SCHEDULE, epochs=10, learning_rate=0.5, shape=shape, warm_up=warm_up)
    optimizer = make_optimizer(net(), schedule)
    plan = Rates(optimizer, schedule, images)
    found = []
    for step in range(100):
        plan.set(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_rates_warm_up_and_then_fall_as_asked() -> None:
    for shape in ("cosine", "linear", "step", "constant"):
        found = rates(shape)
        assert found[:10] == pytest.approx([0.05 + 0.045 * i for i in range(10)])
        assert found[10] == pytest.approx(0.5)
    for step, rate in enumerate(rates("cosine")[10:]):
        assert rate == pytest.approx(0.25 * (1 + math.cos(math.pi * step / 90)), abs=1e-9)
    assert rates("linear")[10:] == pytest.approx([0.5 * (1 - step / 90) for step in range(90)])
    assert set(rates("constant")[10:]) == {0.5}
    steps = rates("step")
    assert [steps[15], steps[45], steps[75]] == pytest.approx([0.5, 0.05, 0.005])
    assert rates("cosine", warm_up=0.0)[0] == 0.5


def test_decay_spares_norms_and_biases() -> None:
    model = net()
    groups = make_optimizer(model, SCHEDULE).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    kernels = {id(m.weight) for m in model if isinstance(m, nn.Conv2d | nn.Linear)}
    assert decayed == kernels
    assert spared == {id(p) for p in model.parameters()} - kernels


def test_names_that_are_none() -> None:
    with pytest.raises(UsageError, match="no optimizer 'adamW2' in timm; did you mean adam"):
        check_names("adamW2", "cosine")
    with pytest.raises(UsageError, match="no schedule 'cosin'; there are cosine, linear, step, constant"):
        check_names("sgd", "cosin")


@pytest.mark.parametrize(
    "choice", [{"optimizer": "lamb", "learning_rate": 0.01}, {"ema": 0.999}, {"mixup": 0.2, "cutmix": 0.5}]
)
def test_every_ingredient_learns(data: ImageData, choice: dict[str, object]) -> None:
    model = net()
    fit(model, data, VIEW, replace(SCHEDULE, **choice), seed=1)  # type: ignore[arg-type]
    assert evaluate(model, data.validation, VIEW).accuracy > 0.6


def test_an_average_is_the_mean_of_the_weights_that_were(data: ImageData) -> None:
    plain, averaged = net(), net()
    fit(plain, data, VIEW, replace(SCHEDULE, epochs=1), seed=1)
    fit(averaged, data, VIEW, replace(SCHEDULE, epochs=1, ema=0.9), seed=1)
    first, last = net()[0].weight.detach(), plain[0].weight.detach()
    assert 0 < float((averaged[0].weight.detach() - last).norm()) < 0.5 * float((first - last).norm())


def test_the_range_test_changes_nothing_and_finds_a_rate_that_learns(data: ImageData) -> None:
    model = net()
    before = copy.deepcopy(model)
    found = find_rate(model, data, VIEW, SCHEDULE, seed=0)
    assert same(model, before)
    assert 1e-4 < found.rate < 1
    assert found.rates[0] == pytest.approx(1e-4)
    assert list(found.rates) == sorted(found.rates)
    assert len(found.rates) == len(found.losses)
    assert found == find_rate(model, data, VIEW, SCHEDULE, seed=0)
    fit(model, data, VIEW, replace(SCHEDULE, learning_rate=found.rate), seed=1)
    assert evaluate(model, data.validation, VIEW).accuracy > 0.6


@pytest.mark.parametrize("start", [[0.99] * 10, [0.8] * 3], ids=["a little lower", "a few lucky batches"])
def test_where_the_loss_hardly_falls_the_rate_is_the_highest_that_does_no_harm(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, start: list[float]
) -> None:
    """What a network gives that is nearly right already; that its loss was lowest at the start is chance."""
    losses = start + [1.0] * (50 - len(start)) + [1.0 + 0.1 * step for step in range(1, 31)]
    monkeypatch.setattr("mobileprune.training.rates.trial_losses", lambda *_: iter(losses))
    found = find_rate(net(), data, VIEW, SCHEDULE, seed=0)
    assert found.losses.index(min(found.losses)) < 10
    assert found.rates[48] / 4 < found.rate < found.rates[53] / 4


def test_the_range_test_sees_how_steep_a_loss_is(data: ImageData) -> None:
    """Inputs a hundred times larger make every gradient larger: the rate must be far lower."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    nn.init.zeros_(linear[1].weight)
    steep = replace(VIEW, std=tuple(s / 30 for s in VIEW.std))
    found = [find_rate(linear, data, view, SCHEDULE, seed=0).rate for view in (steep, VIEW)]
    assert found[0] < 0.1 * found[1]


def test_the_fastest_setting_is_the_one_that_was_fastest(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = net(), VIEW(data.train.images[:8])
    before = copy.deepcopy(model)
    labels = data.train.labels[:8]
    found, seconds = fastest_setting(model, images, labels)
    assert str(found) in seconds
    assert len(seconds) == 4
    assert same(model, before)
    quick = Setting(bfloat16=True, channels_last=False)
    times = {quick: 0.5, PLAIN: 1.0}
    monkeypatch.setattr(speed, "_step", lambda model, images, labels, setting: times.get(setting, 2.0))
    assert fastest_setting(model, images, labels)[0] == quick
    times[quick] = 0.9  # not worth it
    assert fastest_setting(model, images, labels)[0] == PLAIN
