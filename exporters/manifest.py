"""manifest.json: what an app must know of the files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from exporters import exporter
from exporters.artifact import Artifact, InputSpec, sha256_of
from exporters.errors import ExportError
from exporters.files import atomic, shown
from exporters.verify import Parity, Verification

NAME = "manifest.json"
SCHEMA = 1
# What two exports of the same network do not share, and why; the files themselves are the same to the byte.
VARIES = {"files.latency": "measured anew", "files.verification.peak_memory_bytes": "measured anew"}
RESIZE = "resize the image to the input size (bilinear, antialiased), then scale to [0, 1] and normalise"


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image on a device, with its 95 % interval. `kind` is "measured", "predicted" or "emulated"."""

    ms: float
    low_ms: float
    high_ms: float
    device: str
    kind: str = "measured"

    def __post_init__(self) -> None:
        if self.kind not in ("measured", "predicted", "emulated"):
            raise ExportError(f"a latency is 'measured', 'predicted' or 'emulated', not {self.kind!r}")


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy (fraction) of the file itself, run in its runtime on `samples` images of the split named."""

    top1: float
    samples: int
    split: str = "validation"


@dataclass(frozen=True)
class Entry:
    """One file of the manifest; what was not determined is None.

    quantisation: how an integer file came about (see `exporters.quantize.Quantized.to_dict`).
    """

    artifact: Artifact
    parity: Parity | None = None
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    verification: Verification | None = None
    quantisation: dict[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """`input` is the image before any layout (NCHW); each entry's own input says the layout of its file."""

    input: InputSpec
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    resize: str = RESIZE
    extra: dict[str, Any] = field(default_factory=dict)

    def entry(self, kind: str, precision: str = "float32") -> Entry:
        """The entry of the format `kind`. Raises ExportError where there is none."""
        for entry in self.entries:
            if (entry.artifact.format, entry.artifact.precision) == (kind, precision):
                return entry
        held = ", ".join(f"{entry.artifact.format} {entry.artifact.precision}" for entry in self.entries)
        raise ExportError(f"the manifest holds no {kind} {precision} file; it holds: {held or 'none'}")


def write_manifest(
    folder: Path,
    artifacts: Sequence[Artifact | Entry],
    *,
    labels: Sequence[str],
    resize: str = RESIZE,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder`/manifest.json for files that lie in that folder; its path.

    Raises ExportError where a file lies elsewhere, changed since its export, or does not fit the labels or the others.
    """
    folder = Path(folder)
    entries = [item if isinstance(item, Entry) else Entry(item) for item in artifacts]
    if not entries:
        raise ExportError(f"there is no file to describe in {shown(folder)}; export one first")
    for entry in entries:
        _check_entry(entry, folder, labels)
    spec = replace(entries[0].artifact.input, layout="NCHW")
    if any(replace(entry.artifact.input, layout="NCHW") != spec for entry in entries):
        raise ExportError("the files take different inputs; write one manifest for each input size")
    data = {
        "schema": SCHEMA,
        "input": {**_input(spec), "pixels": "RGB in [0, 1]" if spec.channels == 3 else "[0, 1]", "resize": resize},
        "labels": list(labels),
        "files": [_file(entry) for entry in entries],
        "varies": VARIES,
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ExportError(f"the manifest cannot hold NaN or infinite numbers: {error}") from error
    with atomic(folder / NAME) as part:
        part.write_text(text, encoding="utf-8")
    return folder / NAME


def read_manifest(folder: Path, *, verify: bool = False) -> Manifest:
    """Read `folder`/manifest.json (or that file itself); `verify` also compares each file's size and SHA-256.

    Raises ExportError where the manifest is missing, damaged or of a newer schema, or a file is missing or changed.
    """
    path = Path(folder)
    if path.is_dir() or path.name != NAME:
        path = path / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = int(data["schema"])
        if schema != SCHEMA:
            raise ExportError(
                f"{shown(path)} has schema {schema}, this version reads {SCHEMA}; install another version"
            )
        manifest = _parsed(data, path.parent)
    except OSError as error:
        raise ExportError(f"cannot read {shown(path)}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{shown(path)} is damaged ({type(error).__name__}: {error}); export again") from error
    if verify:
        for entry in manifest.entries:
            _check_file(entry.artifact)
    return manifest


def _check_entry(entry: Entry, folder: Path, labels: Sequence[str]) -> None:
    artifact = entry.artifact
    if artifact.path.parent.resolve() != folder.resolve():
        raise ExportError(f"{shown(artifact.path)} does not lie in {shown(folder)}, where its manifest is to be")
    if len(labels) != artifact.output_classes:
        raise ExportError(f"{len(labels)} labels were given for {artifact.output_classes} classes; give one per class")
    _check_file(artifact)


def _check_file(artifact: Artifact) -> None:
    try:
        size, digest = artifact.path.stat().st_size, sha256_of(artifact.path)
    except OSError as error:
        raise ExportError(f"cannot read {shown(artifact.path)}: {(error.strerror or str(error)).lower()}") from error
    if (size, digest) != (artifact.size_bytes, artifact.sha256):
        raise ExportError(f"{shown(artifact.path)} changed since it was exported (its SHA-256 differs); export again")


def _input(spec: InputSpec) -> dict[str, Any]:
    return {**spec.to_dict(), "shape": list(spec.shape()), "dtype": "float32"}


def _file(entry: Entry) -> dict[str, Any]:
    artifact = entry.artifact
    format_ = exporter(artifact.format)
    return {
        "file": artifact.path.name,
        "format": artifact.format,
        "precision": artifact.precision,
        "layout": artifact.input.layout,
        "shape": list(artifact.input.shape()),
        "dtype": format_.ends.get(artifact.precision, "float32"),
        "classes": artifact.output_classes,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "versions": artifact.versions,
        "notes": artifact.notes,
        "parity": entry.parity.to_dict() if entry.parity else None,
        "accuracy": asdict(entry.accuracy) if entry.accuracy else None,
        "latency": asdict(entry.latency) if entry.latency else None,
        "verification": entry.verification.to_dict() if entry.verification else None,
        "quantisation": entry.quantisation,
        "caution": format_.cautions.get(artifact.precision),
    }


def _parsed(data: Mapping[str, Any], folder: Path) -> Manifest:
    keys = ("channels", "height", "width", "mean", "std", "layout")
    spec = InputSpec.from_dict({key: data["input"][key] for key in keys})
    entries = tuple(_entry(item, spec, folder) for item in data["files"])
    return Manifest(spec, tuple(data["labels"]), entries, data["input"]["resize"], dict(data["extra"]))


def _entry(item: Mapping[str, Any], spec: InputSpec, folder: Path) -> Entry:
    name = item["file"]
    if Path(name).name != name:
        raise ExportError(
            f"the manifest in {shown(folder)} names {name!r}, which is not a file beside it; export again"
        )
    artifact = Artifact(
        path=folder / name,
        format=item["format"],
        precision=item["precision"],
        input=replace(spec, layout=item["layout"]),
        output_classes=int(item["classes"]),
        sha256=item["sha256"],
        size_bytes=int(item["size_bytes"]),
        versions=dict(item["versions"]),
        notes=dict(item.get("notes", {})),
    )
    return Entry(
        artifact,
        Parity.from_dict(item["parity"]) if item["parity"] else None,
        Accuracy(**item["accuracy"]) if item["accuracy"] else None,
        Latency(**item["latency"]) if item["latency"] else None,
        Verification.from_dict(item["verification"]) if item.get("verification") else None,
        item.get("quantisation"),
    )
