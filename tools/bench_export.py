"""Our exports beside the plain ones: time, size, parity, int8 accuracy and latency on this machine.

    python tools/bench_export.py [--networks resnet50 mobilenet_v2 ...] [--shared ../shared] [--csv results/export.csv]

Measures the networks that the table lacks; those named after --networks are measured anew, the other rows stay.

"plain" is litert_torch.convert and torch.onnx.export (dynamo) with nothing else, and for int8 what ai-edge-quantizer
and ONNX Runtime do by default. Each network's files are timed interleaved in one session. Torchvision's networks have
random weights; top-1 is given for MobileNetV1 0.75 alone, whose ImageNet checkpoint lies in the shared folder, over
the ten classes of imagenette's validation images. Names that end in "/2" are pruned to half their channels.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from exporters import InputSpec, export
from exporters.operators import acceleration
from exporters.verify import accuracy, parity, torch_logits

NETWORKS = (
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "resnet50/2",
    "mobilenet_v2/2",
    "efficientnet_b0/2",
    "mobilenet_v1_075",
)
FORMATS, PRECISIONS = ("onnx", "tflite"), ("float32", "int8")
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # its classes among ImageNet's thousand
COLUMNS = (
    "network",
    "format",
    "precision",
    "seconds",
    "plain_seconds",
    "bytes",
    "plain_bytes",
    "max_difference",
    "mean_difference",
    "plain_max_difference",
    "top1_agreement",
    "plain_top1_agreement",
    "top1_module",
    "top1",
    "plain_top1",
    "xnnpack_share",
    "layout_share",
    "plain_layout_share",
    "ms",
    "ms_spread",
    "plain_ms",
    "plain_ms_spread",
)
CALIBRATION = 256
Table = dict[str, list[dict[str, Any]]]  # the rows of each network


@dataclass(frozen=True)
class Case:
    """A network with images to calibrate on and to compare on; labels where its weights are real."""

    name: str
    module: nn.Module
    spec: InputSpec
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray | None = None


def cases(names: list[str], side: int, shared: Path, per_class: int) -> Iterator[Case]:
    for name in names:
        if name == "mobilenet_v1_075":
            yield _real(name, shared, per_class)
            continue
        base, _, half = name.partition("/")
        torch.manual_seed(0)
        module = _torchvision(base)
        if half:
            from mobileprune import Scale, prune

            module = prune(module, Scale(1.0, 0.5, 1.0), torch.zeros(1, 3, side, side)).model
        spec = InputSpec(3, side, side, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        draw = np.random.default_rng(0)
        yield Case(
            name,
            _settled(module, side),
            spec,
            draw.standard_normal((32, 3, side, side), np.float32),
            draw.standard_normal((32, 3, side, side), np.float32),
        )


def _torchvision(name: str) -> nn.Module:
    from mobileprune._torchvision import import_torchvision

    module: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    return module


def _settled(module: nn.Module, side: int) -> nn.Module:
    """Batch statistics that fit the random weights, or the logits of all images are the same."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
    with torch.no_grad():
        module.train()(torch.randn(16, 3, side, side))
    return module.eval()


