from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from conftest import network
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Mixed, OptionA, Tiny
from torch import nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.prune import prune
from mobileprune.pruning.reach import reach
from mobileprune.scale import BASE, Scale

X = torch.randn(1, 3, 32, 32)


@cache
def prepared(name: str) -> tuple[nn.Module, Anatomy]:
    nets = {"tiny": lambda: Tiny(5), "mixed": Mixed, "padded": OptionA}
    model = nets[name]() if name in nets else network(name)
    return model, Anatomy.of(model, X)


def every_scale(anatomy: Anatomy) -> list[Scale]:
    return [Scale(d, w, r) for d in anatomy.depths for w in anatomy.widths.values for r in anatomy.resolutions]


@given(
    share=st.floats(0.02, 0.99),
    name=st.sampled_from(["tiny", "mixed", "padded"]),
    measure=st.sampled_from(["macs", "params"]),
)
@settings(max_examples=60, deadline=None)
def test_no_scale_is_nearer_than_the_one_reached_or_it_is_within_one_percent(
    share: float, name: str, measure: str
) -> None:
    _, anatomy = prepared(name)
    base = getattr(anatomy.cost(BASE), measure)
    shares = [getattr(anatomy.cost(s), measure) / base for s in every_scale(anatomy) if s != BASE]
    if measure == "params":
        shares = [v for v in shares if v < 1.0]
    nearest = min(abs(v - share) for v in shares)
    if min(shares) > 1.02 * share:
        with pytest.raises(UsageError, match="goes down to"):
            reach(anatomy, **{measure: share})
        return
    got = reach(anatomy, **{measure: share})
    assert abs(got.error) <= 0.01 + 1e-12 or abs(got.share - share) == pytest.approx(nearest)
    cost = anatomy.cost(got.scale)
    assert getattr(cost, measure) / base == pytest.approx(got.share)
    assert got.scale == anatomy.choose(got.scale).scale


@given(share=st.floats(0.1, 0.95))
@settings(max_examples=25, deadline=None)
def test_a_real_network_is_hit_within_two_percent_in_macs_and_parameters(share: float) -> None:
    _, anatomy = prepared("timm:mobilenetv3_small_050")
    for measure in ("macs", "params"):
        try:
            got = reach(anatomy, **{measure: share})
        except UsageError as error:
            smallest = Scale(anatomy.depths[0], anatomy.widths.values[0], anatomy.resolutions[0])
            least = getattr(anatomy.cost(smallest), measure) / getattr(anatomy.cost(BASE), measure)
            assert share < least and f"{least:.1%}" in str(error)
        else:
            assert abs(got.error) <= 0.02


@given(share=st.floats(0.15, 0.9))
@settings(max_examples=25, deadline=None)
def test_of_equal_ones_the_cut_is_shared_most_evenly(share: float) -> None:
    _, anatomy = prepared("tiny")
    base = anatomy.cost(BASE).macs
    got = reach(anatomy, macs=share)

    def logs(scale: Scale) -> list[float]:
        alone = (Scale(scale.depth, 1, 1), Scale(1, scale.width, 1), Scale(1, 1, scale.resolution))
        return [math.log(anatomy.cost(s).macs / base) for s in alone]

    def uneven(scale: Scale) -> float:
        values = logs(scale)
        return sum((v - sum(values) / 3) ** 2 for v in values)

    rivals = [s for s in every_scale(anatomy) if abs(anatomy.cost(s).macs / base / share - 1) <= 0.01 and s != BASE]
    if rivals:
        assert uneven(got.scale) == pytest.approx(min(map(uneven, rivals)), abs=1e-9)


def test_the_dimensions_named_are_the_ones_pruned() -> None:
    _, anatomy = prepared("torchvision:resnet18")
    for name, fixed in (("depth", "width"), ("width", "depth"), ("resolution", "width")):
        got = reach(anatomy, macs=0.6, along=(name,))
        assert getattr(got.scale, name) < 1 and getattr(got.scale, fixed) == 1
        assert sum(v < 1 for v in got.scale.as_tuple()) == 1
    assert reach(anatomy, params=0.5).scale.resolution == 1.0
    with pytest.raises(UsageError, match="changes this network's params"):
        reach(anatomy, params=0.5, along=("resolution",))


def test_what_is_reached_is_said() -> None:
    _, anatomy = prepared("tiny")
    hit = reach(anatomy, macs=0.5)
    assert abs(hit.error) <= 0.02 and str(hit) == f"{hit.scale}: {hit.macs:.1%} of the MACs"
    missed = reach(anatomy, macs=0.97, along=("depth",))
    assert missed.scale == Scale(0.8, 1, 1) and missed.error < -0.1
    assert "the nearest to the requested 97.0%" in str(missed)


@pytest.mark.parametrize("bad", [{}, {"macs": 0.5, "params": 0.5}, {"macs": 1.0}, {"macs": 0}, {"params": -0.1}])
def test_a_request_that_is_none_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"share"):
        reach(prepared("tiny")[1], **bad)
    with pytest.raises(UsageError, match="name one or more"):
        reach(prepared("tiny")[1], macs=0.5, along=("height",))


def test_prune_takes_a_share_and_says_what_it_reached() -> None:
    model, anatomy = prepared("tiny")
    ranking = {b.name: float(i) for i, b in enumerate(anatomy.blocks)}
    pruned = prune(model, None, X, macs=0.4, ranking=ranking)
    base, now = count(model, X), count(pruned.model, torch.zeros(1, 3, *pruned.input_size))
    assert pruned.macs == now.macs / base.macs == pytest.approx(0.4, rel=0.02)
    assert pruned.params == now.params / base.params
    smaller = prune(pruned.model, None, X, params=0.3, anatomy=anatomy, ranking=ranking, recipe=pruned.recipe)
    assert smaller.params == pytest.approx(0.3, rel=0.05)
    assert smaller.scale.depth <= pruned.scale.depth and smaller.scale.width <= pruned.scale.width
    assert smaller.scale.resolution == pruned.scale.resolution
    left = sum(p.numel() for p in smaller.model.parameters())
    assert smaller.params == left / base.params


@pytest.mark.parametrize("share", [0.35, 0.6, 0.85])
def test_global_widths_hit_a_share_too_though_they_cost_more_or_less_than_uniform_ones(share: float) -> None:
    model, anatomy = prepared("timm:mobilenetv3_small_050")
    pruned = prune(model, None, X, macs=share, along=("width",), anatomy=anatomy, widths="global")
    assert pruned.macs == count(pruned.model, X).macs / count(model, X).macs == pytest.approx(share, rel=0.02)
    uniform = prune(model, None, X, macs=share, along=("width",), anatomy=anatomy)
    assert pruned.scale.depth == uniform.scale.depth == pruned.scale.resolution == 1.0
    assert pruned.recipe.kept.keys() != uniform.recipe.kept.keys() or pruned.scale.width != uniform.scale.width


def test_the_dimensions_of_a_request_are_no_part_of_a_scale() -> None:
    model, anatomy = prepared("tiny")
    with pytest.raises(UsageError, match="a scale says itself"):
        prune(model, Scale(1, 0.5, 1), X, anatomy=anatomy, along=("width",))


def test_prune_wants_one_target() -> None:
    model, anatomy = prepared("tiny")
    with pytest.raises(UsageError, match="either a scale"):
        prune(model, None, X, anatomy=anatomy)
    with pytest.raises(UsageError, match="either a scale"):
        prune(model, Scale(0.5, 1, 1), X, anatomy=anatomy, macs=0.5)
