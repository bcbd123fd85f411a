"""``mobileprune export``: a run's result in another form, and any model; and a journey whose files are int8."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from conftest import QUESTION, TINY, Call
from hypothesis import given
from hypothesis import strategies as st

import exporters
from device_profiles.benchmark import Measurement
from device_profiles.profile import load_profile
from exporters import manifest
from exporters.artifact import sha256_of
from mobileprune.cli import main
from mobileprune.data import Split
from mobileprune.errors import UsageError
from mobileprune.progress import Quiet
from mobileprune.request import timed_format
from mobileprune.run import Run
from mobileprune.stages.context import Context
from mobileprune.stages.files import Images, Job, balanced, refused
from mobileprune.stages.profile import _say_if_slower
from mobileprune.training.batches import View


def split_of(counts: list[int]) -> Split:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    return Split(torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), labels)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 9))
def test_calibration_images_are_spread_over_the_classes(counts: list[int], count: int, seed: int) -> None:
    found = balanced(split_of(counts), count, seed)
    assert len(found) == min(count, sum(counts))
    taken = torch.bincount(found.labels, minlength=len(counts))
    short = [int(got) for got, there in zip(taken, counts, strict=True) if got < there]
    if short:  # a class with images to spare has at most one less than any other has
        assert max(int(got) for got in taken) - min(short) <= 1
    assert torch.equal(found.labels, balanced(split_of(counts), count, seed).labels)


def test_calibration_images_are_training_images() -> None:
    train, validation = split_of([4, 4]), split_of([4, 4])
    validation.images.fill_(255)
    images = Images(View(1, (0.0,) * 3, (1.0,) * 3), train, validation)
    assert images.calibration.max() == 0 < images.checked[:8].min()


def test_checked_images_become_floats_only_where_they_are_taken() -> None:
    pixels = torch.randint(0, 256, (9, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown: list[int] = []

    class Watched(View):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            shown.append(len(images))
            return super().__call__(images)

    view = Watched(16, (0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
    checked = Images(view, None, Split(pixels, torch.zeros(9, dtype=torch.int64))).checked
    assert len(checked) == 9
    parts = [checked[start : start + 4] for start in (0, 4, 8)]
    assert shown == [4, 4, 1]
    assert all(part.flags.c_contiguous and part.dtype == "float32" for part in parts)
    assert (np.concatenate(parts) == view(pixels).numpy()).all()


def test_the_format_that_counts_has_the_precision() -> None:
    host, pixel = load_profile("host"), load_profile("pixel")
    assert timed_format(host, "float32") == "onnx"
    assert timed_format(host, "float16") == "tflite"  # ONNX is not written in it
    assert timed_format(pixel, "float32") == "tflite"
    with pytest.raises(UsageError, match="pixel predicts float32 only, not int8"):
        timed_format(pixel, "int8")


@pytest.mark.parametrize(
    ("low", "origin", "said"), [(4.1, "measured", True), (3.9, "measured", False), (4.1, "emulated", False)]
)
def test_a_run_says_where_float_is_faster(low: float, origin: str, said: bool, tmp_path: Path) -> None:
    def measured(ms: float, low: float, high: float) -> Measurement:
        return Measurement(ms, low, high, ms, ms, (ms,), 1, 0.0, None, "onnxruntime", 1, origin)

    run = Run.create(tmp_path / "run", {"device": "host", "precision": "int8"})
    _say_if_slower(Context(run, Quiet()), measured(5.0, low, 6.0), measured(3.5, 3.0, 4.0))
    notes = [entry["key"] for entry in run.journal.all("note")]
    assert bool(notes) is said
    assert not said or ("in int8 the base takes 5 ms" in notes[0] and "float32 3.5 ms" in notes[0])


def test_a_run_in_another_form(call: Call, finished: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "exported"
    shutil.copytree(finished, run)
    asked = ["--format", "tflite", "--format", "onnx", "--precision", "int8"]
    done = call("export", run, *asked, "--output", output, "--allowed-drop", 20, "--json")
    assert done.returncode == 0, done.stderr
    told, *_ = files = json.loads(done.stdout)["files"]
    assert [file["artifact"]["format"] for file in files] == ["tflite", "onnx"]
    assert {file["artifact"]["precision"] for file in files} == {"int8"}
    assert told["verification"]["samples"] == 359
    assert told["quantisation"]["float_accuracy"] - told["verification"]["accuracy"] <= 0.2
    entry = manifest.read_manifest(output).entry("tflite", "int8")
    assert entry.quantisation is not None
    names = {path.name for path in (output / "android").iterdir()}
    assert names == {"Classifier.kt", "labels.txt", "model.json", "model.tflite"}
    again = call("export", run, *asked, "--output", tmp_path / "again", "--allowed-drop", 20)
    assert again.returncode == 0, again.stderr
    for word in ("same best class on", "only moving data", "% of the work", "MB"):
        assert word in again.stdout
    assert digests(tmp_path / "again") == digests(output)
    foreign = call("export", run, "--format", "onnx", "--data", "digits")
    assert foreign.returncode == 2
    assert "leave --data out" in foreign.stderr


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but logs and the manifest, which holds measured figures."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    kept = [path for path in found if path.suffix != ".log" and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): sha256_of(path) for path in kept}


def test_files_of_a_run_come_back_from_its_folder_alone(call: Call, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (folder,) = run.glob("results/*/artifacts")
    before, told = digests(folder), json.loads((folder / "manifest.json").read_text())
    assert {"model.onnx", "model.tflite", "android/model.tflite", "android/labels.txt"} <= before.keys()
    shutil.rmtree(folder)
    base = run / "base/artifacts/model.onnx"
    first = base.read_bytes()
    base.write_bytes(b"damaged")
    done = call("export", run)
    assert done.returncode == 0, done.stderr
    assert "other bytes" not in done.stderr
    assert digests(folder) == before
    assert base.read_bytes() == first
    again = json.loads((folder / "manifest.json").read_text())
    for data in (told, again):
        for varying in data.pop("varies"):
            for file in data["files"]:
                *path, last = varying.removeprefix("files.").split(".")
                reduce(getitem, path, file).pop(last)
    assert again == told
    finished_before = (run / "journal.jsonl").read_bytes()
    assert call("export", run).returncode == 0
    assert (run / "journal.jsonl").read_bytes() == finished_before


def test_any_model(call: Call, tmp_path: Path) -> None:
    model = ["export", f"{TINY}:tiny", "--model-arg", "blocks=2", "--image-size", "16"]
    lost = call(*model)
    assert lost.returncode == 2
    assert "--output" in lost.stderr
    blind = call(*model, "--precision", "int8", "--output", tmp_path / "blind")
    assert blind.returncode == 2
    assert "name the training data with --data" in blind.stderr
    unknown = call(*model, "--format", "onnx", "--precision", "float16", "--output", tmp_path / "no")
    assert unknown.returncode == 2
    assert "onnx cannot be written in float16" in unknown.stderr
    assert not (tmp_path / "no").exists()
    done = call(*model, "--format", "onnx", "--dynamic-batch", "--data", "digits", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "without trained weights" in done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dynamic-batch", "--opset", "17"], "--dynamic-batch and --opset: a run's own files are written as it was"),
        (["--allowed-drop", "5"], "--allowed-drop: a run's own files"),
        (["--data", "digits", "--image-size", "16"], "--data and --image-size: a run's own files"),
        (["--checkpoint", "w.pt", "--model-arg", "a=1"], "--checkpoint and --model-arg: a run's own files"),
        (["--seed", "0"], "--seed: a run's own files"),
        (["--format", "onnx", "--budget", "5ms"], "--budget: only for a RUN without --format"),
    ],
)
def test_no_flag_of_export_is_ignored(tmp_path: Path, flags: list[str], said: str) -> None:
    (tmp_path / "run.toml").touch()
    refused_in_words(["export", str(tmp_path), *flags], said)


def test_a_model_has_no_budget_to_keep(tmp_path: Path) -> None:
    refused_in_words(["export", "resnet20", "--output", str(tmp_path / "no"), "--budget", "5ms"], "--budget: only for")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "tflite", "--dynamic-batch"], "a tflite file takes one image at a time"),
        (["--format", "onnx", "--format", "tflite", "--opset", "17"], "means nothing to the tflite format"),
        (["--dynamic-batch"], "choose the onnx format"),
    ],
)
def test_what_a_format_does_not_have_is_refused_before_anything_is_written(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    model = ["export", f"{TINY}:tiny", "--image-size", "16", "--output", str(tmp_path / "no")]
    refused_in_words([*model, *flags], said)
    assert not (tmp_path / "no").exists()


def test_executorch_has_neither_open_batches_nor_operator_sets() -> None:
    assert "one image at a time" in str(refused("executorch", "int8", {"dynamic_batch": True, "opset": None}))
    assert "means nothing to executorch" in str(refused("executorch", "int8", {"dynamic_batch": False, "opset": 17}))
    assert refused("executorch", "int8", {"dynamic_batch": False, "opset": None}) is None


def refused_in_words(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.output
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert said in sentence


def test_a_run_in_its_own_precision_with_an_open_batch(call: Call, finished: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "exported"
    shutil.copytree(finished, run)
    asked = (run / "run.toml").read_text()
    assert 'precision = "float32"' in asked.partition("[")[0]
    (run / "run.toml").write_text(asked.replace('precision = "float32"', 'precision = "int8"', 1))
    form = ["--format", "onnx", "--dynamic-batch", "--opset", "19", "--allowed-drop", "100"]
    done = call("export", run, *form, "--output", output, "--json")
    assert done.returncode == 0, done.stderr
    (file,) = json.loads(done.stdout)["files"]
    assert file["artifact"]["precision"] == "int8"
    model = onnx.load(output / "model.onnx")
    assert [entry.version for entry in model.opset_import if not entry.domain] == [19]
    session = onnxruntime.InferenceSession(output / "model.onnx")
    (taken,) = session.get_inputs()
    images = np.random.default_rng(0).normal(size=(3, *taken.shape[1:])).astype(np.float32)
    together = session.run(None, {taken.name: images})[0]
    alone = np.concatenate([session.run(None, {taken.name: image[None]})[0] for image in images])
    assert together.shape[0] == 3
    assert np.allclose(together, alone, atol=1e-5)


def test_android_takes_no_16_bit_integers(call: Call, tmp_path: Path) -> None:
    """What is not written is said, and no other precision goes in its place."""
    model = ["export", f"{TINY}:tiny", "--model-arg", "blocks=1", "--image-size", "16", "--data", "digits"]
    out = tmp_path / "out"
    done = call(*model, "--format", "tflite", "--precision", "int16x8", "--allowed-drop", "100", "--output", out)
    assert done.returncode == 0, done.stderr
    assert "no Android bundle in int16x8: MediaPipe takes no 16-bit integers" in " ".join(done.stderr.split())
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".log") == ["manifest.json", "model.tflite"]


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_int8_file_of_a_bundle_is_verified_too(
    spoilt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    pictures = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8)
    images = Images(View(8, (0.5,) * 3, (0.25,) * 3), *(Split(pictures, torch.arange(60) % 3) for _ in range(2)))
    job = Job(net, images, "int8", allowed_drop=1.0)
    written = job.write(tmp_path / "model.tflite", "tflite")
    export = Job._calibrated

    def other_network(self: Job, *arguments: Any) -> exporters.Artifact:
        return export(replace(self, model=torch.nn.Sequential(*net[:-1], torch.nn.Linear(72, 3))), *arguments)

    bundle = tmp_path / "android"
    if not spoilt:
        job.write_android(written, bundle, "abc", "net")
        assert json.loads((bundle / "model.json").read_text())["precision"] == "int8-float-io"
    else:
        monkeypatch.setattr(Job, "_calibrated", other_network)
        with pytest.raises(exporters.ExportError, match=r"android\.tflite' is refused: its logits differ"):
            job.write_android(written, bundle, "abc", "net")
        assert not bundle.exists()
        assert (tmp_path / "rejected" / "android.tflite").is_file()
    assert not (tmp_path / "android.tflite").exists()


DICE = """
import torch
from torch import nn

