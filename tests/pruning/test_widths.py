from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from conftest import network
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Cardinal, Mixed, OptionA, Rolled, Shifted, Tiny, shaken
from torch import nn

from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.couplings import ChannelGroup, find_couplings, find_groups
from mobileprune.pruning.filters import removed_positions, width_axis
from mobileprune.pruning.importance import Importance, best
from mobileprune.pruning.layers import Axis, axis_sizes, outputs, slice_layer, slice_model
from mobileprune.pruning.proof import prove
from mobileprune.pruning.prune import prune
from mobileprune.pruning.tracing import ChannelTracer
from mobileprune.scale import Scale

X = torch.randn(1, 3, 32, 32)


def group_of(channels: int, each: int = 1) -> ChannelGroup:
    rows = np.arange(channels).reshape(each, -1).T
    return ChannelGroup("a", {Axis("a", "out"): rows})


def test_groups_of_a_residual_net_in_closed_form() -> None:
    groups = {g.name: g for g in find_groups(Tiny(2), X)}
    assert sorted(groups) == ["body.0.a", "body.1.a", "stem"]
    stream = {(axis.layer, axis.side) for axis in groups["stem"].members}
    both = {(f"body.{i}.{layer}", side) for i in (0, 1) for layer, side in (("a", "in"), ("b", "out"), ("bn", "out"))}
    assert stream == both | {("stem", "out"), ("norm", "out"), ("head", "in")}
    assert groups["stem"].channels == 32 and groups["body.0.a"].channels == 48


def test_groups_through_flatten_concat_groups_and_bare_parameters() -> None:
    groups = {g.name: g for g in find_groups(Mixed(), X)}
    stem = groups["stem"].members
    # the two groups of the grouped convolution read x and y, so x's channel i goes with y's channel i
    assert stem[Axis("grouped", "in")].tolist() == [[i, i + 24] for i in range(24)]
    assert Axis("gamma", "param") in stem and Axis("act", "out") in stem and Axis("project", "out") in stem
    grouped = groups["grouped"]
    # two groups of the convolution, four of the norm: channel i goes with i + 16, + 32, + 48
    assert grouped.count == 16 and grouped.channels == 64
    assert grouped.members[Axis("grouped", "out")][0].tolist() == [0, 16, 32, 48]
    assert grouped.members[Axis("wide", "in")].shape == (16, 16)
    assert Axis("squeeze.up", "out") in groups["expand"].members and groups["squeeze.down"].channels == 16
    assert "head" not in groups


def test_grouped_convolutions_lose_whole_groups_where_that_is_the_smaller_step() -> None:
    model = Cardinal()
    groups = {g.name: g for g in find_groups(model, X)}
    inner = groups["down"]  # 12 groups of 4 and 8 channels: what a group reads and gives goes together
    assert inner.members[Axis("down", "out")].tolist() == [list(range(i, i + 4)) for i in range(0, 48, 4)]
    assert inner.members[Axis("up", "in")].tolist() == [list(range(i, i + 8)) for i in range(0, 96, 8)]
    assert Axis("grouped", "in") in inner.members and Axis("squeeze.up", "out") in inner.members
    assert inner.cuts_groups("grouped", model.grouped) and not inner.cuts_groups("down", model.down)
    stream = groups["stem"]  # 8 groups of 4 and 8 channels, of which 2 groups each of the transposed one
    assert stream.count == 8 and stream.members[Axis("larger", "in")].shape == (8, 8)
    assert stream.members[Axis("head", "in")][1].tolist() == [4, 5, 6, 7]
    # 2 groups of 24 shrink in steps of 8 with as many channels of each, by whole groups in steps of 24
    assert find_groups(Mixed(), X)[0].members[Axis("grouped", "in")].shape == (24, 2)


def test_groups_that_are_tied_to_each_other_keep_the_same_channels() -> None:
    model = Rolled()
    (group,) = find_groups(model, X)
    each = [sorted(row) for row in group.members[Axis("stem", "out")].tolist()]
    assert sorted(each) == [list(range(i, 64, 4)) for i in (2, 3)]  # the slices hold the first two, and so their kind
    assert not group.cuts_groups("grouped", model.grouped)
    assert prove(model, [group], X) == ([group], [])


