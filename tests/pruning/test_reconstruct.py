"""Weights that make up for channels: closed forms of the regression, and what it does to whole networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Mixed, OptionA, Tiny, shaken
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.layers import Axis
from mobileprune.pruning.moments import _PIXELS, RIDGE, Moments, by_group, input_moments, unfit
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import prune
from mobileprune.pruning.recipe import Recipe
from mobileprune.pruning.reconstruct import reconstruct_weights
from mobileprune.scale import BASE, Scale

X = torch.zeros(1, 3, 32, 32)


def photographs(count: int = 128, seed: int = 0, size: int = 32) -> Tensor:
    """Smooth random images: neighbouring pixels and colours are alike, so that channels are."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(count, 3, 5, 5, generator=generator), size=(size, size), mode="bicubic")


def batches(images: Tensor, each: int = 32) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(each)]


def seen_by(layer: nn.Module, rows: Tensor) -> Moments:
    """The moments of a layer that reads ``rows`` (n, inputs), each as an image of its own."""
    moments = Moments(layer)
    moments(layer, (rows if isinstance(layer, nn.Linear) else rows[:, :, None, None],))
    return moments


@given(seed=st.integers(0, 999), gone=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_the_regression_is_that_of_augmented_least_squares(seed: int, gone: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(50, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 3
    kept = torch.ones(8, dtype=torch.bool)
    kept[torch.randperm(8, generator=generator)[:gone]] = False
    slopes, constant = seen_by(nn.Linear(8, 2), rows).regression(kept, centred=True)
    x = rows.double().numpy()
    centre = x.mean(0)
    inputs, targets = (x - centre)[:, kept], (x - centre)[:, ~kept]
    ridge = RIDGE * inputs.var(0).mean()
    augmented = np.concatenate([inputs, np.sqrt(len(x) * ridge) * np.eye(inputs.shape[1])])
    zeros = np.zeros((inputs.shape[1], gone))
    by_hand = np.linalg.lstsq(augmented, np.concatenate([targets, zeros]), rcond=None)[0].T
    assert np.allclose(slopes[0], by_hand, atol=1e-4)
    assert np.allclose(constant[0, :, 0], centre[~kept] - by_hand @ centre[kept], atol=1e-3)


@given(seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_own_share_is_the_error_left_when_all_other_weights_are_fitted_anew(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(60, 6, generator=generator) @ torch.randn(6, 6, generator=generator) - 1
    layer = nn.Linear(6, 3)
    shares = seen_by(layer, rows).own_shares(by_group(layer))
    x = (rows - rows.mean(0)).double().numpy()
    ridge = RIDGE * x.var(0).mean()
    weight = layer.weight.detach().double().numpy()
    whole = sum((weight[:, i] ** 2).sum() * x[:, i].var() for i in range(6))
    for i in range(6):
        others = [j for j in range(6) if j != i]
        # Change of the other weights that minimises the squared output error + ridge x the squared change of all.
        augmented = np.concatenate([x[:, others] / np.sqrt(len(x)), np.sqrt(ridge) * np.eye(5)])
        target = np.concatenate([x[:, [i]] @ weight[:, [i]].T / np.sqrt(len(x)), np.zeros((5, 3))])
        change = np.linalg.lstsq(augmented, target, rcond=None)[0]
        error = ((augmented @ change - target) ** 2).sum() + ridge * (weight[:, i] ** 2).sum()
        assert shares[i] == pytest.approx(error / whole, rel=1e-3)


LAYERS = {
    "linear": lambda: nn.Linear(12, 6),
    "pointwise": lambda: nn.Conv2d(12, 6, 1),
    "grouped": lambda: nn.Conv2d(12, 6, 1, groups=3),
    "transposed": lambda: nn.ConvTranspose2d(12, 6, 1),
}


class Upsampled(nn.Module):
    """Calls its layer with the size that is wanted beside the image, and by name if it is told to."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.layer, self.named = nn.ConvTranspose2d(3, 4, 1, 2), named

    def forward(self, x: Tensor) -> Tensor:
        size = [2 * x.shape[2], 2 * x.shape[3]]
        made = self.layer(output_size=size, input=x) if self.named else self.layer(x, size)
        assert isinstance(made, Tensor)
        return made


def test_a_layer_reads_the_first_tensor_that_it_is_called_with() -> None:
    images = photographs(8)
    plain = input_moments(nn.Sequential(nn.ConvTranspose2d(3, 4, 1, 2)), ["0"], (), [images], (32, 32))["0"]
    for named in (False, True):
        found = input_moments(Upsampled(named=named), ["layer"], (), [images], (32, 32))["layer"]
        assert found.count == plain.count
        assert torch.equal(found.mean(), plain.mean())


@pytest.mark.parametrize("kind", LAYERS)
@given(seed=st.integers(0, 999))
@settings(max_examples=10, deadline=None)
def test_no_output_of_a_layer_varies_more_from_its_own_than_without(kind: str, seed: int) -> None:
    """On the rows that it was fitted to, for whatever channels go; and its mean is kept."""
    torch.manual_seed(seed)
    layer = LAYERS[kind]()
    rows = torch.randn(40, 12) @ torch.randn(12, 12) + torch.randn(12)
    rows = rows if kind == "linear" else rows[:, :, None, None]
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    local = torch.randperm(12 // groups)[: 12 // groups // 2].sort().values
    kept = (torch.arange(groups)[:, None] * (12 // groups) + local).flatten().tolist()
    smaller = copy.deepcopy(nn.Sequential(layer))
    from mobileprune.pruning.layers import slice_model

    slice_model(smaller, {Axis("0", "in"): kept})
    recipe = Recipe(BASE, (), {Axis("0", "in"): tuple(kept)}, (1, 1), (1, 1), {}, {})
    whole = layer(rows).flatten(1)
    without = smaller(rows[:, kept]).flatten(1)
    moments = Moments(layer)
    moments(layer, (rows,))
    assert reconstruct_weights(smaller, recipe, nn.Sequential(layer), {"0": moments}) == {}
    made_up = smaller(rows[:, kept]).flatten(1)
    assert torch.all((made_up - whole).var(0) <= (without - whole).var(0) * 1.001)
    assert torch.allclose(made_up.mean(0), whole.mean(0), atol=1e-2)


def test_a_channel_that_is_another_one_again_goes_and_is_made_up_for() -> None:
    model = shaken(Tiny(1, channels=16, inner=32))
    block = model.body[0]
    with torch.no_grad():  # the second half of the inner channels repeats the first, three times as large
        block.a.weight[16:] = block.a.weight[:16]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(block.an, name)[16:] = getattr(block.an, name)[:16]
        block.an.weight[16:] *= 3
        block.an.bias[16:] *= 3
    images = photographs()
    anatomy = Anatomy.of(model, X)
    chosen = {}
    for importance, reconstruct in (("l2", False), ("reconstruction", True)):
        scale = Scale(1, anatomy.widths.values[-2], 1)
        pruned = prune(
            model, Scale(1, 0.5, 1), X, importance=importance, reconstruct=reconstruct, batches=batches(images)
        )
        assert pruned.scale.width < scale.width
        kept = np.array(pruned.recipe.kept[Axis("body.0.a", "out")]) % 16
        chosen[importance] = len(set(kept.tolist())) / len(kept)
    assert chosen["reconstruction"] == 1.0  # one of each pair


@pytest.mark.parametrize("make", [Tiny, OptionA, Mixed], ids=lambda make: make.__name__)
def test_a_network_answers_closer_to_its_base(make: type[nn.Module]) -> None:
    model = shaken(make())
    state = copy.deepcopy(model.state_dict())
    images, others = photographs(192), photographs(64, seed=1)

    def answers(network: nn.Module) -> Tensor:
        found = network(others)
        return found["logits"] if isinstance(found, dict) else found

    def error(reconstruct: bool) -> float:
        pruned = prune(model, Scale(1, 0.7, 1), X, reconstruct=reconstruct, batches=batches(images))
        assert pruned.unreconstructed == {}
        assert pruned.recipe.method.get("weights", "as they were") == (
            "reconstructed" if reconstruct else "as they were"
        )
        reestimate_norms(pruned.model, [images])
        with torch.no_grad():
            return float((answers(pruned.model) - answers(dense)).square().mean())

    dense = copy.deepcopy(model)
    reestimate_norms(dense, [images])
    assert error(True) < 0.7 * error(False)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_second_cut_makes_up_for_what_is_gone_since_the_first() -> None:
    model = shaken(Tiny())
    images = photographs()
    anatomy = Anatomy.of(model, X)

    def cut(network: nn.Module, scale: Scale, recipe: Recipe | None):  # type: ignore[no-untyped-def]
        return prune(network, scale, X, anatomy=anatomy, recipe=recipe, reconstruct=True, batches=batches(images))

    first = cut(model, Scale(1, 0.8, 1), None)
    second = cut(first.model, Scale(0.75, 0.6, 0.75), first.recipe)
    moments = input_moments(
        first.model, ["head"], second.recipe.removed, [part for part, _ in batches(images)], (24, 24)
    )
    at = {name: np.array(r.kept[Axis("head", "in")]) for name, r in (("a", first.recipe), ("b", second.recipe))}
    stays = torch.from_numpy(np.isin(at["a"], at["b"]))
    slopes, constant = moments["head"].regression(stays, centred=True)
    weight = first.model.head.weight.detach().double()
    wanted = weight[:, stays] + weight[:, ~stays] @ slopes[0]
    assert torch.allclose(second.model.head.weight.double(), wanted, atol=1e-5)
    shift = weight[:, ~stays] @ constant[0, :, 0]
    assert torch.allclose(second.model.head.bias.double(), first.model.head.bias.double() + shift, atol=1e-5)


def test_moments_are_of_the_network_at_its_new_size_without_the_blocks_that_went() -> None:
    model = shaken(Tiny(2)).train()
    images = photographs(48)
    found = input_moments(model, ["head", "body.1.b"], ["body.0"], images.split(24), (16, 16))
    small = F.interpolate(images, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    plain = copy.deepcopy(model).train()
    plain.body[0] = nn.Identity()
    read: list[Tensor] = []
    plain.head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        for part in small.split(24):
            plain(part)
    rows = torch.cat(read).double()
    assert torch.allclose(found["head"].mean()[0, :, 0], rows.mean(0), atol=1e-4)
    assert torch.allclose(found["head"].second(centred=True)[0], torch.cov(rows.T, correction=0), atol=1e-4)
    assert found["head"].count == 48 and found["body.1.b"].count == 48 * _PIXELS
    assert model.training and not model.head._forward_pre_hooks


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Same(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


def test_layers_that_stay_as_they_are_are_named_with_the_reason() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), Standardised(32, 24, 3), nn.ReLU()),
        *(Same(24, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(12), nn.Flatten(), nn.Linear(32 * 144, 5)),
    )
    pruned = prune(model, Scale(1, 0.5, 1), X, reconstruct=True, batches=batches(photographs(8), 4))
    assert pruned.unreconstructed == {
        "2": "a Standardised does more with its weights than multiply",
        "8": "it has more than 4096 inputs",
    }
    plain = prune(model, Scale(1, 0.5, 1), X)
    assert torch.equal(pruned.model[2].weight, plain.model[2].weight)
    assert not torch.allclose(pruned.model[4].weight, plain.model[4].weight)
    assert unfit(nn.Conv2d(8, 16, 3, groups=8)) == "each of its channels reads one alone"


def test_images_are_needed_and_only_where_channels_go() -> None:
    model = Tiny()
    for asked in ({"reconstruct": True}, {"importance": "reconstruction"}):
        with pytest.raises(UsageError, match=r"takes images: pass batches="):
            prune(model, Scale(1, 0.5, 1), X, **asked)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="give at least one batch"):
            prune(model, Scale(1, 0.5, 1), X, batches=[], **asked)  # type: ignore[arg-type]
    pruned = prune(model, Scale(0.5, 1, 1), X, batches=[], reconstruct=True)
    assert pruned.scale == Scale(0.5, 1, 1) and pruned.unreconstructed == {}


def test_layers_of_a_plain_network_that_go_are_not_asked() -> None:
    model = shaken(
        nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(layer for _ in range(3) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
        )
    )
    pruned = prune(
        model,
        Scale(0.67, 0.5, 1),
        X,
        importance="reconstruction",
        reconstruct=True,
        batches=batches(photographs(16), 8),
    )
    assert len(pruned.recipe.removed) == 3 and pruned.scale.width == 0.5 and pruned.unreconstructed == {}
