from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import network
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Mixed, OptionA, Tiny, shaken
from torch import nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.layers import Axis, axis_sizes, outputs
from mobileprune.pruning.prune import Pruned, prune
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.scale import BASE, Scale

X = torch.randn(1, 3, 32, 32)


def train_a_little(pruned: Pruned) -> None:
    model = pruned.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = sum(t.square().mean() for t in outputs_with_grad(model, torch.randn(4, 3, *pruned.input_size)))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    optimizer.step()
    model.eval()


def outputs_with_grad(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = model(x)
    return list(out.values()) if isinstance(out, Mapping) else [out]


def require_consistent(model: nn.Module, recipe: Recipe) -> None:
    """The recipe tells the length of every axis, and every kept list is ascending and within the base."""
    sizes = axis_sizes(model)
    for axis, kept in recipe.kept.items():
        assert list(kept) == sorted(set(kept)) and sizes[axis] == len(kept)


ZOO = {
    # name: (side, dimensions that can be pruned)
    "torchvision:resnet18": (64, "dwr"),
    "torchvision:mobilenet_v2": (64, "dwr"),
    "torchvision:mobilenet_v3_small": (64, "dwr"),
    "torchvision:resnext50_32x4d": (32, "dwr"),
    "torchvision:densenet121": (64, "wr"),
    "torchvision:convnext_tiny": (64, "dwr"),
    "timm:mobilenetv3_small_050": (64, "dwr"),
    "timm:resnet18": (64, "dwr"),
    "timm:efficientnet_lite0": (64, "dwr"),
    "shared:resnet_cifar:resnet20": (32, "dwr"),
    "shared:mobilenet_v1:mobilenet_v1": (64, "wr"),
}


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    """Each network, in each dimension it has and in all together: runs, trains, is rebuilt, costs what was said."""
    side, dimensions = ZOO[name]
    model = network(name)
    x = torch.randn(1, 3, side, side)
    anatomy = Anatomy.of(model, x)
    assert len(anatomy.blocks) > 1 or "d" not in dimensions
    assert len(anatomy.widths.values) > 5 or "w" not in dimensions
    assert len(anatomy.sizes) > 3 or "r" not in dimensions
    wanted = {"d": Scale(0.5, 1, 1), "w": Scale(1, 0.5, 1), "r": Scale(1, 1, 0.75)}
    scales = [wanted[d] for d in dimensions]
    scales.append(Scale(*(0.7 if d in dimensions else 1.0 for d in "dwr")))
    base = anatomy.cost(BASE)
    for scale in scales:
        pruned = prune(model, scale, x, anatomy=anatomy)
        reached = zip(pruned.scale.as_tuple(), scale.as_tuple(), strict=True)
        assert all(abs(a - b) < 0.12 for a, b in reached)
        cost = anatomy.cost(pruned.scale)
        assert cost == count(pruned.model, torch.randn(1, 3, *pruned.input_size))
        assert cost.macs < 0.95 * base.macs
        require_consistent(pruned.model, pruned.recipe)
        train_a_little(pruned)
        again = rebuild(Recipe.from_json(pruned.recipe.to_json()), model).eval()
        again.load_state_dict(pruned.model.state_dict())
        batch = torch.randn(2, 3, *pruned.input_size)
        assert all(torch.equal(a, b) for a, b in zip(outputs(again, batch), outputs(pruned.model, batch), strict=True))


def test_width_keeps_the_network_at_the_step_and_the_ends_untouched() -> None:
    pruned = prune(network("torchvision:resnet18"), Scale(1, 0.6, 1), torch.randn(1, 3, 64, 64)).model
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels % 8 == 0, name
    assert pruned.conv1.in_channels == 3 and pruned.fc.out_features == 1000


def test_the_kept_channels_carry_the_weights_of_the_model_that_was_given() -> None:
    model = shaken(Tiny(2))
    pruned = prune(model, Scale(1, 0.5, 1), X)
    out, into = pruned.recipe.kept[Axis("body.1.a", "out")], pruned.recipe.kept[Axis("body.1.a", "in")]
    assert torch.equal(pruned.model.body[1].a.weight, model.body[1].a.weight[list(out)][:, list(into)])
    assert torch.equal(
        pruned.model.norm.running_var, model.norm.running_var[list(pruned.recipe.kept[Axis("norm", "out")])]
    )
    assert pruned.recipe.kept[Axis("body.0.b", "out")] == into == pruned.recipe.kept[Axis("head", "in")]


def test_depth_leaves_all_other_names_and_weights() -> None:
    model = shaken(Tiny(4))
    ranking = {"body.0": 0.3, "body.1": 0.1, "body.2": 0.2, "body.3": 0.4}
    pruned = prune(model, Scale(0.5, 1, 1), X, ranking=ranking)
    assert pruned.recipe.removed == ("body.1", "body.2") and pruned.scale == Scale(0.5, 1, 1)
    state = model.state_dict()
    rest = {k for k in state if not k.startswith(("body.1.", "body.2."))}
    assert pruned.model.state_dict().keys() == rest
    assert all(torch.equal(v, state[k]) for k, v in pruned.model.state_dict().items())


def test_the_input_model_is_untouched_and_shares_nothing() -> None:
    model = shaken(Tiny(3)).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for scale in (Scale(0.7, 1, 1), Scale(1, 0.5, 1), Scale(1, 1, 0.5), BASE):
        pruned = prune(model, scale, X).model
        assert pruned.training
        with torch.no_grad():
            for tensor in pruned.state_dict().values():
                tensor.zero_()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["tiny", "mixed", "torchvision:vgg11_bn", "torchvision:squeezenet1_1"])
