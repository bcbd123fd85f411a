"""``mobileprune export``: a run's result in another form, and any model; and a journey whose files are int8."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import QUESTION, TINY, Call
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.profile import load_profile
from exporters import manifest
from mobileprune.data import Split
from mobileprune.errors import UsageError
from mobileprune.request import timed_format
from mobileprune.stages.files import balanced


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


def test_the_format_that_counts_has_the_precision() -> None:
    host, pixel = load_profile("host"), load_profile("pixel")
    assert timed_format(host, "float32") == "onnx"
    assert timed_format(host, "float16") == "tflite"  # ONNX is not written in it
    assert timed_format(pixel, "float32") == "tflite"
    with pytest.raises(UsageError, match="pixel predicts float32 only, not int8"):
        timed_format(pixel, "int8")


def test_a_run_in_another_form(call: Call, finished: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "exported"
    shutil.copytree(finished, run)
    done = call(
        "export", run, "--format", "tflite", "--precision", "int8", "--output", output, "--allowed-drop", 20, "--json"
    )
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["files"]
    assert told["artifact"]["precision"] == "int8"
    assert told["verification"]["samples"] == 359
    assert told["quantisation"]["float_accuracy"] - told["verification"]["accuracy"] <= 0.2
    entry = manifest.read_manifest(output).entry("tflite", "int8")
    assert entry.quantisation is not None
    names = {path.name for path in (output / "android").iterdir()}
    assert names == {"Classifier.kt", "labels.txt", "model.json", "model.tflite"}
    refused = call("export", run, "--format", "onnx", "--data", "digits")
    assert refused.returncode == 2
    assert "leave --data out" in refused.stderr


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
