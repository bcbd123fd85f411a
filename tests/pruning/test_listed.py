from __future__ import annotations

import pytest
import torch
from conftest import network
from nets import shaken
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.explain import explain
from mobileprune.pruning.prune import prune
from mobileprune.pruning.ranking import rank
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.scale import Scale

X = torch.randn(1, 3, 32, 32)


class Dense(nn.Module):
    """Four layers of 16 channels, each reading all before it; a classifier on the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        layers = [nn.Sequential(nn.BatchNorm2d(24 + 16 * i), nn.Conv2d(24 + 16 * i, 16, 3, 1, 1)) for i in range(4)]
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.BatchNorm2d(88), nn.Linear(88, 5)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.stem(x)]
        for layer in self.layers:
            made.append(torch.relu(layer(torch.cat(made, 1))))
        return self.head(torch.relu(self.norm(torch.cat(made, 1))).mean((2, 3)))


class Loop(nn.Module):
    """The network itself adds what each entry computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 5)
        self.steps = nn.ModuleDict({f"s{i}": nn.Conv2d(16, 16, 3, 1, 1) for i in range(4)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in self.steps.values():
            x = x + torch.relu(step(x)) * 0.5
        return self.head(x.mean((2, 3)))


def test_a_dense_layer_goes_with_the_channels_that_it_gives() -> None:
    model = shaken(Dense())
    anatomy = Anatomy.of(model, X)
    assert [b.name for b in anatomy.blocks] == [f"layers.{i}" for i in range(4)] and anatomy.blocks[1].shape == (
        16,
        16,
        16,
    )
    pruned = prune(model, Scale(0.5, 1, 1), X, anatomy=anatomy, ranking={f"layers.{i}": i % 2 for i in range(4)})
    assert sorted(pruned.model.layers._modules) == ["1", "3"] and pruned.recipe.listed == ("layers.0", "layers.2")
    assert pruned.model.layers.get_submodule("3.1").in_channels == 24 + 16 and pruned.model.head.in_features == 24 + 32
    with torch.no_grad():  # by hand: nobody reads what layers 0 and 2 give
        for layer, reads in ((model.layers[1][1], [0]), (model.layers[3][1], [0, 2])):
            for i in reads:
                layer.weight[:, 24 + 16 * i : 40 + 16 * i] = 0
        for i in (0, 2):
            model.head.weight[:, 24 + 16 * i : 40 + 16 * i] = 0
    x = torch.randn(4, 3, 32, 32)
    assert torch.allclose(pruned.model.eval()(x), model(x), atol=1e-5)


@pytest.mark.parametrize("make", [Dense, Loop])
def test_costs_recipes_chains_and_ranking(make: type[nn.Module]) -> None:
    model = shaken(make())
    anatomy = Anatomy.of(model, X)
    assert len(anatomy.blocks) == 4 and not [n for n in anatomy.notes if n.startswith("depth")]
    data = [(torch.randn(4, 3, 32, 32), torch.randint(5, (4,)))]
    ranking = rank(model, anatomy.blocks, data)
    alone = prune(model, Scale(0.75, 1, 1), X, anatomy=anatomy, ranking=ranking)
    (x, y), first = data[0], min(ranking, key=lambda name: ranking[name])
    increase = nn.functional.cross_entropy(alone.model.eval()(x), y) - nn.functional.cross_entropy(model(x), y)
    assert float(increase.detach()) == pytest.approx(ranking[first], abs=1e-5) and alone.recipe.removed == (first,)
    half = prune(alone.model, Scale(0.5, 0.6, 1), X, anatomy=anatomy, ranking=ranking, recipe=alone.recipe)
    expected = anatomy.cost(Scale(0.5, 0.6, 1), ranking)
    assert count(half.model, X) == expected
    built = rebuild(Recipe.from_json(half.recipe.to_json()), model)
    built.load_state_dict(half.model.state_dict())
    assert torch.equal(built.eval()(x), half.model.eval()(x))
    shares = [row.macs_share for row in explain(anatomy).blocks]
    assert all(0 < share < 1 for share in shares)
    assert len(rank(model, anatomy.blocks, data, by="taylor", greedy=True)) == 4


def test_densenet_loses_layers() -> None:
    model = network("torchvision:densenet121")
    x = torch.randn(1, 3, 64, 64)
    anatomy = Anatomy.of(model, x, resolutions=False)
    assert len(anatomy.blocks) == 58 and len(anatomy.sizes) == 1
    pruned = prune(model, Scale(0.5, 1, 1), x, anatomy=anatomy)
    assert count(pruned.model, x) == anatomy.cost(Scale(0.5, 1, 1))
    left = [len(module._modules) for name, module in pruned.model.features.named_children() if "block" in name]
    assert left == [3, 6, 12, 8]


def test_similarity_has_no_meaning_for_channels_of_its_own() -> None:
    model = shaken(Dense())
    blocks = Anatomy.of(model, X).blocks
    with pytest.raises(UsageError, match="channels of its own"):
        rank(model, blocks, [(X, torch.zeros(1, dtype=torch.long))], by="similarity")
    loop = shaken(Loop())
    values = rank(loop, Anatomy.of(loop, X).blocks, [(X, torch.zeros(1, dtype=torch.long))], by="similarity")
    assert all(value > 0 for value in values.values())


def test_an_entry_that_is_looked_up_by_its_place_stays() -> None:
    class Indexed(Loop):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for i in range(4):
                x = x + torch.relu(self.steps[f"s{i}"](x)) * 0.5
            return self.head(x.mean((2, 3)))

    anatomy = Anatomy.of(Indexed(), X)
    assert anatomy.blocks == () and any(n.startswith("depth") for n in anatomy.notes)
