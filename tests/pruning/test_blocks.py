from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import network
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Mixed, Residual, Shifted, Tiny, shaken
from torch import Tensor, nn

from mobileprune.pruning.blocks import Block, find_blocks, rank_blocks, removal_order, without


def names(model: nn.Module, side: int = 32) -> list[str]:
    return [block.name for block in find_blocks(model.eval(), torch.randn(1, 3, side, side))[0]]


def test_residual_blocks_are_found_in_order_with_shape_and_parameters() -> None:
    blocks, notes = find_blocks(Tiny(3).eval(), torch.randn(1, 3, 32, 32))
    assert [b.name for b in blocks] == ["body.0", "body.1", "body.2"] and not notes
    assert blocks[0].shape == (32, 16, 16)
    assert blocks[0].parameters == 2 * 32 * 48 * 9 + 2 * 48 + 2 * 32


def test_plain_layers_products_and_partial_paths_are_no_blocks() -> None:
    assert names(Mixed()) == []  # a squeeze multiplies; the addition there is in the network itself
    assert names(Shifted()) == []

    class Scaled(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.an.eps  # the sum is not handed on as it is

    assert names(nn.Sequential(nn.Conv2d(3, 8, 1), Scaled(8, 8))) == []


def test_only_an_unchanged_input_counts_as_a_shortcut() -> None:
    class Half(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.b(F.relu(self.a(x))), x, alpha=0.5)

    class Overwritten(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = self.b(F.relu(self.a(x)))
            return y + x.mul_(2.0)

    class Broadcast(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(x))).mean((2, 3), keepdim=True)

    for block in (Half, Overwritten):
        assert names(nn.Sequential(nn.Conv2d(3, 8, 1), block(8, 8))) == [], block
    assert names(nn.Sequential(nn.Conv2d(3, 8, 1), Broadcast(8, 8))) == ["1"]


def test_a_block_that_shares_a_weight_with_another_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Residual(8, 8), Residual(8, 8), Residual(8, 8))
    model[1].a.weight = model[2].a.weight
    assert names(model) == ["3"]
    model[1].a = model[2].a  # the same layer object
    assert names(model) == ["3"]


def test_a_block_called_twice_or_with_a_second_input_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 8, 1), Residual(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(self.stem(x)))

    assert names(Twice()) == []

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return x + self.conv(x) * other

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 8, 1), Two()

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.block(x, x)

    assert names(Net()) == []


def test_a_block_whose_layers_the_network_reads_elsewhere_is_kept_with_a_note() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 8, 1), Residual(8, 8), Residual(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(self.stem(x))) * self.one.a.weight.mean()

    blocks, notes = find_blocks(Net().eval(), torch.randn(1, 3, 8, 8))
    assert [b.name for b in blocks] == ["two"]
    assert len(notes) == 1 and "one" in notes[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet18", ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("torchvision:mobilenet_v2", [f"features.{i}" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]),
        ("torchvision:mobilenet_v3_small", [f"features.{i}" for i in (3, 5, 6, 8, 10, 11)]),
        ("timm:resnetv2_18", ["stages.0.blocks.0", "stages.0.blocks.1"] + [f"stages.{i}.blocks.1" for i in (1, 2, 3)]),
        ("shared:resnet_cifar:resnet20", [f"layer{s}.{i}" for s in "123" for i in "012" if s == "1" or i != "0"]),
        ("shared:mobilenet_v1:mobilenet_v1", []),
        ("torchvision:densenet121", []),
    ],
)  # fmt: skip
def test_blocks_of_known_networks(name: str, expected: list[str]) -> None:
    assert names(network(name)) == expected


def test_a_network_without_a_block_leaves_the_network_as_it_is() -> None:
    model, x = shaken(Tiny()), torch.randn(2, 3, 32, 32)
    before, modules = model(x), list(model.named_modules())
    shorter = nn.Sequential(*[block for i, block in enumerate(model.body) if i != 1])
    blocks, _ = find_blocks(model, x[:1])
    trial = without(model, blocks[1:2])
    by_hand = model.head(shorter(torch.relu(model.norm(model.stem(x)))).mean((2, 3)))
    assert torch.equal(trial(x), by_hand) and not torch.equal(by_hand, before)
    assert trial.stem.weight is model.stem.weight  # no second set of weights
    assert torch.equal(model(x), before) and list(model.named_modules()) == modules


def test_ranking_is_the_loss_increase_and_plain_json() -> None:
    model = shaken(Tiny(3))
    for weight in model.body[2].bn.parameters():
        nn.init.zeros_(weight)  # this block adds nothing to its (non-negative) input
    nn.init.zeros_(model.body[2].bn.running_mean)
    x, target = torch.randn(8, 3, 32, 32), torch.randint(5, (8,))
    blocks, _ = find_blocks(model, x[:1])

    def loss(m: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(m(x), target))

    ranking = rank_blocks(model, blocks, loss)
    assert json.loads(json.dumps(ranking)) == ranking
    assert ranking["body.2"] == 0.0
    removed = copy.deepcopy(model)
    removed.body[0] = nn.Identity()
    assert ranking["body.0"] == pytest.approx(loss(removed) - loss(model), abs=1e-7)
    assert removal_order(blocks, {"body.0": 2.0, "body.1": -1.0, "body.2": 0.5}) == ["body.1", "body.2", "body.0"]


def test_a_block_without_which_the_loss_is_undefined_goes_last() -> None:
    model = Tiny(2).eval()
    blocks, _ = find_blocks(model, torch.randn(1, 3, 32, 32))
    values = iter([1.0, float("nan"), 1.5])
    ranking = rank_blocks(model, blocks, lambda _: next(values))
    assert removal_order(blocks, ranking) == ["body.1", "body.0"]
    json.dumps(ranking, allow_nan=False)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_without_a_ranking_stages_shrink_evenly(stages: list[int]) -> None:
    blocks = [Block(f"{s}.{i}", (2**s, 8, 8), 1) for s, n in enumerate(stages) for i in range(n)]
    order = removal_order(blocks, None)
    assert sorted(order) == sorted(b.name for b in blocks)
    for cut in range(len(order)):
        left = [sum(f"{s}." in b for b in order[cut:]) / (n + 1) for s, n in enumerate(stages)]
        full = [n / (n + 1) for n in stages]
        gone = [f - share for f, share in zip(full, left, strict=True)]
        assert max(gone) - min(gone) <= max(1 / (n + 1) for n in stages) + 1e-9


def test_a_ranking_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"b\.7"):
        removal_order([Block("b.7", (8, 4, 4), 1)], {"a.1": 0.0})
