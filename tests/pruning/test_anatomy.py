from __future__ import annotations

import pickle
import time
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from conftest import network
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import Cardinal, Mixed, OptionA, Tiny, shaken
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import KINDS, count
from mobileprune.pruning.prune import prune
from mobileprune.scale import BASE, Scale
from mobileprune.tensors import tensors_in

X = torch.randn(1, 3, 32, 32)


@cache
def prepared(name: str) -> tuple[nn.Module, Anatomy]:
    nets = {"tiny": lambda: Tiny(5), "mixed": Mixed, "padded": OptionA}
    model = nets[name]() if name in nets else network(name)
    return model, Anatomy.of(model, X)


def counted(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """(MACs, parameters) by an independent route: hooks and the weights' own shapes."""
    total = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        total += module.weight[0].numel() * out.numel()  # per output element: weights of one filter

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, *size))
    for hook in hooks:
        hook.remove()
    return total, sum(p.numel() for p in model.parameters())


def test_cost_of_a_tiny_net_in_closed_form() -> None:
    _, anatomy = prepared("tiny")
    cost = anatomy.cost(BASE)
    stem, body, head = 27 * 32 * 256, 10 * 9 * 32 * 48 * 256, 32 * 5
    assert cost.macs == stem + body + head
    assert cost.params == (27 * 32 + 32 + 64) + 5 * (2 * 9 * 32 * 48 + 96 + 64) + (160 + 5)
    assert cost.peak_activation_bytes == 4 * 256 * (32 + 48)
    assert cost.features["macs_conv"] == pytest.approx((stem + body) / 1e6)
    assert cost.features["acts_linear"] == pytest.approx(37e-6)
    assert cost.features["weights_conv"] == pytest.approx((27 * 32 + 10 * 9 * 32 * 48) / 1e6)
    assert [cost.features[f"layers_{k}"] for k in KINDS] == [0, 11, 0, 1]


@given(
    name=st.sampled_from(["tiny", "mixed", "padded", "timm:mobilenetv3_small_050", "torchvision:regnet_y_400mf"]),
    scale=st.tuples(*[st.floats(0.25, 1.0)] * 3),
    seed=st.integers(0, 99),
)
@example(name="torchvision:regnet_y_400mf", scale=(1.0, 0.25, 1.0), seed=0)  # one group left of some
@settings(max_examples=25, deadline=None)
def test_cost_is_that_of_the_really_pruned_model(name: str, scale: tuple[float, float, float], seed: int) -> None:
    model, anatomy = prepared(name)
    able = (len(anatomy.blocks) > 1, len(anatomy.widths.values) > 1, len(anatomy.sizes) > 1)
    asked = Scale(*(s if a else 1.0 for s, a in zip(scale, able, strict=True)))
    ranking = {b.name: float(v) for b, v in zip(anatomy.blocks, torch.rand(len(anatomy.blocks)), strict=True)}
    reached = anatomy.choose(asked, ranking).scale
    expected = anatomy.cost(asked, ranking)
    pruned = prune(model, reached, X, anatomy=anatomy, ranking=ranking)
    assert pruned.scale == reached
    assert (expected.macs, expected.params) == counted(pruned.model, pruned.input_size)
    assert expected == count(pruned.model, torch.randn(1, 3, *pruned.input_size))
    assert sum(expected.features[f"macs_{k}"] for k in KINDS) * 1e6 == pytest.approx(expected.macs)


def test_a_convolution_with_one_group_left_counts_as_an_ordinary_one() -> None:
    model = Cardinal()
    anatomy = Anatomy.of(model, X, channel_step=4, least_channels=4)
    narrowest = anatomy.choose(Scale(1.0, 0.05, 1.0)).scale
    pruned = prune(model, narrowest, X, anatomy=anatomy)
    left = [pruned.model.get_submodule(name).groups for name in ("grouped", "alone", "larger")]
    assert left == [1, 1, 2]
    cost = anatomy.cost(narrowest)
    assert cost == count(pruned.model, X)
    assert (cost.features["layers_conv"], cost.features["layers_depthwise"]) == (3, 1)  # the stem and the first two


def test_lattice_names_distinct_networks_and_is_reached_exactly() -> None:
    model, anatomy = prepared("tiny")
    lattice = anatomy.lattice()
    assert lattice.depths == (0.4, 0.6, 0.8, 1.0)
    assert lattice.resolutions == (0.5, 0.625, 0.75, 0.875, 1.0)
    assert lattice.widths[-1] == 1.0 and lattice.widths[0] >= 0.3
    seen = {}
    for scale in lattice:
        choice = anatomy.choose(scale)
        assert choice.scale == scale
        assert seen.setdefault((choice.removed, choice.kept, choice.size), scale) == scale
    for width in lattice.widths:
        if width < 1:
            pruned = prune(model, Scale(1, width, 1), X, anatomy=anatomy)
            stem, inner = pruned.model.stem.out_channels, pruned.model.body[0].a.out_channels
            assert stem % 8 == inner % 8 == 0
            assert width == (stem + 5 * inner) / (32 + 5 * 48)  # the share of channels really kept


