from __future__ import annotations

import copy
import json

import pytest
import torch
from nets import Tiny, shaken
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.blocks import Block, find_blocks, rank_blocks, removal_order
from mobileprune.pruning.ranking import rank

X = torch.randn(1, 3, 32, 32)
DATA = [(torch.randn(6, 3, 32, 32), torch.randint(5, (6,))), (torch.randn(3, 3, 32, 32), torch.randint(5, (3,)))]


def tiny(blocks: int = 3) -> tuple[nn.Module, list[Block]]:
    model = shaken(Tiny(blocks))
    return model, find_blocks(model, X)[0]


def mean_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(sum(nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in DATA)) / 9


def test_loss_is_the_increase_without_the_block() -> None:
    model, blocks = tiny()
    removed = copy.deepcopy(model)
    removed.body[1] = nn.Identity()
    ranking = rank(model, blocks, DATA)
    assert ranking["body.1"] == pytest.approx(mean_loss(removed) - mean_loss(model), abs=1e-6)
    assert json.loads(json.dumps(ranking)) == ranking


def test_taylor_is_the_gradient_times_what_changes() -> None:
    model, blocks = tiny()
    modules, state = list(model.named_modules()), copy.deepcopy(model.state_dict())
    ranking = rank(model, blocks, DATA, by="taylor")
    by_hand = 0.0
    for x, y in DATA:
        into = model.body[0](torch.relu(model.norm(model.stem(x)))).detach()
        given = model.body[1](into).detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(model.head(model.body[2](given).mean((2, 3))), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, given)
        by_hand += float((gradient * (into - given)).flatten(1).sum(1).abs().sum())
    assert ranking["body.1"] == pytest.approx(by_hand / 9, rel=1e-4)
    assert list(model.named_modules()) == modules and not any(m._forward_hooks for _, m in modules)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_taylor_approaches_the_loss_for_a_small_block() -> None:
    model, blocks = tiny()
    with torch.no_grad():
        model.body[2].bn.weight.mul_(1e-3)
        model.body[2].bn.bias.mul_(1e-3)
        model.body[2].bn.running_mean.zero_()
    one = [(DATA[0][0][:1], DATA[0][1][:1])]
    model.double()
    one = [(one[0][0].double(), one[0][1])]
    increase = rank(model, blocks, one)["body.2"]
    assert rank(model, blocks, one, by="taylor")["body.2"] == pytest.approx(abs(increase), rel=0.05)


def test_similarity_is_one_minus_the_cosine() -> None:
    model, blocks = tiny()
    for weight in model.body[2].bn.parameters():
        nn.init.zeros_(weight)  # this block hands on what it gets
    nn.init.zeros_(model.body[2].bn.running_mean)
    ranking = rank(model, blocks, [(x, y) for x, y in DATA], by="similarity")
    total = 0.0
    with torch.no_grad():
        for x, _ in DATA:
            into = torch.relu(model.norm(model.stem(x)))
            cosine = nn.functional.cosine_similarity(into.flatten(1), model.body[0](into).flatten(1))
            total += float((1 - cosine).sum())
    assert ranking["body.0"] == pytest.approx(total / 9, abs=1e-5)
    assert ranking["body.2"] == pytest.approx(0.0, abs=1e-7) == min(ranking.values())


def test_greedy_ranks_again_what_is_left() -> None:
    blocks = [Block(name, (8, 4, 4), 1) for name in "abc"]
    model = nn.Sequential()
    for block in blocks:
        model.add_module(block.name, nn.Conv2d(1, 1, 1))
    losses = {"": 0.0, "a": 1.0, "b": 2.0, "c": 3.0, "ab": 9.0, "ac": 4.0, "abc": 9.0}  # a and b replace each other

    def loss(trial: nn.Module) -> float:
        return losses["".join(name for name, m in trial.named_children() if isinstance(m, nn.Identity))]

    assert removal_order(blocks, rank_blocks(model, blocks, loss)) == ["a", "b", "c"]
    assert rank_blocks(model, blocks, loss, greedy=True) == {"a": 0.0, "c": 1.0, "b": 2.0}


@pytest.mark.parametrize("by", ["loss", "taylor", "similarity"])
def test_greedy_starts_with_the_lowest_and_names_all(by: str) -> None:
    model, blocks = tiny()
    once, greedy = (rank(model, blocks, DATA, by=by, greedy=g) for g in (False, True))  # type: ignore[arg-type]
    assert min(once, key=lambda name: once[name]) == min(greedy, key=lambda name: greedy[name])
    assert sorted(greedy.values()) == [0.0, 1.0, 2.0]


def test_in_place_steps_after_a_block_do_not_change_what_is_compared() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = shaken(Tiny(2))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.net.norm(self.net.stem(x)))
            y = self.net.body[0](y).mul_(0.5)
            return self.net.head(self.net.body[1](y).mul_(2.0).mean((2, 3)))

    model = Overwrites().eval()
    blocks = [Block("net.body.0", (32, 16, 16), 1), Block("net.body.1", (32, 16, 16), 1)]
    clean = shaken(Tiny(2))
    found = rank(model, blocks, DATA, by="similarity")
    assert found["net.body.0"] == pytest.approx(rank(clean, find_blocks(clean, X)[0], DATA, by="similarity")["body.0"])
    assert all(value > 0 for value in rank(model, blocks, DATA, by="taylor").values())


def test_what_cannot_be_ranked_is_said() -> None:
    model, blocks = tiny()
    with pytest.raises(UsageError, match="no batches"):
        rank(model, blocks, [])
    with pytest.raises(UsageError, match="choose one of loss, taylor, similarity"):
        rank(model, blocks, DATA, by="size")  # type: ignore[arg-type]
