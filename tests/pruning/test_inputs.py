from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F
from nets import Tiny, shaken
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.difference import diff
from mobileprune.pruning.layers import outline, own_tensors
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import prune
from mobileprune.pruning.recipe import rebuild
from mobileprune.scale import Scale

X = torch.randn(1, 3, 32, 32)


class Pair(nn.Module):
    """An image, a depth map of half its side and a vector; two heads in a dictionary, a lambda, functional pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.depth = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(1, 32, 3, 1, 1)
        self.body, self.norm = Tiny(3).body, nn.BatchNorm2d(32)
        self.place, self.act = nn.Linear(4, 16), lambda x: x.clamp_min(0.0)
        self.fine, self.coarse = nn.Linear(48, 6), nn.Linear(48, 2)

    def forward(self, image: Tensor, depth: Tensor, place: Tensor) -> dict[str, Tensor]:
        x = self.body(self.act(self.norm(self.colour(image) * self.depth(depth).sigmoid_())))
        x = torch.cat([F.adaptive_max_pool2d(x, 1).flatten(1), F.relu_(self.place(place))], 1)
        return {"fine": self.fine(x), "coarse": self.coarse(x)}


def batch(n: int, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(n, 3, side, side), torch.randn(n, 1, side // 2, side // 2), torch.randn(n, 4)


def test_several_inputs_are_pruned_in_every_dimension() -> None:
    model, example = shaken(Pair()), batch(2)
    anatomy = Anatomy.of(model, example, resolution_step=8)
    assert [len(anatomy.blocks), anatomy.sizes] == [3, ((8, 8), (16, 16), (24, 24), (32, 32))]
    assert {"colour", "place", "body.0.a"} <= {group.name for group in anatomy.groups}
    pruned = prune(model, Scale(0.67, 0.5, 0.75), example, anatomy=anatomy)
    assert pruned.input_size == (24, 24) and pruned.model.depth.out_channels == pruned.model.colour.out_channels == 16
    smaller = batch(4, 24)
    assert count(pruned.model, smaller) == anatomy.cost(pruned.scale)
    reestimate_norms(pruned.model, [smaller, batch(3, 24)])
    given = pruned.model.train()(*smaller)
    sum(t.square().mean() for t in given.values()).backward()
    built = rebuild(pruned.recipe, model)
    built.load_state_dict(pruned.model.state_dict())
    with torch.no_grad():
        wanted, got = pruned.model.eval()(*smaller), built.eval()(*smaller)
    assert all(torch.equal(wanted[key], got[key]) for key in ("fine", "coarse"))
    assert diff(pruned.recipe, model, example).input_size == ((32, 32), (24, 24))


def test_inputs_without_an_image_are_refused() -> None:
    with pytest.raises(UsageError, match=r"shape \(2, 4\), \(2, 5\): give a batch"):
        Anatomy.of(Pair(), (torch.randn(2, 4), torch.randn(2, 5)))
    with pytest.raises(UsageError, match="the model fails on an input"):
        Anatomy.of(Pair(), batch(1)[:2])


def test_a_network_that_looks_at_its_data_is_traced_with_data() -> None:
    class Looks(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            if float(x.abs().max()) > 1e6:
                raise ValueError("too bright")
            return super().forward(x)

    model = Looks(3)
    anatomy, plain = Anatomy.of(model, X), Anatomy.of(Tiny(3), X)
    assert anatomy.sizes == plain.sizes and anatomy.blocks == plain.blocks and anatomy.widths == plain.widths
    assert anatomy.cost(Scale(0.6, 0.5, 0.5)) == plain.cost(Scale(0.6, 0.5, 0.5))


def test_without_other_sizes_the_rest_is_the_same() -> None:
    model = Tiny(3)
    every, one = Anatomy.of(model, X), Anatomy.of(model, X, resolutions=False)
    assert one.sizes == ((32, 32),) and one.blocks == every.blocks and one.widths == every.widths
    with pytest.raises(UsageError, match="cannot be pruned in resolution"):
        prune(model, Scale(1, 1, 0.5), X, anatomy=one)


def test_an_outline_shares_tensors_and_nothing_else() -> None:
    model = Tiny(2)
    model.again = model.body[0]  # the same module twice
    model.notes = [1, {"stem": model.stem}]
    model.handler = types.MethodType(lambda self: self.stem, model)
    copied = outline(model)
    assert copied.stem is not model.stem and copied.stem.weight is model.stem.weight
    assert copied.again is copied.body[0] and copied.again is not model.again
    assert copied.notes[1]["stem"] is copied.stem and copied.handler() is copied.stem
    copied.stem = nn.Identity()
    copied.eval()
    assert isinstance(model.stem, nn.Conv2d) and model.training
    shapes = outline(model, "meta")
    assert all(p.is_meta for p in shapes.parameters()) and shapes.stem.weight.shape == model.stem.weight.shape


def test_a_result_shares_no_memory_with_its_base() -> None:
    model = shaken(Tiny(3))
    pruned = prune(model, Scale(0.67, 1, 1), X)
    theirs = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert not any(t.data_ptr() in theirs for t in [*pruned.model.parameters(), *pruned.model.buffers()])
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    copied = outline(tied)
    own_tensors(copied, tied)
    assert copied[0].weight is copied[1].weight and copied[0].weight is not tied[0].weight


def test_a_layer_that_runs_only_in_training_is_cut_with_what_it_reads() -> None:
    class Auxiliary(Tiny):
        def __init__(self) -> None:
            super().__init__(2)
            self.aux = nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.body(F.relu(self.norm(self.stem(x))))
            z = self.head(x.mean((2, 3)))
            return (z, self.aux(x.mean((2, 3)))) if self.training else z

    pruned = prune(Auxiliary(), Scale(1, 0.5, 1), X)
    assert pruned.model.aux.in_features == pruned.model.head.in_features == 16
    first, second = pruned.model.train()(torch.randn(2, 3, 32, 32))
    assert first.shape == second.shape == (2, 5)
