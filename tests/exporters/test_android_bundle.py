"""The Android bundle, read by MediaPipe's own ImageClassifier: the C++ core that apps run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from exporter_peers import absent, need_format
from PIL import Image
from small_nets import Shelf
from torch import nn

from exporters import Artifact, ExportError, InputSpec, export, metadata
from exporters.android import Bundle, write_bundle
from exporters.artifact import sha256_of
from exporters.runtimes import LiteRuntime
from exporters.verify import torch_logits
from mobileprune.data import RESIZE_RULE
from mobileprune.data.images import square
from mobileprune.training.batches import View

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
LABELS = ["zero", "eins", "deux", "três", "четыре"]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real images: handwritten digits, uint8 (N, 3, 16, 16), and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images * 255 / 16).astype(np.uint8)
    return np.stack([square(Image.fromarray(image).convert("RGB"), 16) for image in pixels]), data.target


SPEC_DIGITS = InputSpec(3, 16, 16, (0.3, 0.4, 0.5), (0.4, 0.3, 0.2))  # each channel another one: no mix-up can hide


def normalised(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    return ((pixels / np.float32(255) - mean) / std).astype(np.float32)


@pytest.fixture(scope="module")
def reader(digits: tuple[np.ndarray, np.ndarray]) -> nn.Module:
    """Random convolutions and a last layer solved by least squares: 9 of 10 digits right without training."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    images = normalised(digits[0], SPEC_DIGITS)
    features = torch_logits(body, images)
    wanted = np.eye(10, dtype=np.float32)[digits[1]]
    known = np.c_[features, np.ones(len(features))]
    ridge = 10 * np.eye(known.shape[1])  # small weights survive 8 bits
    solved = np.linalg.solve(known.T @ known + ridge, known.T @ wanted).astype(np.float32)
    head = nn.Linear(features.shape[1], 10)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(solved[:-1].T))
        head.bias.copy_(torch.from_numpy(solved[-1]))
    return nn.Sequential(body, head).eval()


def ask_mediapipe(bundle: Bundle, pixels: np.ndarray) -> list[tuple[str, float]]:
    """Best label and its score of each image, uint8 (N, 3, H, W), by the real client."""
    if find_spec("mediapipe") is None:
        absent("mediapipe is not installed here; run: pip install mediapipe")
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    base = BaseOptions(model_asset_path=str(bundle.model))
    answers = []
    with vision.ImageClassifier.create_from_options(vision.ImageClassifierOptions(base_options=base)) as classifier:
        for image in pixels:
            given = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(image.transpose(1, 2, 0)))
            best = classifier.classify(given).classifications[0].categories[0]
            answers.append((best.category_name, best.score))
    return answers