@pytest.mark.parametrize("width", [0.6, 0.5, 0.25])
def test_a_network_without_some_groups_costs_what_was_foretold(width: float) -> None:
    model = shaken(Cardinal())
    anatomy = Anatomy.of(model, X)
    once = prune(model, Scale(1.0, 0.8, 1.0), X, anatomy=anatomy)
    batches = [(torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64))]
    for start, before in ((model, None), (once.model, once.recipe)):
        pruned = prune(
            start,
            Scale(1.0, width, 1.0),
            X,
            anatomy=anatomy,
            recipe=before,
            importance="reconstruction",
            reconstruct=True,
            batches=batches,
        )
        found, base = count(pruned.model, X), count(model, X)
        assert (pruned.macs, pruned.params) == (found.macs / base.macs, found.params / base.params)
        assert pruned.model.grouped.weight.shape[1:] == model.grouped.weight.shape[1:]
        assert pruned.model.grouped.groups == pruned.model.grouped.in_channels // 4 < 12
        assert not pruned.unreconstructed


@pytest.mark.parametrize("model", [Tiny(3), Mixed(), Cardinal()])
def test_masked_dense_equals_pruned(model: nn.Module) -> None:
    """The claim behind all of width pruning, with the masking done here by zeroing activations, not weights."""
    model = shaken(model)
    groups = find_groups(model, X)
    proven, refuted = prove(model, groups, X)
    assert not refuted and len(proven) == len(groups)
    rng = np.random.default_rng(1)
    groups = [g for g in groups if Axis("group_norm", "out") not in g.members]  # its statistics mix channels
    kept = [np.sort(rng.permutation(g.count)[: g.count // 2]) for g in groups]
    keep = removed_positions(groups, kept, axis_sizes(model))
    pruned = copy.deepcopy(model)
    slice_model(pruned, {axis: at.tolist() for axis, at in keep.items()})
    for axis, at in keep.items():
        if axis.side != "in":
            continue

        def silence(_: nn.Module, args: tuple[torch.Tensor, ...], at: np.ndarray = at) -> tuple[torch.Tensor, ...]:
            mask = torch.zeros(args[0].shape[1])
            mask[torch.as_tensor(at)] = 1.0
            return (args[0] * mask.view(1, -1, *[1] * (args[0].dim() - 2)),)

        model.get_submodule(axis.layer).register_forward_pre_hook(silence)
    x = torch.randn(2, 3, 32, 32)
    for a, b in zip(outputs(pruned, x), outputs(model, x), strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in pruned.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())


def test_a_zero_padded_shortcut_ties_the_channels_that_it_carries() -> None:
    model = OptionA()
    groups = find_groups(model, X)
    proven, refuted = prove(model, groups, X)
    assert sorted(g.name for g in proven) == ["down", "first.a", "second.a", "stem"] and not refuted
    stem = next(g for g in groups if g.name == "stem").members
    assert stem[Axis("up", "out")].ravel().tolist() == list(range(8, 24))  # 8 zeros before, 8 after
    assert stem[Axis("head", "in")].ravel().tolist() == list(range(8, 24))
    held = find_couplings(model.eval(), X).held
    assert any("padding" in why and "up" in layers for why, layers in held.items())


class Moves(nn.Module):
    """Shuffle by two groups, then halves: what every element-moving operation does to channels, in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 24, 1)
        self.wide, self.head = nn.Conv2d(4, 16, 1), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)  # 0 8 1 9 ...
        a, b = x.chunk(2, 1)
        y = torch.cat([self.left(a), self.right(b)], 1)
        y = F.pixel_shuffle(y[:, 16:] + y[:, :16].mean(1, keepdim=True), 2)[:, :2].repeat(1, 2, 1, 1)
        return self.head(F.interpolate(self.wide(y), size=2).flatten(1)[:, ::2])


def test_moved_elements_keep_their_labels() -> None:
    tracer = ChannelTracer(model := Moves().eval())
    tracer.run(model, X)
    members = next(g for g in find_groups(model, X) if g.name == "stem").members
    # the shuffle ties i to i + 8; in shuffled order the halves tie 0 8 1 9 2 10 3 11 to 4 12 5 13 6 14 7 15
    assert members[Axis("stem", "out")].tolist() == [[i, i + 4, i + 8, i + 12] for i in range(4)]
    assert members[Axis("left", "in")].tolist() == [[2 * i, 2 * i + 1] for i in range(4)]
    assert any("slice of fixed size" in why for why in tracer.held)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:regnetx_002"])
def test_couplings_equal_torch_prunings_where_that_is_right(name: str) -> None:
    model, x = network(name), torch.randn(1, 3, 64, 64)
    graph = tp.DependencyGraph().build_dependency(copy.deepcopy(model), x, verbose=False)
    paths = {module: path for path, module in model.named_modules()}
    theirs = graph.model.named_modules()
    names = {module: path for path, module in theirs}
    finals = {"fc", "head.fc", "classifier.3"}
    expected = set()
    for group in graph.get_all_groups():
        layers = {names[dependency.target.module] for dependency, _ in group if dependency.target.module in names}
        if not layers & finals or (len(layers) > 1 and names[group[0].dep.target.module] not in finals):
            expected.add(frozenset(layers))
    for grouped in [path for path, module in model.named_modules() if getattr(module, "groups", 1) > 1]:
        touching = {layers for layers in expected if grouped in layers}  # they cut within the groups of a convolution
        expected = (expected - touching) | {frozenset().union(*touching)}
    ours = {frozenset(axis.layer for axis in group.members) for group in find_groups(model, x)}
    assert ours == expected and paths


def test_slow_paths_do_not_exist_in_a_graph_that_is_walked_once() -> None:
    couplings = find_couplings(network("timm:rexnet_100"), torch.randn(1, 3, 64, 64))
    assert len(couplings.groups) == 35 and any("slice" in why for why in couplings.held)


def test_a_coupling_whose_shapes_fit_by_luck_is_found_out() -> None:
    model = Shifted()
    groups = find_groups(model, X)
    assert {g.name for g in groups} == {"a", "c"}  # a and b coupled channel by channel: wrong by three
    proven, refuted = prove(model, groups, X)
    assert [g.name for g in proven] == ["c"]
    assert [g.name for g, _ in refuted] == ["a"] and "coupling" in refuted[0][1]


def test_proof_leaves_the_model_and_the_random_state_alone() -> None:
    model = shaken(Tiny(1)).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prove(model, find_groups(model, X), X)
    assert torch.equal(torch.rand(1), expected)
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_zero_initialised_branches_can_still_be_proven() -> None:
    model = Tiny(2)
    for block in model.body:
        nn.init.zeros_(block.bn.weight)
    groups = find_groups(model, X)
    assert len(prove(model, groups, X)[0]) == len(groups)


@given(
    counts=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    step=st.sampled_from([1, 2, 4, 8, 16]),
    at=st.floats(0.01, 1.0),
)
@settings(max_examples=150, deadline=None)
def test_width_axis_properties(counts: list[int], step: int, at: float) -> None:
    axis = width_axis([group_of(n) for n in counts], step)
    assert axis.values[-1] == 1.0 and axis.kept[-1] == tuple(counts)
    assert list(axis.values) == sorted(set(axis.values))
    for value, kept in zip(axis.values, axis.kept, strict=True):
        assert value == sum(kept) / sum(counts)
        assert axis.nearest(value) == axis.values.index(value)  # asking for a width gives it again
        for n, k in zip(counts, kept, strict=True):
            assert k == n or (k % step == 0 and max(step, 8) <= k < n)
    for small, large in zip(axis.kept, axis.kept[1:], strict=False):
        assert all(a <= b for a, b in zip(small, large, strict=True)) and small != large
    found = axis.values[axis.nearest(at)]
    assert all(abs(found - at) <= abs(v - at) for v in axis.values)


def test_width_axis_in_closed_form() -> None:
    axis = width_axis([group_of(16), group_of(32)], 8)
    assert axis.kept == ((8, 8), (8, 16), (8, 24), (16, 24), (16, 32))  # at .375, .625, .75 and .875 of the nominal
    assert width_axis([group_of(26)], 8).kept == ((8,), (16,), (24,), (26,))
    assert width_axis([group_of(10)], 16).kept == ((10,),)
    assert width_axis([group_of(96, each=32)], 8).kept == ((1,), (2,), (3,))  # 32 groups: whole positions
    assert width_axis([], 8).kept == ((),)


def test_importance_equals_torch_pruning() -> None:
    model = shaken(Tiny(3))
    graph = tp.DependencyGraph().build_dependency(copy.deepcopy(model).requires_grad_(True), X)
    theirs = {}
    for group in graph.get_all_groups():
        scores = tp.importance.GroupMagnitudeImportance(p=2)(group)
        theirs.setdefault(len(scores), []).append(np.sort(scores.numpy()))
    groups = find_groups(model, X)
    for group in groups:
        ours = Importance.of(model).of_channels(group, np.arange(group.count), {})
        ours = np.sort(ours / ours.mean())
        assert any(np.allclose(ours, other, rtol=1e-4) for other in theirs[group.count])


def test_the_most_important_channels_stay_and_equal_ones_in_order() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.ReLU(), nn.Conv2d(16, 4, 1, bias=False))
    for conv in (model[0], model[2]):
        nn.init.ones_(conv.weight)
    with torch.no_grad():
        model[0].weight[[2, 5, 11]] *= 3
        model[2].weight[:, 7] *= 10
    (group,) = find_groups(model, X)
    scores = Importance.of(model).of_channels(group, np.arange(16), {})
    assert best(scores, np.arange(16), 6).tolist() == [0, 1, 2, 5, 7, 11]
    assert scores[[0, 2, 7]].tolist() == [3.5, 15.5, 201.5]


def test_slicing_every_kind_of_layer_by_its_definition() -> None:
    x = torch.randn(2, 12, 5, 5)
    keep_in, keep_out = [1, 4, 7, 10], [0, 2, 3, 5]  # the same positions of each of the groups

    def check(layer: nn.Module, out: list[int] | None, into: list[int] | None) -> None:
        layer = shaken(nn.Sequential(layer))[0]
        cut = copy.deepcopy(layer)
        slice_layer(cut, *(None if at is None else torch.tensor(at) for at in (out, into)))
        masked = torch.zeros_like(x)
        masked[:, into or slice(None)] = x[:, into or slice(None)]
        wanted = layer(masked)
        got = cut(x[:, into] if into else x)
        assert torch.allclose(got, wanted[:, out] if out else wanted, atol=1e-5)

    check(nn.Conv2d(12, 6, 3), keep_out, keep_in)
    check(nn.ConvTranspose2d(12, 6, 3), keep_out, keep_in)
    check(nn.Conv2d(12, 12, 3, groups=12), keep_in, keep_in)
    check(nn.Conv2d(12, 24, 3, groups=12), [2, 3, 8, 9], [1, 4])
    check(nn.Conv2d(12, 6, 3, groups=2), [0, 2, 3, 5], [1, 4, 7, 10])
    check(nn.ConvTranspose2d(12, 6, 3, groups=2), [0, 2, 3, 5], [1, 4, 7, 10])
    check(nn.BatchNorm2d(12), keep_in, keep_in)
    check(nn.InstanceNorm2d(12, affine=True), keep_in, keep_in)
    check(nn.PReLU(12), keep_in, keep_in)
    check(nn.Conv2d(12, 6, 3, groups=3), [0, 1, 4, 5], [0, 1, 2, 3, 8, 9, 10, 11])  # the second group goes
    check(nn.ConvTranspose2d(12, 6, 3, groups=3), [0, 1, 4, 5], [0, 1, 2, 3, 8, 9, 10, 11])
    check(nn.Conv2d(12, 6, 3, groups=3), [2, 3], [4, 5, 6, 7])
    with pytest.raises(ValueError, match="same positions"):
        slice_layer(nn.Conv2d(12, 6, 3, groups=2), None, torch.tensor([0, 1, 6, 8]))
    for out in (None, torch.tensor([0, 1, 2]), torch.tensor([3, 4])):  # the group that is left gives 3, 4 and 5
        with pytest.raises(ValueError, match="together"):
            slice_layer(nn.Conv2d(12, 6, 3, groups=2), out, torch.arange(6, 12))


def test_frozen_parameters_stay_frozen_and_do_not_matter_to_tracing() -> None:
    model = Tiny(2).requires_grad_(False)
    assert len(find_groups(model, X)) == 3
    slice_layer(model.stem, torch.tensor([0, 1]), None)
    assert not model.stem.weight.requires_grad


def test_slices_of_fixed_size_keep_their_channels_and_say_so() -> None:
    class Woven(nn.Module):
        """Each step adds the last result to the first of its own channels: the number of paths multiplies."""

        def __init__(self) -> None:
            super().__init__()
            widths = [16 + 4 * i for i in range(12)]
            self.stem = nn.Conv2d(3, 16, 1)
            self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths))
            self.head = nn.Linear(widths[-1], 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for conv in self.convs:
                y, n = torch.relu(conv(x)), x.shape[1]
                x = torch.cat([y[:, :n] + x, y[:, n:]], 1)
            return self.head(x.mean((2, 3)))

    anatomy = Anatomy.of(Woven(), X)
    assert anatomy.groups == () and any("slice of fixed size" in note for note in anatomy.notes)


def test_a_layer_called_twice_is_cut_and_a_weight_that_two_layers_share_is_not() -> None:
    class Shared(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
            self.wide, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24, 5)
            if tied:
                self.b.weight = self.a.weight
            self.second = self.b if tied else self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(torch.relu(self.stem(x))))
            return self.head(torch.relu(self.wide(torch.relu(self.second(x)))).mean((2, 3)))

    tied = Anatomy.of(Shared(True), X)
    assert [group.name for group in tied.groups] == ["wide"]
    again = Shared(False)
    anatomy = Anatomy.of(again, X)
    assert sorted(group.name for group in anatomy.groups) == ["stem", "wide"]
    pruned = prune(again, Scale(1, 0.5, 1), X, anatomy=anatomy)
    assert pruned.model.a is pruned.model.second and pruned.model.a.in_channels == pruned.model.a.out_channels == 8
    assert count(pruned.model, X) == anatomy.cost(pruned.scale)
