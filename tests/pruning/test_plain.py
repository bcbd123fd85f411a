from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import network
from nets import shaken
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.blocks import rank_blocks
from mobileprune.pruning.cost import count
from mobileprune.pruning.difference import diff
from mobileprune.pruning.layers import Axis
from mobileprune.pruning.plain import find_plain_layers
from mobileprune.pruning.prune import prune
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.scale import BASE, Scale

X = torch.randn(1, 3, 32, 32)


class Plain(nn.Module):
    """VGG in small: convolution, norm, ReLU, four of them of one shape; a depthwise pair; flat names."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 16, 32, 32, 32, 32)
        layers: list[nn.Module] = []
        for number, (a, b) in enumerate(itertools.pairwise(channels)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=number % 2 == 0)]
            if number in (0, 3):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.depthwise, self.norm = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32)
        self.pointwise = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.relu(self.pointwise(F.relu(self.norm(self.depthwise(x)))))
        return self.head(x.mean((2, 3)))


def parts(model: nn.Module, side: int = 32) -> list[tuple[str, ...]]:
    return [block.parts for block in find_plain_layers(model.eval(), torch.randn(1, 3, side, side))[0]]


def test_same_shape_layers_are_found_with_their_norm_and_activation() -> None:
    assert parts(Plain()) == [
        ("features.7", "features.8", "features.9"),
        ("features.10", "features.11", "features.12"),
        ("features.14", "features.15", "features.16"),
        ("pointwise",),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:vgg11_bn", [tuple(f"features.{i + k}" for k in range(3)) for i in (11, 18, 22, 25)]),
        ("timm:mobilenetv1_100", [(f"blocks.{b}",) for b in ("1.1", "2.1", "3.1", "3.2", "3.3", "3.4", "3.5", "4.1")]),
        (
            "shared:mobilenet_v1:mobilenet_v1",
            [(f"pointwise.{i}", f"depthwise.{i}") for i in (2, 4, 6, 7, 8, 9, 10, 12)],
        ),
        ("torchvision:densenet121", []),
    ],
)
def test_layers_of_known_networks(name: str, expected: list[tuple[str, ...]]) -> None:
    assert parts(network(name), 64) == expected


def test_a_layer_around_which_something_flows_is_none() -> None:
    class Around(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.stem, self.conv, self.how = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), how
            self.next = nn.Conv2d(16 if how == "cat" else 8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.conv(x)
            around = {"cat": lambda: torch.cat([x, y], 1), "times": lambda: y * x, "none": lambda: y}
            return self.next(around[self.how]()).mean((2, 3))

    assert parts(Around("none")) == [("conv",)]
    assert parts(Around("cat")) == parts(Around("times")) == []


def test_a_layer_called_twice_or_sharing_weights_is_none() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    assert parts(nn.Sequential(nn.Conv2d(3, 8, 1), conv, conv)) == []
    tied = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    tied[1].weight = tied[2].weight
    assert parts(tied) == [("3",)]


def test_a_removed_layer_leaves_the_others_and_their_weights() -> None:
    model = shaken(Plain())
    ranking = {"features.7": 1.0, "features.10": 0.0, "features.14": 2.0, "pointwise": 3.0}
    pruned = prune(model, Scale(0.5, 1, 1), X, ranking=ranking)
    gone = tuple(sorted(f"features.{i}" for i in (7, 8, 9, 10, 11, 12)))
    assert pruned.recipe.removed == gone and pruned.scale == Scale(0.5, 1, 1)
    state = model.state_dict()
    assert pruned.model.state_dict().keys() == {k for k in state if not k.startswith(tuple(g + "." for g in gone))}
    by_hand = nn.Sequential(*[m for i, m in enumerate(model.features) if not 7 <= i <= 12])
    shorter = copy.deepcopy(model)
    shorter.features = by_hand
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(pruned.model(x), shorter(x))


@pytest.mark.parametrize("depth", [0.25, 0.5, 0.75])
def test_depth_and_width_together_give_the_short_network_that_ignores_the_same_channels(depth: float) -> None:
    """Across a removed layer, what is made and what is read are the same channels."""
    model = shaken(Plain())
    anatomy = Anatomy.of(model, X)
    assert len(anatomy.widths.values) > 2
    pruned = prune(model, Scale(depth, 0.5, 1), X, anatomy=anatomy)
    assert pruned.model.features[4].out_channels < 32
    masked = prune(model, Scale(depth, 1, 1), X, anatomy=anatomy).model
    assert not any(axis.layer in pruned.recipe.removed for axis in pruned.recipe.kept)
    with torch.no_grad():
        for path, module in masked.named_modules():
            kept = pruned.recipe.kept.get(Axis(path, "in"))
            if kept is not None and module.weight.shape[1] > 1:
                mask = torch.zeros(module.weight.shape[1])
                mask[list(kept)] = 1
                module.weight.mul_(mask.view(1, -1, *[1] * (module.weight.dim() - 2)))
    x = torch.randn(4, 3, 32, 32)
    assert torch.allclose(pruned.model(x), masked(x), atol=1e-4)
    assert not torch.allclose(pruned.model(x), model(x), atol=1e-2)


@pytest.mark.parametrize("name", ["plain", "timm:mobilenetv1_100", "shared:mobilenet_v1:mobilenet_v1"])
def test_costs_recipes_and_chains_of_plain_networks(name: str) -> None:
    model = Plain().eval() if name == "plain" else network(name)
    x = X if name == "plain" else torch.randn(1, 3, 64, 64)
    anatomy = Anatomy.of(model, x)
    parent = prune(model, Scale(0.75, 0.8, 1), x, anatomy=anatomy)
    ranking = {block.name: -float(i) for i, block in enumerate(anatomy.blocks)}
    child = prune(parent.model, Scale(0.5, 0.6, 0.75), x, anatomy=anatomy, ranking=ranking, recipe=parent.recipe)
    assert set(parent.recipe.removed) < set(child.recipe.removed) and child.scale.depth == 0.5
    for pruned in (parent, child):
        counted = count(pruned.model, torch.zeros(1, 3, *pruned.input_size))
        base = anatomy.cost(BASE)
        assert (pruned.macs, pruned.params) == (counted.macs / base.macs, counted.params / base.params)
        again = rebuild(Recipe.from_json(pruned.recipe.to_json()), model).eval()
        again.load_state_dict(pruned.model.state_dict())
        inputs = torch.randn(2, 3, *pruned.input_size)
        assert torch.equal(again(inputs), pruned.model(inputs))
    assert anatomy.cost(parent.scale) == count(parent.model, torch.zeros(1, 3, *parent.input_size))


def test_ranking_and_words_take_the_layer_as_one() -> None:
    model = shaken(Plain())
    anatomy = Anatomy.of(model, X)
    batch = torch.randn(4, 3, 32, 32)

    def loss(m: nn.Module) -> float:
        with torch.no_grad():
            return float(m(batch).square().sum())

    before = loss(model)
    ranking = rank_blocks(model, anatomy.blocks, loss)
    shorter = copy.deepcopy(model)
    for i in (7, 8, 9):
        shorter.features[i] = nn.Identity()
    assert loss(model) == before and ranking["features.7"] == pytest.approx(loss(shorter) - before)
    told = diff(prune(model, Scale(0.75, 1, 1), X, ranking={**ranking, "features.7": -1e9}).recipe, model, X)
    assert told.words[0].startswith("features.7 was removed: 1 layer, ")
    assert told.words[1:] == ("features.8 (BatchNorm2d) was removed with it", "features.9 (ReLU) was removed with it")


def test_one_removable_layer_is_none_and_that_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2))
    with pytest.raises(UsageError, match="1 is the only removable block"):
        prune(model, Scale(0.5, 1, 1), X)
