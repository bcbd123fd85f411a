from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Mixed, Tiny, shaken
from safetensors.torch import load_file, save_file

from mobileprune.errors import MobilepruneError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.layers import Axis
from mobileprune.pruning.prune import prune
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.scale import Scale

X = torch.randn(1, 3, 32, 32)

_FRESH = """
import sys
sys.path.insert(0, {tests!r})
import torch
from nets import Tiny
from pathlib import Path
from safetensors.torch import load_file
from mobileprune.pruning.recipe import Recipe, rebuild
folder = Path({folder!r})
torch.set_num_threads(1)
model = rebuild(Recipe.from_json((folder / "recipe.json").read_text()), Tiny(4))
model.load_state_dict(load_file(folder / "model.safetensors"))
data = load_file(folder / "data.safetensors")
assert torch.equal(model.eval()(data["x"]), data["y"]), "outputs differ"
"""


def test_rebuilt_in_a_fresh_process_it_gives_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pruned = prune(shaken(Tiny(4)), Scale(0.5, 0.6, 0.75), X)
    model = pruned.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):  # the weights and statistics that are loaded come from training, not from the base
        model(torch.randn(4, 3, *pruned.input_size)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    x = torch.randn(3, 3, *pruned.input_size)
    with torch.no_grad():
        save_file({"x": x, "y": model.eval()(x)}, tmp_path / "data.safetensors")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "recipe.json").write_text(pruned.recipe.to_json())
    code = _FRESH.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


positions = st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=20).map(lambda at: tuple(sorted(at)))


@given(
    kept=st.dictionaries(st.tuples(st.text(min_size=1), st.sampled_from(["in", "out", "param"])), positions),
    removed=st.lists(st.text(min_size=1), unique=True).map(tuple),
    scale=st.tuples(*[st.floats(0.001, 1.0)] * 3),
    size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
)
@settings(max_examples=60, deadline=None)
def test_json_round_trip(kept: dict, removed: tuple[str, ...], scale: tuple, size: tuple[int, int]) -> None:
    recipe = Recipe(
        scale=Scale(*scale),
        removed=removed,
        kept={Axis(*axis): at for axis, at in kept.items()},
        input_size=size,
        base_input_size=(224, 224),
        base={"a.weight": (3, 4), "a.n": ()},
        versions={"torch": "2"},
    )
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe and all(isinstance(axis, Axis) for axis in again.kept)


def test_another_architecture_is_refused_with_the_first_difference() -> None:
    recipe = prune(Tiny(3), Scale(1, 0.5, 1), X).recipe
    with pytest.raises(MobilepruneError, match=r"stem\.weight is \(32, 3, 3, 3\) there and \(40, 3, 3, 3\)"):
        rebuild(recipe, Tiny(3, channels=40))
    with pytest.raises(MobilepruneError, match=r"has a tensor body\.2\.a\.weight .* this model lacks"):
        rebuild(recipe, Tiny(2))
    with pytest.raises(MobilepruneError, match=r"this model has a tensor body\.3"):
        rebuild(recipe, Tiny(4))
    with pytest.raises(MobilepruneError, match="another network"):
        rebuild(recipe, Mixed())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "nonsense", '{"format": 1, "scale": [2, 1, 1]}'])
def test_what_is_no_recipe_is_said_to_be_none(text: str) -> None:
    with pytest.raises(MobilepruneError, match=r"not a pruning recipe"):
        Recipe.from_json(text)


def test_a_recipe_of_a_later_format_is_refused() -> None:
    document = json.loads(prune(Tiny(2), Scale(1, 0.5, 1), X).recipe.to_json())
    document["format"] = 99
    with pytest.raises(MobilepruneError, match="format 99"):
        Recipe.from_json(json.dumps(document))


def test_recipe_and_model_that_do_not_belong_together_are_refused() -> None:
    model = Tiny(4)
    anatomy = Anatomy.of(model, X)
    half = prune(model, Scale(1, 0.5, 1), X, anatomy=anatomy)
    short = prune(model, Scale(0.5, 1, 1), X, anatomy=anatomy)
    with pytest.raises(MobilepruneError, match="does not describe this model"):
        prune(half.model, Scale(0.5, 0.4, 1), X, anatomy=anatomy, recipe=short.recipe)
    with pytest.raises(MobilepruneError, match="does not describe this model"):
        prune(model, Scale(0.5, 0.4, 1), X, anatomy=anatomy, recipe=short.recipe)
    with pytest.raises(MobilepruneError, match="another network"):
        prune(half.model, Scale(0.5, 0.4, 1), X, anatomy=anatomy)
    with pytest.raises(MobilepruneError, match="different base networks"):
        prune(half.model, Scale(0.5, 0.4, 1), X, anatomy=Anatomy.of(Tiny(3), X), recipe=half.recipe)
    with pytest.raises(MobilepruneError, match="pass anatomy="):
        prune(half.model, Scale(0.5, 0.4, 1), X, recipe=half.recipe)


def test_a_recipe_names_the_base_and_is_rebuilt_by_its_constructor() -> None:
    model = shaken(Tiny(3))
    anatomy = Anatomy.of(model, X)
    parent = prune(model, Scale(0.7, 0.5, 1), X, anatomy=anatomy)
    child = prune(parent.model, Scale(0.7, 0.4, 1), X, anatomy=anatomy, recipe=parent.recipe)
    assert parent.recipe.network == child.recipe.network == "nets.Tiny"
    again = rebuild(Recipe.from_json(child.recipe.to_json()), lambda: Tiny(3))
    again.load_state_dict(child.model.state_dict())
    assert torch.equal(again.eval()(X), child.model.eval()(X))


def test_rebuild_leaves_the_base_alone() -> None:
    model = Tiny(3)
    before = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    rebuild(prune(model, Scale(0.7, 0.5, 1), X).recipe, model)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == before
