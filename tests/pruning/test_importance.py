from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Mixed, Tiny, shaken
from torch import nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.couplings import find_groups
from mobileprune.pruning.importance import Importance, gradients_of, spread_globally
from mobileprune.pruning.layers import Axis
from mobileprune.pruning.prune import prune
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.scale import Scale

X = torch.randn(1, 3, 32, 32)
_SEEDED = torch.Generator().manual_seed(0)
DATA = [(torch.randn(n, 3, 32, 32, generator=_SEEDED), torch.randint(5, (n,), generator=_SEEDED)) for n in (6, 3)]


def scores(model: nn.Module, name: str, importance: Importance) -> np.ndarray:
    group = next(g for g in find_groups(model, X) if g.name == name)
    return importance.of_channels(group, np.arange(group.count), {})


def test_batch_norm_scales_in_closed_form_and_l2_where_there_is_no_norm() -> None:
    model = shaken(Tiny(2))
    by_hand = model.body[0].an.weight.detach().abs().double().numpy()
    assert np.allclose(scores(model, "body.0.a", Importance.of(model, "bn")), by_hand)
    stream = [model.norm, model.body[0].bn, model.body[1].bn]
    mean = np.mean([norm.weight.detach().abs().double().numpy() for norm in stream], axis=0)
    assert np.allclose(scores(model, "stem", Importance.of(model, "bn")), mean)
    mixed = shaken(Mixed())
    assert np.array_equal(
        scores(mixed, "squeeze.down", Importance.of(mixed, "bn")), scores(mixed, "squeeze.down", Importance.of(mixed))
    )


def test_taylor_is_the_first_order_change_of_the_loss() -> None:
    model = shaken(Tiny(2)).requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    gradients = gradients_of(model, DATA)
    importance = Importance.of(model, "taylor", DATA)
    group = next(g for g in find_groups(model, X) if g.name == "body.1.a")
    changes = []
    for layer, dim in (("body.1.a", 0), ("body.1.an", 0), ("body.1.b", 1)):
        weight = model.get_submodule(layer).weight
        product = (weight * gradients[f"{layer}.weight"]).transpose(0, dim).flatten(1 if weight.dim() > 1 else 0)
        changes.append((product.sum(1) if weight.dim() > 1 else product).abs().double().numpy())
    assert np.allclose(importance.of_channels(group, np.arange(48), {}), np.mean(changes, axis=0), atol=1e-9)

    def loss(m: nn.Module) -> float:
        return float(sum(nn.functional.cross_entropy(m(x), y, reduction="sum") for x, y in DATA)) / 9

    step, moved = 1e-3, copy.deepcopy(model).double()
    data64 = [(x.double(), y) for x, y in DATA]
    moved.body[1].b.weight[:, 3] *= 1 - step  # the derivative along "channel 3 shrinks"
    before = float(sum(nn.functional.cross_entropy(model.double()(x), y, reduction="sum") for x, y in data64)) / 9
    after = float(sum(nn.functional.cross_entropy(moved(x), y, reduction="sum") for x, y in data64)) / 9
    model.float()
    assert abs((after - before) / step) == pytest.approx(changes[2][3], rel=0.02, abs=1e-6)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and loss(model) > 0
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_random_is_the_same_for_the_same_seed_and_another_for_each_group() -> None:
    model = Tiny(2)
    first = scores(model, "body.0.a", Importance.of(model, "random", seed=3))
    assert np.array_equal(first, scores(model, "body.0.a", Importance.of(model, "random", seed=3)))
    assert not np.array_equal(first, scores(model, "body.0.a", Importance.of(model, "random", seed=4)))
    assert not np.array_equal(first, scores(model, "body.1.a", Importance.of(model, "random", seed=3)))


def test_what_is_missing_or_unknown_is_said() -> None:
    with pytest.raises(UsageError, match="needs labelled images"):
        prune(Tiny(2), Scale(1, 0.5, 1), X, importance="taylor")
    with pytest.raises(UsageError, match="no batches"):
        prune(Tiny(2), Scale(1, 0.5, 1), X, importance="taylor", batches=[])
    with pytest.raises(UsageError, match="choose one of l2, bn, taylor, reconstruction, random"):
        prune(Tiny(2), Scale(1, 0.5, 1), X, importance="size")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="choose one of uniform, global"):
        prune(Tiny(2), Scale(1, 0.5, 1), X, widths="best")  # type: ignore[arg-type]


