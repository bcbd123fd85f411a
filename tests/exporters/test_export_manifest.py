"""manifest.json: what is written is read back, and a file that changed is noticed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_nets import SPEC, Shelf

from exporters import Artifact, ExportError
from exporters.manifest import Accuracy, Entry, Latency, read_manifest, write_manifest
from exporters.verify import Parity

LABELS = ["zero", "eins", "deux", "três", "четыре"]


@pytest.fixture
def artifact(shelf: Shelf, tmp_path: Path) -> Artifact:
    made = shelf.get("mobile", "onnx")
    shutil.copy(made.path, tmp_path / "model.onnx")
    return replace(made, path=tmp_path / "model.onnx")


def test_round_trip(artifact: Artifact, tmp_path: Path) -> None:
    second = tmp_path / "second.onnx"
    shutil.copy(artifact.path, second)
    other = replace(artifact, path=second, precision="float16", input=replace(SPEC, layout="NHWC"))
    full = Entry(
        artifact,
        Parity(1e-7, 1e-8, 1.0, 64, 3.5),
        Accuracy(0.93, 360),
        Latency(1.5, 1.4, 1.6, "host", "measured"),
    )
    path = write_manifest(
        tmp_path, [full, other], labels=LABELS, resize="centre crop", extra={"scale": [1.0, 0.5, 0.8]}
    )
    assert path == tmp_path / "manifest.json"
    for place in (tmp_path, path):
        manifest = read_manifest(place, verify=True)
        assert manifest.entries == (full, Entry(other))
        assert manifest.input == SPEC and manifest.labels == tuple(LABELS)
        assert manifest.resize == "centre crop" and manifest.extra == {"scale": [1.0, 0.5, 0.8]}
    assert manifest.entry("onnx") == full and manifest.entry("onnx", "float16") == Entry(other)
    with pytest.raises(ExportError, match="holds no tflite float32 file; it holds: onnx float32, onnx float16"):
        manifest.entry("tflite")


def test_what_an_app_reads(artifact: Artifact, tmp_path: Path) -> None:
    data = json.loads(write_manifest(tmp_path, [artifact], labels=LABELS).read_text())
    assert data["schema"] == 1 and data["labels"] == LABELS
    assert data["input"]["mean"] == list(SPEC.mean) and data["input"]["pixels"] == "RGB in [0, 1]"
    (entry,) = data["files"]
    assert entry["file"] == "model.onnx" and entry["shape"] == [1, 3, 16, 16] and entry["sha256"] == artifact.sha256
    assert entry["parity"] is None and entry["accuracy"] is None and entry["latency"] is None
    assert str(tmp_path) not in json.dumps(data)


def test_changed_or_missing_file(artifact: Artifact, tmp_path: Path) -> None:
    write_manifest(tmp_path, [artifact], labels=LABELS)
    data = bytearray(artifact.path.read_bytes())
    data[-1] ^= 1
    artifact.path.write_bytes(data)
    assert read_manifest(tmp_path).entries[0].artifact == artifact
    with pytest.raises(ExportError, match=r"model\.onnx' changed"):
        read_manifest(tmp_path, verify=True)
    with pytest.raises(ExportError, match=r"model\.onnx' changed"):
        write_manifest(tmp_path, [artifact], labels=LABELS)
    artifact.path.unlink()
    with pytest.raises(ExportError, match=r"cannot read .*model\.onnx': no such file"):
        read_manifest(tmp_path, verify=True)


def test_what_does_not_fit(artifact: Artifact, tmp_path: Path) -> None:
    bigger = replace(artifact, input=replace(SPEC, height=20))
    elsewhere = replace(artifact, path=tmp_path / "deeper" / "model.onnx")
    cases = [
        ([artifact], LABELS[:4], {}, "4 labels were given for 5 classes"),
        ([artifact, bigger], LABELS, {}, "different inputs"),
        ([elsewhere], LABELS, {}, "does not lie in"),
        ([], LABELS, {}, "no file to describe"),
        ([artifact], LABELS, {"gain": float("nan")}, "NaN"),
    ]
    for artifacts, labels, extra, message in cases:
        with pytest.raises(ExportError, match=message):
            write_manifest(tmp_path, artifacts, labels=labels, extra=extra)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema=99), "schema 99, this version reads 1"),
        (lambda data: data.pop("labels"), "damaged .KeyError: 'labels'"),
        (lambda data: data["files"][0].update(file="../model.onnx"), "not a file beside it"),
        (lambda data: data["files"][0].update(latency={"ms": 1}), "damaged .TypeError"),
    ],
)
def test_manifest_that_cannot_be_read(change, message: str, artifact: Artifact, tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [artifact], labels=LABELS)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ExportError, match=message):
        read_manifest(tmp_path)


def test_no_manifest_or_half_of_one(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot read"):
        read_manifest(tmp_path)
    path = write_manifest(tmp_path, [artifact], labels=LABELS)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ExportError, match="damaged"):
        read_manifest(tmp_path)


def test_latency_kind() -> None:
    with pytest.raises(ExportError, match="'measured', 'predicted' or 'emulated'"):
        Latency(1.0, 1.0, 1.0, "host", "guessed")