def _real(name: str, shared: Path, per_class: int) -> Case:
    from mobileprune.data.images import square

    sys.path.insert(0, str(shared / "models"))
    from mobilenet_v1 import mobilenet_v1  # type: ignore[import-not-found]
    from PIL import Image

    net = mobilenet_v1(width=0.75, checkpoint=str(shared / "data/checkpoints/mobilenet_v1_075_224_keras.npz")).eval()
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    with tarfile.open(shared / "data/imagenette160.tar") as archive:
        for member in archive:
            _, _, place = member.name.partition("/")
            split, _, rest = place.partition("/")
            kept = found.setdefault((split, rest.split("/")[0]), [])
            file = archive.extractfile(member) if rest.endswith(".JPEG") else None
            if file is not None and len(kept) < (per_class if split == "val" else CALIBRATION // 10):
                kept.append(square(Image.open(file), 160))
    sets = {}
    for split in ("train", "val"):
        groups = [images for (of, _), images in sorted(found.items()) if of == split and images]
        pixels = np.concatenate([np.stack(group) for group in groups])
        labels = np.concatenate([[label] * len(group) for label, group in zip(IMAGENETTE, groups, strict=True)])
        sets[split] = (pixels.astype(np.float32) / 127.5 - 1, labels)
    spec = InputSpec(3, 160, 160, (0.5,) * 3, (0.5,) * 3)
    return Case(name, net, spec, sets["train"][0], *sets["val"])


def plain(case: Case, path: Path, precision: str) -> None:
    """What the libraries write when nothing is asked of them but the precision."""
    example = torch.zeros(case.spec.shape())
    floating = path if precision == "float32" else path.with_name(f"float-{path.name}")
    if path.suffix == ".onnx":
        torch.onnx.export(case.module, (example,), floating, dynamo=True, external_data=False, verbose=False)
    else:
        import litert_torch

        litert_torch.convert(case.module, (example,)).export(str(floating))
    if precision == "float32":
        return
    if path.suffix == ".onnx":
        _plain_int8_onnx(case, floating, path)
    else:
        _plain_int8_tflite(case, floating, path)


def _plain_int8_onnx(case: Case, floating: Path, path: Path) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    name = onnx.load(floating).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._images = iter(case.calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {name: image[None]}

    quantize_static(floating, path, Reader())


def _plain_int8_tflite(case: Case, floating: Path, path: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    worker = quantizer.Quantizer(str(floating), recipe.static_wi8_ai8())
    feed = [{"args_0": image[None]} for image in case.calibration]
    worker.quantize(worker.calibrate({"serving_default": feed}, num_threads=1)).export_model(path)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(case: Case, ours: Path, theirs: Path, kind: str, precision: str) -> dict[str, Any]:
    """Write both files and compare what they compute; the latencies come later."""
    calibration = case.calibration if precision == "int8" else None
    seconds = timed(
        lambda: export(case.module, case.spec, ours, format=kind, precision=precision, calibration=calibration)
    )
    plain_seconds = timed(lambda: plain(case, theirs, precision))
    few = case.images[:64]
    found, other = parity(ours, case.module, few), plain_parity(theirs, case, few)
    left, plain_left = acceleration(ours), acceleration(theirs)
    told: dict[str, Any] = {
        "network": case.name,
        "format": kind,
        "precision": precision,
        "seconds": round(seconds, 2),
        "plain_seconds": round(plain_seconds, 2),
        "bytes": ours.stat().st_size,
        "plain_bytes": theirs.stat().st_size,
        "max_difference": f"{found.max_abs:.3g}",
        "mean_difference": f"{found.mean_abs:.3g}",
        "plain_max_difference": f"{other[0]:.3g}",
        "top1_agreement": round(found.top1_agreement, 4),
        "plain_top1_agreement": round(other[1], 4),
        "xnnpack_share": "" if left.share is None else round(left.share, 4),
        "layout_share": round(left.layout_share, 4),
        "plain_layout_share": round(plain_left.layout_share, 4),
    }
    if case.labels is not None:
        told["top1_module"] = round(float((torch_logits(case.module, case.images).argmax(1) == case.labels).mean()), 4)
        told["top1"] = round(accuracy(ours, case.images, case.labels), 4)
        told["plain_top1"] = round(float((logits(theirs, case.images).argmax(1) == case.labels).mean()), 4)
    return told


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits of a plain file: the TFLite ones take NCHW, which `exporters.open_runtime` does not."""
    from exporters.runtimes import LiteRuntime, OnnxRuntime

    if path.suffix == ".onnx":
        return OnnxRuntime(path.read_bytes(), 1)(images)
    runtime = LiteRuntime(path.read_bytes(), 1)
    results = []
    index = runtime.interpreter.get_input_details()[0]["index"], runtime.interpreter.get_output_details()[0]["index"]
    for image in images:
        runtime.interpreter.set_tensor(index[0], runtime.taken.from_real(image[None]))
        runtime.interpreter.invoke()
        results.append(runtime.given.to_real(runtime.interpreter.get_tensor(index[1])))
    return np.concatenate(results)


def plain_parity(path: Path, case: Case, images: np.ndarray) -> tuple[float, float]:
    """Largest difference and top-1 agreement with the module."""
    got, want = logits(path, images), torch_logits(case.module, images)
    return float(np.abs(got - want).max()), float((got.argmax(1) == want.argmax(1)).mean())


def measure(case: Case, folder: Path, rounds: int, min_seconds: float) -> list[dict[str, Any]]:
    """All rows of one network, its files timed together."""
    rows: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    for kind in FORMATS:
        for precision in PRECISIONS:
            ours, theirs = (folder / f"{whose}-{precision}.{kind}" for whose in ("ours", "plain"))
            told = row(case, ours, theirs, kind, precision)
            files |= {f"{kind} {precision} ours": ours, f"{kind} {precision} plain": theirs}
            rows.append(told)
    report = benchmark(open_device("host"), files, rounds=rounds, min_seconds=min_seconds)
    for told in rows:
        for whose, column in (("ours", "ms"), ("plain", "plain_ms")):
            found = report.measurements[f"{told['format']} {told['precision']} {whose}"]
            told[column] = round(found.latency_ms, 4)
            told[f"{column}_spread"] = round((found.high_ms - found.low_ms) / found.latency_ms, 4)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[], choices=NETWORKS, metavar="NAME")
    parser.add_argument("--side", type=int, default=224, help="input side of torchvision's networks, in pixels")
    parser.add_argument("--per-class", type=int, default=100, help="validation images per class of imagenette")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-seconds", type=float, default=0.25)
    parser.add_argument("--csv", type=Path, default=Path("results/export.csv"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    how = f"--side {asked.side} --per-class {asked.per_class} --rounds {asked.rounds}"
    command = f"# python tools/bench_export.py {how} --round-seconds {asked.round_seconds:g}"
    table = read_table(asked.csv, command)
    names = asked.networks or [name for name in NETWORKS if name not in table]
    for case in cases(names, asked.side, asked.shared, asked.per_class):
        with tempfile.TemporaryDirectory() as folder:
            table[case.name] = measure(case, Path(folder), asked.rounds, asked.round_seconds)
        for told in table[case.name]:
            print(*(f"{column}={told.get(column, '')}" for column in COLUMNS), flush=True)
        write_table(table, asked.csv, command)


def read_table(path: Path, command: str) -> Table:
    """The rows of each network that were measured in the same way; ends the program where they were not."""
    if not path.exists():
        return {}
    first, *lines = path.read_text().splitlines()
    rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    if first != command or (rows and tuple(rows[0]) != COLUMNS):
        raise SystemExit(f"{path} was made in another way ({first}); remove it or name another file with --csv")
    table: Table = {}
    for told in rows:
        table.setdefault(str(told["network"]), []).append(told)
    return table


def write_table(table: Table, path: Path, command: str) -> None:
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        file.write(f"{command}\n")
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name in NETWORKS:
            writer.writerows(table.get(name, []))
    part.replace(path)


if __name__ == "__main__":
    main()
