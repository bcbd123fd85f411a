from __future__ import annotations

import inspect
import json

import pytest
import torch
from nets import Mixed, OptionA, Tiny
from torch import Tensor, nn

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.difference import diff
from mobileprune.pruning.explain import explain
from mobileprune.pruning.prune import prune
from mobileprune.scale import Scale

X = torch.randn(1, 3, 32, 32)


def test_a_tiny_network_in_closed_form() -> None:
    told = explain(Anatomy.of(Tiny(4), X))
    stem, block, head = 27 * 32 * 256, 2 * 9 * 32 * 48 * 256, 32 * 5
    assert told.macs == stem + 4 * block + head and told.input_size == (32, 32)
    assert [row.name for row in told.blocks] == [f"body.{i}" for i in range(4)]
    assert {row.macs for row in told.blocks} == {block}
    assert told.blocks[0].macs_share == pytest.approx(block / told.macs)
    assert told.blocks[0].params == 2 * 9 * 32 * 48 + 2 * 48 + 2 * 32
    stream = told.channels[0]
    assert stream.layers == ("stem", *(f"body.{i}.b" for i in range(4)))
    assert (stream.channels, stream.smallest) == (32, 8)
    assert [row.layers for row in told.channels[1:]] == [(f"body.{i}.a",) for i in range(4)]
    assert (told.prunable_channels, told.layer_channels) == (5 * 32 + 4 * 48, 5 * 32 + 4 * 48 + 5)
    assert told.fixed_layers == ("head",) and told.sizes[0] == (8, 8)
    assert told.reasons == {"depth": (), "width": (), "resolution": ()}


def test_the_smallest_scale_is_what_prune_builds() -> None:
    model = Tiny(4)
    anatomy = Anatomy.of(model, X)
    told = explain(anatomy)
    pruned = prune(model, told.smallest, X, anatomy=anatomy)
    cost = count(pruned.model, torch.zeros(1, 3, *pruned.input_size))
    assert (cost.macs, cost.params) == (told.smallest_macs, told.smallest_params) and pruned.scale == told.smallest


def test_what_cannot_be_pruned_is_said_with_the_reason() -> None:
    told = explain(Anatomy.of(OptionA(), X))
    assert any("up" in reason and "padding" in reason for reason in told.reasons["width"])
    assert set(told.fixed_layers) == {"head"}
    text = "\n".join(explain(Anatomy.of(Mixed(), X)).lines())
    assert "depth: nothing can be removed\n  stays: no residual block" in text
    rigid = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 1024, 3))
    lines = explain(Anatomy.of(rigid, X)).lines()
    assert "width: nothing can be cut" in lines and "resolution: only 32x32" in lines
    assert any(line.startswith("  stays: not at") for line in lines)
    assert lines[-1].startswith("smallest scale: d=1 w=1 r=1") and "100.0%" in lines[-1]


class Deciding(nn.Module):
    """A branch that its input chooses, and a scale that is read as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        if x.mean() > 0:
            x = x + self.branch(x)
        return self.head(x.mean((2, 3)))


def test_control_flow_that_depends_on_values_is_said_with_its_line() -> None:
    explanation = explain(Anatomy.of(Deciding(), torch.rand(1, 3, 16, 16)))
    (reason,) = explanation.reasons["control flow"]
    line = inspect.getsourcelines(Deciding.forward)[1] + 2
    assert reason.startswith(f"it reads values of tensors at test_explain.py:{line} and may decide by them")
    assert any(text.startswith("control flow: it reads") for text in explanation.lines())
    assert "control flow" not in explain(Anatomy.of(Tiny(2), X)).reasons


def test_a_shared_weight_is_named() -> None:
    model = Tiny(3)
    model.body[1].a.weight = model.body[2].a.weight
    told = explain(Anatomy.of(model, X))
    assert any("body.1.a, body.2.a share a weight" in reason for reason in told.reasons["width"])
    assert not any("body.1.a" in row.layers for row in told.channels)


def test_an_explanation_is_json_and_text() -> None:
    told = explain(Anatomy.of(Tiny(2), X))
    document = told.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["smallest"]["macs"] == told.smallest_macs and document["blocks"][0]["name"] == "body.0"
    lines = told.lines()
    assert any("body.1  32x16x16" in line for line in lines) and any("body.0.a  48 channels" in line for line in lines)


def test_a_difference_lists_every_layer_before_and_after() -> None:
    model = Tiny(4)
    ranking = {f"body.{i}": float(i) for i in range(4)}
    pruned = prune(model, Scale(0.5, 0.5, 0.5), X, ranking=ranking)
    told = diff(pruned.recipe, model, X)
    layers = {layer.name: layer for layer in told.layers}
    assert list(layers) == ["stem", *(f"body.{i}.{c}" for i in range(4) for c in "ab"), "head"]
    assert layers["body.0.a"].after is None and layers["body.1.b"].after is None
    stem, inner = pruned.model.stem.out_channels, pruned.model.body[2].a.out_channels
    now = layers["body.2.a"].after
    assert now is not None and (now.inputs, now.outputs) == (stem, inner)
    assert (now.macs, now.params) == (9 * stem * inner * 64, 9 * stem * inner)
    assert layers["body.2.a"].before.macs == 9 * 32 * 48 * 256
    after = count(pruned.model, torch.zeros(1, 3, *pruned.input_size))
    assert told.macs[1] == after.macs == sum(w.after.macs for w in told.layers if w.after)
    assert told.params[1] == after.params == sum(p.numel() for p in pruned.model.parameters())
    assert told.macs[0] == sum(layer.before.macs for layer in told.layers)
    assert json.loads(json.dumps(told.to_dict()))["layers"][0]["after"]["outputs"] == stem


def test_a_difference_in_words() -> None:
    model = Tiny(4)
    ranking = {f"body.{i}": float(i) for i in range(4)}
    told = diff(prune(model, Scale(0.75, 0.5, 0.5), X, ranking=ranking).recipe, model, X)
    assert told.words[0].startswith("body.0 was removed: 2 layers, 27,") and "of the base's MACs" in told.words[0]
    assert any(w.startswith("body.2 lost ") and "a 48 -> 24" in w for w in told.words)
    assert told.words[-1] == "the input shrank from 32x32 to 16x16: 25.0% of the pixels"
    lines = told.lines()
    assert "input 32x32 -> 16x16" in lines[0]
    assert any(line.startswith("  body.0.a  conv  32 -> 48  removed") for line in lines)
    only_depth = diff(prune(model, Scale(0.5, 1, 1), X).recipe, model, X)
    assert len(only_depth.words) == 2 and only_depth.lines()[-1] == "6 layers keep their channels"


def test_a_difference_needs_the_right_base_and_leaves_it_alone() -> None:
    model = Tiny(3).train()
    recipe = prune(model, Scale(1, 0.5, 1), X).recipe
    state = {k: v.clone() for k, v in model.state_dict().items()}
    diff(recipe, model, X)
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(MobilepruneError, match="another network"):
        diff(recipe, Tiny(4), X)
    with pytest.raises(UsageError, match="batch"):
        diff(recipe, model, X[0])