def test_cost_grows_with_every_dimension() -> None:
    for name in ("tiny", "mixed", "padded"):
        _, anatomy = prepared(name)
        lattice = anatomy.lattice(min_depth=0, min_width=0, min_resolution=0)
        for axis in ("depth", "width", "resolution"):
            values = getattr(lattice, axis + "s")
            costs = [anatomy.cost(Scale(**{axis: v})).macs for v in values]
            assert costs == sorted(costs) and len(set(costs)) == len(costs)


def test_cost_answers_in_about_a_millisecond_of_cpu() -> None:
    _, anatomy = prepared("timm:mobilenetv3_small_050")
    scales = list(anatomy.lattice())[:300]
    before = time.process_time()
    for scale in scales:
        anatomy.cost(scale)
    assert time.process_time() - before < 3.0  # ten times what it takes


def test_lattice_is_thinned_but_keeps_both_ends() -> None:
    _, anatomy = prepared("timm:mobilenetv3_small_050")
    lattice = anatomy.lattice(min_width=0.01)
    assert len(anatomy.widths.values) > 48 >= len(lattice.widths) > 30
    assert lattice.widths[0] == anatomy.widths.values[0] and lattice.widths[-1] == 1.0
    assert set(lattice.widths) <= set(anatomy.widths.values)


def test_notes_say_what_stays_and_why() -> None:
    _, padded = prepared("padded")
    (note,) = [n for n in padded.notes if n.startswith("width")]
    assert "up" in note and "padding" in note
    _, mixed = prepared("mixed")
    assert any(n.startswith("depth: no residual block") for n in mixed.notes)
    assert prepared("tiny")[1].notes == []


class Fixed(nn.Module):
    """Flattens into a linear layer: no other input size fits."""

    def __init__(self, divisor: int = 0) -> None:
        super().__init__()
        self.conv, self.divisor = nn.Conv2d(3, 16, 3, 2, 1), divisor
        self.head = nn.Linear(16, 5) if divisor else nn.Linear(16 * 256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if not self.divisor:
            return self.head(x.flatten(1))
        halves = x.unflatten(2, (self.divisor, -1))  # fails where the height is not a multiple
        return self.head(halves.mean((2, 3, 4)))


def test_a_head_of_fixed_size_is_noted_and_a_step_of_the_network_is_found() -> None:
    fixed = Anatomy.of(Fixed(), X)
    assert fixed.sizes == ((32, 32),) and "resolution: not at" in fixed.notes[0]
    with pytest.raises(UsageError, match=r"cannot be pruned in resolution .*fails"):
        prune(Fixed(), Scale(1, 1, 0.5), X)
    stepped = Anatomy.of(Fixed(8), X)
    assert stepped.sizes == ((16, 16), (32, 32))


def test_sizes_follow_the_step_and_the_shape_of_the_input() -> None:
    model = Tiny(1)
    assert Anatomy.of(model, X, resolution_step=8).sizes == ((8, 8), (16, 16), (24, 24), (32, 32))
    assert Anatomy.of(model, torch.randn(1, 3, 30, 30)).sizes[-2:] == ((28, 28), (30, 30))
    assert Anatomy.of(model, torch.randn(1, 3, 96, 96)).sizes == ((32, 32), (48, 48), (64, 64), (80, 80), (96, 96))
    assert Anatomy.of(model, torch.randn(1, 3, 32, 64)).sizes == tuple((h, 2 * h) for h in range(8, 33, 4))


def test_the_channel_step_is_the_callers() -> None:
    anatomy = Anatomy.of(Tiny(2), X, channel_step=16)
    assert anatomy.widths.kept == ((16, 16, 16), (16, 32, 32), (32, 32, 32), (32, 48, 48))  # at .5, .75 and .83
    assert all(k % 16 == 0 for kept in anatomy.widths.kept for k in kept)


def test_analysis_leaves_the_model_alone() -> None:
    model = shaken(Tiny(3)).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    Anatomy.of(model, X)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32)])
def test_an_input_that_does_not_fit_is_an_error_in_words(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"input"):
        Anatomy.of(Tiny(1), torch.randn(shape))


def test_containers_of_outputs_are_read() -> None:
    model, anatomy = prepared("mixed")
    pruned = prune(model, Scale(1, 0.6, 1), X, anatomy=anatomy)
    assert [t.shape for t in tensors_in(pruned.model(X))] == [(1, 7)]


def test_an_anatomy_travels_to_another_process_without_the_weights() -> None:
    _, anatomy = prepared("timm:mobilenetv3_small_050")
    data = pickle.dumps(anatomy)
    assert len(data) < 1_000_000  # the network's weights alone are six times that
    again = pickle.loads(data)
    scale = again.lattice().smallest
    assert again.cost(scale) == anatomy.cost(scale) and again.lattice() == anatomy.lattice()