@pytest.mark.parametrize("precision", ["float32", "float16", "int8-float-io"])
def test_mediapipe_sees_what_torch_sees(
    precision: str, reader: nn.Module, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    need_format("tflite")
    images = normalised(digits[0], SPEC_DIGITS)
    pictures = images[200:] if precision == "int8-float-io" else None
    names = [f"digit {n}" for n in range(10)]
    made = export(
        reader, SPEC_DIGITS, tmp_path / "x.tflite", format="tflite", precision=precision, calibration=pictures
    )
    bundle = write_bundle(made, tmp_path / "android", labels=names, resize=RESIZE_RULE)
    assert json.loads(bundle.description.read_text())["input"]["mean"] == [0, 0, 0]  # the model does it itself
    answers = ask_mediapipe(bundle, digits[0][:200])
    logits = torch_logits(reader, images[:200])
    agreed = np.mean([label == names[row.argmax()] for (label, _), row in zip(answers, logits, strict=True)])
    assert np.mean([label == names[y] for (label, _), y in zip(answers, digits[1][:200], strict=True)]) > 0.85
    assert agreed == 1.0 if precision == "float32" else agreed >= 0.97
    allowed = {"float32": 1e-4, "float16": 5e-3}.get(precision, 0.1)
    assert max(abs(score - row.max()) for (_, score), row in zip(answers, logits, strict=True)) < allowed


def test_mediapipe_on_photographs(tmp_path: Path) -> None:
    need_format("tflite")
    archive, weights = SHARED / "data/imagenette160.tar", SHARED / "data/checkpoints/mobilenet_v1_075_224_keras.npz"
    if not archive.is_file() or not weights.is_file():
        pytest.skip("imagenette and the MobileNetV1 checkpoint are not in ../shared/data")
    sys.path.insert(0, str(SHARED / "models"))
    try:
        from mobilenet_v1 import mobilenet_v1
    finally:
        sys.path.pop(0)
    net = mobilenet_v1(width=0.75, checkpoint=str(weights)).eval()
    spec = InputSpec(3, 160, 160, (0.5,) * 3, (0.5,) * 3)
    with tarfile.open(archive) as files:
        members = [member for member in files if "/val/" in member.name and member.name.endswith("JPEG")][::200]
        pixels = np.stack([square(Image.open(files.extractfile(member)), 160) for member in members])
    made = export(net, spec, tmp_path / "x.tflite", format="tflite")
    names = [f"class {n}" for n in range(1000)]
    bundle = write_bundle(made, tmp_path / "android", labels=names, resize=RESIZE_RULE)
    answers = ask_mediapipe(bundle, pixels)
    assert len(answers) == 20
    assert [label for label, _ in answers] == [
        names[row.argmax()] for row in torch_logits(net, normalised(pixels, spec))
    ]


def even(artifact: Artifact) -> Artifact:
    """The file as if all its channels were normalised alike, as `write_bundle` asks for."""
    return replace(artifact, input=replace(artifact.input, mean=(0.5,) * 3, std=(0.25,) * 3))


def test_what_is_in_the_bundle(shelf: Shelf, tmp_path: Path) -> None:
    need_format("tflite")
    made = even(shelf.get("mobile", "tflite", "int8-float-io"))
    folder = tmp_path / "it's \n android"
    bundle = write_bundle(made, folder, labels=LABELS, resize=RESIZE_RULE, name="net")
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "Classifier.kt",
        "labels.txt",
        "model.json",
        "model.tflite",
    ]
    assert list(tmp_path.iterdir()) == [folder]
    assert bundle.labels.read_text(encoding="utf-8").splitlines() == LABELS
    with zipfile.ZipFile(bundle.model) as inside:
        assert inside.namelist() == ["labels.txt"] and inside.read("labels.txt") == bundle.labels.read_bytes()
    told = json.loads(bundle.description.read_text(encoding="utf-8"))
    assert told["sha256"] == sha256_of(bundle.model) and told["made_from_sha256"] == made.sha256
    assert told["input"]["shape"] == [1, 16, 16, 3] and told["input"]["resize"] == RESIZE_RULE
    assert told["input"]["mean"] == [0.5, 0.5, 0.5]
    assert "facts" not in told and told["name"] == "net"
    example = bundle.example.read_text(encoding="utf-8")
    assert "MEAN = floatArrayOf(0.5f, 0.5f, 0.5f)" in example and "WIDTH = 16" in example and "$" not in example
    again = write_bundle(made, tmp_path / "again", labels=LABELS, resize=RESIZE_RULE)
    first = {entry.name: entry.read_bytes() for entry in again.folder.iterdir()}
    write_bundle(made, again.folder, labels=LABELS, resize=RESIZE_RULE)
    assert {entry.name: entry.read_bytes() for entry in again.folder.iterdir()} == first


def test_what_a_bundle_cannot_hold(shelf: Shelf, tmp_path: Path) -> None:
    need_format("tflite")
    good = even(shelf.get("mobile", "tflite"))
    cases = [
        (replace(good, precision="int8"), LABELS, "cannot hold tflite in int8: MediaPipe takes"),
        (replace(good, format="onnx"), LABELS, "cannot hold onnx"),
        (good, LABELS[:4], "4 labels were given for 5 classes"),
        (good, [*LABELS[:4], "two\nlines"], "cannot stand on a line"),
        (good, [*LABELS[:4], " "], "cannot stand on a line"),
        (replace(good, path=tmp_path / "gone.tflite"), LABELS, "cannot read .*gone"),
    ]
    for artifact, labels, message in cases:
        with pytest.raises(ExportError, match=message):
            write_bundle(artifact, tmp_path / "android", labels=labels, resize=RESIZE_RULE)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_no_bundle(shelf: Shelf, small_disk: Path) -> None:
    need_format("tflite")
    (small_disk / "filler").write_bytes(b"x" * 8000)
    with pytest.raises(ExportError, match="no space left on device"):
        write_bundle(even(shelf.get("mobile", "tflite")), small_disk / "android", labels=LABELS, resize=RESIZE_RULE)
    assert [entry.name for entry in small_disk.iterdir()] == ["filler"]