@given(
    groups=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4]), st.integers(0, 99)), min_size=1, max_size=5
    ),
    share=st.floats(0.3, 1.0),
)
@settings(max_examples=100, deadline=None)
def test_global_widths_keep_the_count_the_floors_and_the_units(
    groups: list[tuple[int, int, int]], share: float
) -> None:
    sizes = [n * unit for n, unit, _ in groups]
    units = [unit for _, unit, _ in groups]
    values = [np.random.default_rng(seed).random(size) for size, (_, _, seed) in zip(sizes, groups, strict=True)]
    uniform = [max(unit, round(share * size / unit) * unit) for size, unit in zip(sizes, units, strict=True)]
    floors = [min(u, max(unit, u // 2 // unit * unit)) for u, unit in zip(uniform, units, strict=True)]
    kept = spread_globally(values, sum(uniform), units, floors)
    assert sum(uniform) - max(units) < sum(kept) <= sum(uniform)
    for n, size, unit, floor in zip(kept, sizes, units, floors, strict=True):
        assert floor <= n <= size and n % unit == 0


def test_global_widths_go_where_the_weights_are_and_never_collapse() -> None:
    model = shaken(Tiny(3))
    with torch.no_grad():
        model.body[1].a.weight[8:] *= 1e-3  # 40 of the 48 channels hardly matter
        model.body[1].b.weight[:, 8:] *= 1e-3
        model.body[1].an.weight[8:] *= 1e-3
    anatomy = Anatomy.of(model, X)
    even = prune(model, Scale(1, 0.67, 1), X, anatomy=anatomy)
    spread = prune(model, Scale(1, 0.67, 1), X, anatomy=anatomy, widths="global")
    inner = [block.a.out_channels for block in spread.model.body]
    assert inner[1] == 16 and min(inner) == 16  # half of the uniform 32: the floor
    assert inner[0] + inner[2] > 64
    channels = lambda m: m.stem.out_channels + sum(block.a.out_channels for block in m.body)  # noqa: E731
    assert channels(spread.model) == channels(even.model) and spread.scale.width == pytest.approx(even.scale.width)
    assert spread.macs == pytest.approx(count(spread.model, X).macs / count(model, X).macs)
    assert spread.recipe.method == {"importance": "l2", "widths": "global", "blocks": "evenly spread"}
    again = Recipe.from_json(spread.recipe.to_json())
    assert again == spread.recipe
    built = rebuild(again, model)
    built.load_state_dict(spread.model.state_dict())
    assert torch.equal(built.eval()(X), spread.model.eval()(X))
    smaller = prune(spread.model, Scale(1, 0.4, 1), X, anatomy=anatomy, recipe=spread.recipe, widths="global")
    assert smaller.macs < spread.macs and count(smaller.model, X).macs == round(smaller.macs * count(model, X).macs)


def test_the_floor_lies_between_uniform_widths_and_none() -> None:
    model = shaken(Tiny(3))
    with torch.no_grad():
        for layer in (model.body[1].a, model.body[1].an):
            layer.weight.mul_(1e-3)
        model.body[1].b.weight[:, 8:] *= 1e-3
    anatomy = Anatomy.of(model, X, channel_step=4, least_channels=4)
    fewest = []
    for floor in (0.0, 0.5, 0.75, 1.0):
        pruned = prune(model, Scale(1, 0.5, 1), X, anatomy=anatomy, widths="global", floor=floor).model
        fewest.append(pruned.body[1].a.out_channels)
    assert fewest[0] < fewest[1] == 12 < fewest[2] == 20 < fewest[3] == 24  # of 48, uniformly 24, in steps of 4
    uniform = prune(model, Scale(1, 0.5, 1), X, anatomy=anatomy).recipe
    assert prune(model, Scale(1, 0.5, 1), X, anatomy=anatomy, widths="global", floor=1).recipe.kept == uniform.kept
    with pytest.raises(UsageError, match=r"floor=1\.5 is no share"):
        prune(model, Scale(1, 0.5, 1), X, anatomy=anatomy, widths="global", floor=1.5)


def test_no_group_is_cut_below_the_least() -> None:
    model = Tiny(2)
    for least, smallest in ((4, (4, 4, 4)), (8, (8, 8, 8)), (30, (32, 32))):  # the stream of 32 cannot shrink to 32
        widths = Anatomy.of(model, X, channel_step=4, least_channels=least).widths
        assert widths.kept[0] == smallest and widths.kept[-1] == (32, 48, 48)[-len(smallest) :]


@pytest.mark.parametrize("importance", ["bn", "taylor", "reconstruction", "random"])
def test_every_criterion_prunes_to_the_same_shape(importance: str) -> None:
    model = shaken(Tiny(2))
    anatomy = Anatomy.of(model, X)
    pruned = prune(model, Scale(1, 0.5, 1), X, anatomy=anatomy, importance=importance, batches=DATA)  # type: ignore[arg-type]
    assert count(pruned.model, X) == anatomy.cost(Scale(1, 0.5, 1))
    assert pruned.recipe.method["importance"] == importance


def test_a_channel_step_per_kind_of_layer() -> None:
    steps = {"dense": 16, "pointwise": 8, "depthwise": 3}
    anatomy = Anatomy.of(Mixed(), X, channel_step=steps)
    unit = dict(zip((g.name for g in anatomy.groups), anatomy.units, strict=True))
    assert unit["squeeze.down"] == 8  # two 1x1 convolutions
    assert unit["expand"] == 24  # 1x1 and depthwise
    assert "stem" not in unit or unit["stem"] == 16
    for kept in anatomy.widths.kept:
        for group, n in zip(anatomy.groups, kept, strict=True):
            assert n == group.count or n * group.positions_each % unit[group.name] == 0
    assert (
        Anatomy.of(Tiny(1), X, channel_step={"dense": 16}).widths.kept
        == Anatomy.of(Tiny(1), X, channel_step=16).widths.kept
    )
    with pytest.raises(UsageError, match="at least 1"):
        Anatomy.of(Tiny(1), X, channel_step={"dense": 0})
    assert Axis("stem", "out") in anatomy.axes