class Dice(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, x):
        x = self.head(x.mean((2, 3)))
        return x + torch.rand_like(x)

def dice(classes=10):
    return Dice(classes)
"""


def test_a_file_that_fails_a_gate_is_kept_aside(call: Call, tmp_path: Path) -> None:
    """What this network computes differs each time, so that no file can agree with it."""
    (tmp_path / "dice.py").write_text(DICE)
    out = tmp_path / "out"
    done = call("export", f"{tmp_path / 'dice.py'}:dice", "--image-size", "16", "--format", "onnx", "--output", out)
    assert done.returncode == 1
    assert "refused: its logits differ" in done.stderr
    assert not (out / "model.onnx").exists()
    assert not (out / "manifest.json").exists()
    assert (out / "rejected" / "model.onnx").is_file()
    told = json.loads((out / "rejected" / "model.onnx.json").read_text())
    assert told["reason"].startswith("its logits differ")


@pytest.mark.timeout(600)
def test_a_journey_whose_files_are_int8(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = call("optimize", "--run", run, *QUESTION, "--precision", "int8", "--base-epochs", "6", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["result"]["files"]
    assert {file["precision"] for file in files.values()} == {"int8"}
    assert len(files) == 2
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert all(entry["quantisation"] for entry in journal if entry["kind"] == "artifact")