MAIN = """
fun main() {
    val (width, height) = readLine()!!.split(" ").map { it.toInt() }
    val pixels = readLine()!!.split(" ").map { it.toInt() }.toIntArray()
    val input = Preprocess.resizeAndCrop(pixels, width, height)
    println(input.joinToString(" "))
    println(Preprocess.normalise(input).joinToString(" "))
}
"""


@pytest.mark.parametrize("stored", [None, 24])
def test_kotlin_resizes_as_the_training_did(stored: int | None, shelf: Shelf, tmp_path: Path) -> None:
    """The pure half of Classifier.kt, compiled and run; also where training made its stored images smaller."""
    need_format("tflite")
    if shutil.which("kotlinc") is None or shutil.which("java") is None:
        absent("kotlinc and java are not installed here; run: apt-get install kotlin")
    artifact = even(shelf.get("mobile", "tflite"))
    bundle = write_bundle(artifact, tmp_path / "android", labels=LABELS, resize=RESIZE_RULE, stored=stored)
    source = bundle.example.read_text(encoding="utf-8")
    pure = "import kotlin.math.*\n" + source[source.index("/** What was done") :] + MAIN
    (tmp_path / "Pure.kt").write_text(pure, encoding="utf-8")
    jar = tmp_path / "pure.jar"
    subprocess.run(["kotlinc", tmp_path / "Pure.kt", "-include-runtime", "-d", jar], check=True, capture_output=True)
    for width, height in ((50, 35), (10, 25), (16, 40), (17, 23)):
        image = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
        red, green, blue = (image[..., channel].astype(np.int64) for channel in range(3))
        packed = ((255 << 24) | (red << 16) | (green << 8) | blue).astype(np.uint32).view(np.int32).ravel()
        given = f"{width} {height}\n{' '.join(map(str, packed))}\n"
        done = subprocess.run(["java", "-jar", jar], input=given, capture_output=True, text=True, check=True)
        pixels, values = (np.array(line.split(), np.float64) for line in done.stdout.splitlines())
        argb = pixels.astype(np.int64)
        got = np.stack([(argb >> shift) & 255 for shift in (16, 8, 0)]).reshape(3, 16, 16)
        kept = torch.from_numpy(square(Image.fromarray(image), stored or 16))[None]
        seen = View(16, (0.0,) * 3, (1.0,) * 3)(kept)[0].numpy() * 255  # what training and evaluation see
        assert np.abs(got - seen).max() <= 2  # Pillow rounds its weights to 8 bits, and the app each step to integers
        wanted = normalised(got.astype(np.float32), artifact.input).transpose(1, 2, 0)
        assert np.allclose(values.reshape(16, 16, 3), wanted, atol=1e-5)


def with_external_weights(model: bytes) -> bytes:
    """The file with its largest buffer behind the flatbuffer, as the quantiser writes large ones."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.ModelT.InitFromPackedBuf(model, 0)
    held = max(graph.buffers, key=lambda one: 0 if one.data is None else len(one.data))
    weights = bytes(bytearray(held.data))
    held.data, held.offset, held.size = None, 1, 1
    placed = metadata.packed(graph, len(model))
    held.offset, held.size = -(-len(placed) // 16) * 16, len(weights)
    placed = metadata.packed(graph, len(model))
    return placed + bytes(held.offset - len(placed)) + weights


def test_weights_behind_the_flatbuffer_come_along(reader: nn.Module, tmp_path: Path) -> None:
    need_format("tflite")
    path = tmp_path / "x.tflite"
    made = export(reader, SPEC_DIGITS, path, format="tflite")
    path.write_bytes(with_external_weights(path.read_bytes()))
    moved = replace(made, sha256=sha256_of(path), size_bytes=path.stat().st_size)
    bundle = write_bundle(moved, tmp_path / "android", labels=[str(n) for n in range(10)], resize=RESIZE_RULE)
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    spec = SPEC_DIGITS
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    wanted = torch_logits(reader, ((image - mean) / std).astype(np.float32))
    assert LiteRuntime(bundle.model.read_bytes(), 1)(image) == pytest.approx(wanted, abs=1e-4)