def test_width_alone_is_cut_as_with_a_whole_anatomy(name: str) -> None:
    """Without one given, blocks are not tried out: what their removal would couple must be coupled all the same."""
    model = {"tiny": lambda: Tiny(5), "mixed": Mixed}.get(name, lambda: network(name))().eval()
    scale, image = Scale(1.0, 0.5, 1.0), torch.randn(1, 3, 64, 64)
    alone, whole = prune(model, scale, image), prune(model, scale, image, anatomy=Anatomy.of(model, image))
    assert alone.recipe.kept == whole.recipe.kept and alone.scale == whole.scale
    assert alone.macs == whole.macs < 1.0


@given(
    points=st.lists(st.tuples(*[st.floats(0.2, 1.0)] * 3), min_size=2, max_size=4),
    net=st.sampled_from([Tiny, OptionA]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_chains_are_nested_and_relative_to_the_base(points: list, net: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    base = net()
    anatomy = Anatomy.of(base, X)
    ranking = {b.name: float(v) for b, v in zip(anatomy.blocks, torch.rand(len(anatomy.blocks)), strict=True)}
    chain = [Scale(*(min(p[i] for p in points[: n + 1]) for i in range(3))) for n in range(len(points))]
    model, recipe = base, None
    for asked in chain:
        scale = anatomy.choose(asked, ranking).scale
        child = prune(model, scale, X, anatomy=anatomy, ranking=ranking, recipe=recipe)
        assert child.scale == scale and child.recipe.scale == scale
        assert anatomy.cost(scale, ranking) == count(child.model, torch.randn(1, 3, *child.input_size))
        require_consistent(child.model, child.recipe)
        for axis, kept in child.recipe.kept.items():
            assert max(kept) < anatomy.axes[axis]
        if recipe is not None:
            assert set(recipe.removed) <= set(child.recipe.removed)
            for axis, kept in recipe.kept.items():
                assert axis.layer.startswith(tuple(child.recipe.removed)) or set(child.recipe.kept[axis]) <= set(kept)
        with torch.no_grad():  # "fine-tuning": other weights, so other channels matter
            for parameter in child.model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        built = rebuild(Recipe.from_json(child.recipe.to_json()), base)
        built.load_state_dict(child.model.state_dict())
        x = torch.randn(2, 3, *child.input_size)
        assert torch.equal(built.eval()(x), child.model.eval()(x))
        model, recipe = child.model, child.recipe


def test_a_child_keeps_what_its_parent_removed_whatever_the_ranking_says_now() -> None:
    base = Tiny(4)
    anatomy = Anatomy.of(base, X)
    first = {"body.0": 4.0, "body.1": 1.0, "body.2": 3.0, "body.3": 2.0}
    parent = prune(base, Scale(0.75, 1, 1), X, anatomy=anatomy, ranking=first)
    later = {name: -value for name, value in first.items()}
    child = prune(parent.model, Scale(0.5, 0.6, 1), X, anatomy=anatomy, ranking=later, recipe=parent.recipe)
    assert parent.recipe.removed == ("body.1",) and child.recipe.removed == ("body.0", "body.1")
    assert not any(axis.layer.startswith(("body.0", "body.1")) for axis in child.recipe.kept)
    assert isinstance(child.model.body[0], nn.Identity) and isinstance(child.model.body[1], nn.Identity)


def test_a_chain_keeps_the_parents_weights_at_the_right_base_positions() -> None:
    """Mark every filter with its base number, prune twice, and read the numbers back."""
    base = Tiny(2)
    with torch.no_grad():
        for number, filters in enumerate(base.body[0].a.weight):
            filters.fill_(1.0 + (number * 29 % 48))
            base.body[0].an.bias[number] = number
    anatomy = Anatomy.of(base, X)
    parent = prune(base, Scale(1, 0.75, 1), X, anatomy=anatomy)
    with torch.no_grad():  # after "fine-tuning" the order of importance is the reverse
        parent.model.body[0].a.weight.copy_(60.0 - parent.model.body[0].a.weight)
    child = prune(parent.model, Scale(1, 0.4, 1), X, anatomy=anatomy, recipe=parent.recipe)
    axis = Axis("body.0.an", "out")
    assert child.model.body[0].an.bias.tolist() == list(child.recipe.kept[axis])
    assert set(child.recipe.kept[axis]) < set(parent.recipe.kept[axis])
    alive = sorted(parent.recipe.kept[axis], key=lambda n: n * 29 % 48)
    assert list(child.recipe.kept[axis]) == sorted(alive[: len(child.recipe.kept[axis])])


@pytest.mark.parametrize(
    ("parent", "child", "word"),
    [
        (Scale(0.5, 0.6, 1), Scale(0.75, 0.6, 1), "depth"),
        (Scale(0.5, 0.6, 1), Scale(0.5, 0.9, 1), "width"),
        (Scale(1, 0.6, 0.5), Scale(1, 0.6, 1), "resolution"),
    ],
)
def test_a_parent_that_is_smaller_is_refused(parent: Scale, child: Scale, word: str) -> None:
    base = Tiny(4)
    anatomy = Anatomy.of(base, X)
    first = prune(base, parent, X, anatomy=anatomy)
    with pytest.raises(UsageError, match=f"{word} .* cannot come back"):
        prune(first.model, child, X, anatomy=anatomy, recipe=first.recipe)


def test_a_scale_that_changes_nothing_or_cannot_is_an_error() -> None:
    base = Tiny(4)
    with pytest.raises(UsageError, match="changes nothing"):
        prune(base, Scale(0.97, 0.99, 0.99), X)
    with pytest.raises(UsageError, match=r"cannot be pruned in depth .*no residual block"):
        prune(Mixed(), Scale(0.5, 0.5, 1), X)
    half = prune(base, Scale(0.5, 1, 1), X)
    with pytest.raises(UsageError, match="changes nothing"):
        anatomy = Anatomy.of(base, X)
        prune(half.model, Scale(0.45, 1, 1), X, anatomy=anatomy, recipe=half.recipe)


def test_a_zero_padded_stream_is_pruned_where_the_padding_allows_it() -> None:
    model = shaken(OptionA())
    pruned = prune(model, Scale(1, 0.5, 1), X)
    assert pruned.model.stem.out_channels == 8 and pruned.model.up.out_channels == 24  # 16 of them meet padding
    assert pruned.model.first.a.out_channels == 16 and pruned.model.down.out_channels == 16
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for axis, kept in pruned.recipe.kept.items():
            if axis.side == "in":
                layer = masked.get_submodule(axis.layer)
                mask = torch.zeros(layer.weight.shape[1])
                mask[list(kept)] = 1
                layer.weight.mul_(mask.view(1, -1, *[1] * (layer.weight.dim() - 2)))
    x = torch.randn(4, 3, 32, 32)
    assert torch.allclose(pruned.model.eval()(x), masked(x), atol=1e-4)


def test_the_result_exports(tmp_path: Path) -> None:
    pruned = prune(shaken(Tiny(3)), Scale(0.7, 0.5, 0.75), X)
    model, x = pruned.model.eval(), torch.randn(1, 3, *pruned.input_size)
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-5)
    import onnxruntime

    path = tmp_path / "m.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-4)
