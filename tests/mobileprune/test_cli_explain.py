"""``mobileprune explain`` and ``mobileprune diff``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Call
from test_cli_errors import one_sentence

from mobileprune.api import diff
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.pruning.recipe import Recipe


def test_explain_says_what_can_be_pruned(call: Call) -> None:
    done = call("explain", f"{TINY}:tiny", "--model-arg", "blocks=3", "--image-size", "16", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["blocks"]) == 6
    assert found["smallest"]["depth"] < 1
    text = call("explain", f"{TINY}:tiny", "--image-size", "16").stdout
    assert "depth: 4 removable blocks" in text
    assert "smallest scale" in text


def test_a_transformer_is_refused_in_words(call: Call) -> None:
    message = one_sentence(call("explain", "timm:vit_tiny_patch16_224"), 2)
    assert "only convolutional networks can be pruned" in message


def test_diff_of_a_run_and_of_a_recipe(call: Call, finished: Path, tmp_path: Path) -> None:
    (recipe,) = (finished / "results").glob("*/recipe.json")
    of_run, of_recipe = call("diff", finished, "--json"), call("diff", recipe, "--json")
    assert of_run.returncode == 0, of_run.stderr
    assert json.loads(of_run.stdout) == json.loads(of_recipe.stdout)
    assert "scale d=" in call("diff", finished).stdout
    assert "neither a run folder nor a recipe.json" in one_sentence(call("diff", tmp_path), 2)


def test_diff_of_a_folder_in_a_run_is_of_that_scale(finished: Path) -> None:
    (chosen,) = (finished / "results").iterdir()
    probe = next(path for path in sorted((finished / "probes").iterdir()) if path.name != chosen.name)
    found = diff(probe)
    assert found.scale == Recipe.from_json((probe / "recipe.json").read_text()).scale
    assert found == diff(probe / "recipe.json")
    assert diff(chosen).scale == diff(finished).scale != found.scale
    for folder in (finished / "base", finished / "probes", probe / "none"):
        with pytest.raises(UsageError, match=r"no recipe .*: name a run, such as"):
            diff(folder)


def test_diff_of_a_run_that_is_not_pruned_yet(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(line for line in lines if json.loads(line)["kind"] != "pruned"))
    with pytest.raises(MobilepruneError, match=f"run `mobileprune prune {run}` first"):
        diff(run)
