"""The Android bundle: a folder to drop into an app's assets, with everything that the app must do the same way.

model.tflite holds normalisation and labels as metadata, so MediaPipe's ImageClassifier needs nothing else; model.json
says the same for apps that call LiteRT themselves; Classifier.kt shows the call and the exact resize.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from exporters.artifact import Artifact, InputSpec, sha256_of
from exporters.errors import ExportError
from exporters.files import shown, unwritable
from exporters.metadata import LABELS, embed, metadata, normalising
from exporters.runtimes import LiteRuntime

MODEL, DESCRIPTION, EXAMPLE = "model.tflite", "model.json", "Classifier.kt"
# MediaPipe feeds uint8 models raw pixels and refuses int8 and int16 ones.
PRECISIONS = ("float32", "float16", "int8-float-io", "dynamic")
_TEMPLATE = Path(__file__).with_name("Classifier.kt.template")


@dataclass(frozen=True)
class Bundle:
    """`folder` and the files in it."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def labels(self) -> Path:
        return self.folder / LABELS

    @property
    def description(self) -> Path:
        return self.folder / DESCRIPTION

    @property
    def example(self) -> Path:
        return self.folder / EXAMPLE


def write_bundle(
    artifact: Artifact,
    folder: Path,
    *,
    labels: Sequence[str],
    resize: str,
    stored: int | None = None,
    name: str = "image classifier",
) -> Bundle:
    """Write the bundle of a .tflite artifact to `folder`, whole or not at all; an older bundle there is replaced.

    Where channels are normalised by numbers of their own, which MediaPipe cannot do, the model in the bundle takes
    pixels in [0, 1] and normalises them itself.

    resize: the rule by which images were brought to the input size.  stored: the side in pixels of the squares that
    they were brought to first, where that is not the input size.  Raises ExportError where the artifact cannot be used
    by MediaPipe, the labels do not fit or the disk does not take it.
    """
    _check(artifact, labels)
    try:
        model = artifact.path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {shown(artifact.path)}: {(error.strerror or str(error)).lower()}") from error
    lines = "".join(f"{label}\n" for label in labels).encode()
    takes = f"{artifact.input.width}x{artifact.input.height} pixels: {resize}"
    taken = artifact.input
    if len(set(taken.mean)) > 1 or len(set(taken.std)) > 1:  # MediaPipe knows one mean and one deviation for all
        taken = replace(taken, mean=(0.0,) * taken.channels, std=(1.0,) * taken.channels)
    described = metadata(taken, name, f"{name}, {artifact.precision}, by mobileprune", takes)
    made = embed(model if taken == artifact.input else normalising(model, artifact.input), described, lines)
    _check_same(model, made, artifact, taken)
    part = folder.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.mkdir(parents=True)
        (part / MODEL).write_bytes(made)
        (part / LABELS).write_bytes(lines)
        told = _description(artifact, taken, part / MODEL, labels, resize, name)
        (part / DESCRIPTION).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (part / EXAMPLE).write_text(_example(taken, stored), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Bundle(folder)


def _check(artifact: Artifact, labels: Sequence[str]) -> None:
    if artifact.format != "tflite" or artifact.precision not in PRECISIONS:
        raise ExportError(
            f"an Android bundle cannot hold {artifact.format} in {artifact.precision}: MediaPipe takes tflite with "
            f"float32 at its input; export one of: {', '.join(PRECISIONS)}"
        )
    if len(labels) != artifact.output_classes:
        raise ExportError(f"{len(labels)} labels were given for {artifact.output_classes} classes; give one per class")
    for label in labels:
        if not label.strip() or len(label.splitlines()) != 1:
            raise ExportError(f"the label {label!r} cannot stand on a line of {LABELS}; give each class a plain name")


def _check_same(model: bytes, made: bytes, artifact: Artifact, taken: InputSpec) -> None:
    """The file was taken apart and packed again: from the same pixels it must compute the same."""
    pixels = np.random.default_rng(0).random((1, *artifact.input.shape()[1:]), np.float32)
    pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    want, got = (
        LiteRuntime(file, 1)(((pixels.transpose(0, 2, 3, 1) - spec.mean) / spec.std).transpose(0, 3, 1, 2))
        for file, spec in ((model, artifact.input), (made, taken))
    )
    # Another order of the same sums can turn one step of an integer scale.
    allowed = (1e-4 if artifact.precision == "float32" else 0.02) * max(1.0, float(np.abs(want).max()))
    if not float(np.abs(want - got).max()) <= allowed:
        raise ExportError(f"{shown(artifact.path)} with metadata computes something else; report the model")


def _description(
    artifact: Artifact,
    spec: InputSpec,
    model: Path,
    labels: Sequence[str],
    resize: str,
    name: str,
) -> dict[str, Any]:
    runtime = LiteRuntime(model.read_bytes(), 1)
    return {
        "name": name,
        "model": MODEL,
        "precision": artifact.precision,
        "sha256": sha256_of(model),
        "size_bytes": model.stat().st_size,
        "made_from_sha256": artifact.sha256,
        "input": {
            **runtime.taken.to_dict(),
            "layout": "NHWC",
            "shape": list(spec.shape()),
            "channels": "RGB" if spec.channels == 3 else "grey" if spec.channels == 1 else spec.channels,
            "resize": resize,
            "normalise": "(pixel / 255 - mean) / std",
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "output": {**runtime.given.to_dict(), "shape": [1, len(labels)], "values": "logits"},
        "labels": LABELS,
    }


def _example(spec: InputSpec, stored: int | None) -> str:
    listed = {
        key: ", ".join(f"{value!r}f" for value in values) for key, values in (("mean", spec.mean), ("std", spec.std))
    }
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    sides = {"stored_width": stored or spec.width, "stored_height": stored or spec.height}
    return template.substitute(model=MODEL, labels=LABELS, width=spec.width, height=spec.height, **sides, **listed)
