"""The Python API: the documented examples run, with a network and images that are objects, and a run goes on."""

from __future__ import annotations

import dataclasses
import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from conftest import Call
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mobileprune
import mobileprune.api
from mobileprune.commands.optimize import optimize as optimize_command
from mobileprune.given import as_images, fingerprint
from mobileprune.journey import Options
from mobileprune.limits import AUTOMATIC, LIMITS
from mobileprune.request import Request
from mobileprune.run import Journal
from mobileprune.scale import Scale
from mobileprune.stages.curves import EpochRecord, read_curves
from mobileprune.training.finetune import Progress

NORMALISATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the examples of the documentation made their runs."""
    folder = tmp_path_factory.mktemp("runs")
    tried = doctest.testmod(mobileprune.api, extraglobs={"runs": folder}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried.attempted >= 8
    assert tried.failed == 0
    return folder


@pytest.fixture(scope="module")
def notebook(runs: Path) -> Path:
    return runs / "notebook"


def network() -> nn.Module:
    return mobileprune.load_model("resnet20", classes=2)


def test_a_run_with_objects_loads_elsewhere_when_the_network_is_given_again(notebook: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch, mobileprune\n"
        "run = sys.argv[1]\n"
        "try: mobileprune.load(run)\n"
        "except mobileprune.MobilepruneError as error: print(error)\n"
        "model = mobileprune.load(run, model=mobileprune.load_model('resnet20', classes=2))\n"
        "torch.save(model(torch.ones(2, 3, 16, 16)).detach(), sys.argv[2])\n"
    )
    out = tmp_path / "out.pt"
    done = subprocess.run([sys.executable, "-c", code, notebook, out], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "give the same one again, mobileprune.load(run, model=...)" in done.stdout
    here = mobileprune.load(notebook)(torch.ones(2, 3, 16, 16)).detach()
    assert torch.equal(torch.load(out, weights_only=True), here)


def test_another_network_is_refused(notebook: Path) -> None:
    other = mobileprune.load_model("resnet32", classes=2)
    with pytest.raises(mobileprune.UsageError, match="another network"):
        mobileprune.load(notebook, model=other)
    with pytest.raises(mobileprune.UsageError, match="was begun with another network"):
        mobileprune.optimize(other, run=notebook)


def test_a_finished_run_answers_at_once_and_tells_its_progress(notebook: Path) -> None:
    events: list[mobileprune.Event] = []
    journey = mobileprune.Journey(network(), run=notebook, progress=events.append)
    assert journey.status()["next"].startswith("nothing")
    solution = journey.solve("6MMACs")
    assert solution.constraints["macs"].value.mean <= 6
    assert journey.report().is_file()
    assert [event.stage for event in events if event.kind == "stage"] == ["report"]
    result = journey.result()
    assert result.scale == mobileprune.Scale(**result.summary["scale"])
    assert "onnx" in result.files and all(path.is_file() for path in result.files.values())
    assert "MACs, counted" in str(result) and "<table" in result._repr_html_()


def test_the_command_line_reads_such_a_run(call: Call, notebook: Path) -> None:
    assert call("status", notebook).returncode == 0
    assert call("solve", notebook, "--budget", "6MMACs").returncode == 0
    assert "was given as a Python object" in call("diff", notebook).stderr
    assert call("report", notebook).returncode == 0
    page = (notebook / "report.html").read_text(encoding="utf-8")
    assert "no bars per block: the network of this run was given as a Python object" in page


def test_the_function_stays_the_function() -> None:
    import mobileprune.optimize as module

    assert callable(mobileprune.optimize)
    assert module is not mobileprune.optimize or callable(module)
    assert set(mobileprune.__all__) <= set(dir(mobileprune))
    for name in mobileprune.__all__:
        assert getattr(mobileprune, name) is not None


def test_every_option_is_typed() -> None:
    asked = {field.name for field in dataclasses.fields(Request)} - {"model", "data", "device"}
    assert set(Options.__annotations__) == asked


def test_every_number_has_one_range_for_both_ways_of_asking() -> None:
    options = {one.name: one.type for one in optimize_command.params}
    numeric = {name for name, kind in Request.__annotations__.items() if "int" in kind or "float" in kind}
    assert set(LIMITS) == numeric
    for name, limits in LIMITS.items():
        kind = options[name]
        assert kind.name == ("rate" if name in AUTOMATIC else "integer range" if limits.whole else "float range")
        for number in (limits.least - 1, limits.least, limits.least + 1, limits.most or 10**6, (limits.most or 0) + 1):
            try:
                kind.convert(str(number), None, None)
                taken = True
            except click.UsageError:
                taken = False
            assert taken == (number in limits), (name, number)


def test_wrong_questions_say_what_to_do(tmp_path: Path) -> None:
    images = (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": network(), "data": (images, images), "budget": "50%"}, "say normalisation"),
        ({"model": network(), "data": [images], "budget": "50%"}, "data must be"),
        ({"model": "resnet20", "budget": "fast"}, "'fast' is not a budget"),
        ({"model": "resnet2O", "budget": "50%"}, "did you mean"),
        ({"model": "resnet20", "budget": "50%", "probess": 3}, "no option is called 'probess'"),
        (
            {"model": "resnet20", "budget": "50%", "probes": 1},
            "probes=1 is out of range: give a whole number of at least 4 and at",
        ),
        ({"model": "resnet20", "budget": "50%", "probe_epochs": 0}, "probe_epochs=0 is out of range"),
        ({"model": "resnet20", "budget": "50%", "epochs": 1.5}, "epochs=1.5 is out of range"),
        ({"model": "resnet20", "budget": "50%", "batch_size": "64"}, "batch_size='64' is out of range"),
        ({"model": "resnet20", "budget": "50%", "confidence": 1}, "confidence=1 is out of range: .* and below 1"),
        ({"model": "resnet20", "budget": "50%", "mixup": float("nan")}, "mixup=nan is out of range"),
        ({"model": "resnet20", "budget": "50%", "learning_rate": -0.1}, 'a number above 0, or "auto"'),
        ({"model": "resnet20"}, "no budget: say what must hold"),
    ]
    for arguments, reason in cases:
        with pytest.raises(mobileprune.UsageError, match=reason):
            mobileprune.optimize(**arguments, run=tmp_path / "run")
        assert not (tmp_path / "run" / "run.toml").exists(), reason


# Images as objects ------------------------------------------------------------------------------------------------


def pixels(count: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["uint8", "unit", "normalised", "channels last"]))
def test_all_forms_of_the_same_images_are_the_same_data(seed: int, form: str) -> None:
    x, y = pixels(seed=seed), torch.arange(12) % 3
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in NORMALISATION)
    shaped = {
        "uint8": x,
        "unit": x.float() / 255,
        "normalised": (x.float() / 255 - mean) / std,
        "channels last": x.permute(0, 2, 3, 1),
    }[form]
    plain = as_images(((x, y), (x[:4], y[:4])))
    normalisation = NORMALISATION if form == "normalised" else None
    loader = DataLoader(TensorDataset(shaped, y), batch_size=5, shuffle=True)
    other = as_images({"train": loader, "validation": TensorDataset(shaped[:4], y[:4])}, normalisation)
    assert other.fingerprint() == plain.fingerprint()
    assert other.classes == ("0", "1", "2") and other.test is None


def test_images_that_cannot_be_right() -> None:
    x, y = pixels(), torch.arange(12) % 3
    for train, reason in [
        ((x.float() * 2 - 200, y), "not pixels in"),
        ((x[:, :, :4], y), "give squares"),
        ((x, y - 1), "labels start at 0"),
        ((x, y[:5]), "12 images and 5 labels"),
        ((torch.zeros(3, 5), y), "give"),
        ([], "is empty"),
        (7, "a split must be"),
    ]:
        with pytest.raises(mobileprune.UsageError, match=reason):
            as_images((train, (x, y)))


def test_images_in_two_splits_and_classes_without_images_are_told() -> None:
    x, y = pixels(), torch.arange(12) % 3
    assert as_images(((x, y), (pixels(seed=1), y))).notes == ()
    overlapping = as_images(((x, y), (torch.cat([x[:4], pixels(5, seed=1)]), y[:9]), (x[:1], y[:1])))
    assert overlapping.notes == (
        "leak: 4 of 9 validation images are train images, too",
        "leak: 1 of 1 test images are train images, too",
        "leak: 1 of 1 test images are validation images, too",
    )
    few = as_images(((x, 2 * y), (pixels(seed=1), 2 * y)))  # of a network with more outputs
    assert few.notes == ("2 of 5 classes have no image in any split, such as '1'",)
    with pytest.raises(mobileprune.UsageError, match=r"the given images: only one class \(0\)"):
        as_images(((x, 0 * y), (pixels(seed=1), 0 * y)))
    with pytest.raises(mobileprune.UsageError, match="the given images: class '3' has no training image"):
        as_images(((x, y), (pixels(seed=1), y + 1)))


def test_names_before_a_target_transform_are_not_those_of_the_labels() -> None:
    class Renumbered:
        classes, target_transform = ("cat", "dog"), {0: 1, 1: 0}.get  # no longer the names of the labels that it gives

        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return pixels(seed=i)[0], i % 2

    data = as_images((Renumbered(), (pixels(seed=99), torch.arange(12) % 2)))
    assert data.classes == ("0", "1")


def test_a_fingerprint_is_of_the_layers_and_not_of_the_weights() -> None:
    assert fingerprint(network()) == fingerprint(network())
    assert fingerprint(network()) != fingerprint(mobileprune.load_model("resnet20", classes=3))
    assert fingerprint(nn.Sequential(nn.ReLU())) != fingerprint(nn.Sequential(nn.GELU()))


def test_epochs_are_recorded_as_means_and_survive_a_repeat(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    scale = Scale(0.5)
    told = ((1, 0, 3.0, 0.25), (2, 0, 1.0, 0.75), (3, 1, 0.5, None), (4, 1, 0.25, None))
    for _ in range(2):  # a training that was killed and went on
        record = EpochRecord(journal, "finetune d0.5000-w1.0000-r1.0000")
        for seen, epoch, loss, accuracy in told:
            record(Progress(seen, 4, epoch, loss, accuracy))
    other = EpochRecord(journal, "finetune d0.1000-w1.0000-r1.0000")
    other(Progress(1, 1, 0, 9.0))
    EpochRecord(journal, f"probe at {scale}")(Progress(1, 1, 0, 2.0, 0.5))
    for kind, accuracy in (("finetuned", 0.9), ("probe", 0.8)):
        journal.append(kind, "d0.5000-w1.0000-r1.0000", scale=scale.as_tuple(), validation={"accuracy": accuracy})
    result, probe = read_curves(journal, scale)
    assert (result.name, result.epochs, result.loss) == ("result", [1, 2], [2.0, 0.375])
    assert (result.accuracy, result.validation) == ([0.5, None], 0.9)
    assert (probe.accuracy, probe.validation) == ([0.5], 0.8)
