"""The published latency table as rows that a profile can be fitted to: float32 on the CPU, with the slips taken out.

The table (`phone_latency.csv`) stands beside the project and is not part of it. Left out: GPU, NNAPI, EdgeTPU and
quantised rows, runtimes other than TFLite and XNNPACK, rows whose threads are neither stated nor certain, and rows that
are known to be wrong (`SLIPS`).
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One published latency. network: as `published_networks.build` takes it. family: what is left out together."""

    network: str
    family: str
    device: str
    backend: str
    threads: int
    latency_ms: float
    source: str


@dataclass(frozen=True)
class Machine:
    """A device and backend of the table. threads: as written there -> how many; why: where the latter is known from."""

    device: str
    backend: str
    threads: dict[str, int]
    why: str


XNNPACK, TFLITE = "xnnpack end2end_bench", "tflite cpu"
_BIG = "the table says as many threads as big cores"
_ALL = "the table says multi-threaded, on all cores"
MACHINES = (
    Machine("Pixel 1", XNNPACK, {"1": 1, "bigcores": 2}, f"{_BIG}: the Snapdragon 821 has 2"),
    Machine("Pixel 2", XNNPACK, {"1": 1, "bigcores": 4}, f"{_BIG}: the Snapdragon 835 has 4"),
    Machine("Pixel 3a", XNNPACK, {"1": 1, "bigcores": 2}, f"{_BIG}: the Snapdragon 670 has 2"),
    Machine("Raspberry Pi 2 (BCM2836)", XNNPACK, {"all": 4}, f"{_ALL}: it has 4"),
    Machine("Raspberry Pi 3+ (BCM2837B0)", XNNPACK, {"all": 4}, f"{_ALL}: it has 4"),
    Machine("Raspberry Pi 4 (BCM2711)", XNNPACK, {"all": 4}, f"{_ALL}: it has 4"),
    Machine("Pixel 1", TFLITE, {"1": 1}, "one big core, as the sources say"),
    Machine("Pixel 2", TFLITE, {"1": 1}, "one big core, as the source says"),
    Machine("Pixel 3", TFLITE, {"4": 4, "1": 1}, "as the source says"),
    Machine("Pixel 4", TFLITE, {"4": 4}, "as the sources say"),
    Machine(
        "Raspberry Pi 4",
        "TFLite v2.4.1 (ruy) cpu",
        {"": 4},
        "not stated; MobileNetV1 takes less than one core could at its peak (4 MAC per cycle at 1.5 GHz) and as long "
        "as XNNPACK on all 4",
    ),
    Machine(
        "AWS cloud instance m7g.2xlarge (graviton)",
        "TFLite vmaster (xnnpack) cpu",
        {"": 1},
        "not stated; MobileNetV1 runs at 0.7 of one core's peak (16 MAC per cycle at 2.6 GHz)",
    ),
)

# (device, model, width, resolution): why the row is not used.
SLIPS = {
    ("Pixel 1", "mnasnet_a1_0.75_96", "0.75", "96"): "17 ms, where its neighbours on the grid say 13.6",
}
# The sources list the usual resolution of these; what was measured was another.
_MEASURED_AT = {("Pixel 2", "resnet_v2_101"): 224}
_FAMILY = {
    "inception_v4": "inception",
    "inception_resnet_v2": "inception",
    "nasnet_mobile": "nasnet",
    "resnet50": "resnet",
}
_WHOLE = "densenet121|squeezenet|nasnet_(mobile|large)|resnet(50|_v2_101)|inception_(v3|v4|resnet_v2)"


def read(path: Path) -> list[Row]:
    """The usable rows of the table, in its order, a row that repeats another of its machine exactly once."""
    machines = {(one.device, one.backend): one for one in MACHINES}
    rows: dict[tuple[str, str, int, str, float], Row] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            machine = machines.get((line["device"], line["backend"]))
            if machine is None or line["precision"] != "float32" or line["threads"] not in machine.threads:
                continue
            if (line["device"], line["model"], line["width"], line["resolution"]) in SLIPS:
                continue
            network = network_of(line)
            if network is None:
                raise ValueError(f"{path}: no builder for the model {line['model']!r}; add it to published_networks.py")
            row = Row(
                network=network,
                family=_FAMILY.get(line["family"], line["family"]),
                device=line["device"],
                backend=line["backend"],
                threads=machine.threads[line["threads"]],
                latency_ms=float(line["latency_ms"]),
                source=_document(line["source"]),
            )
            # The same measurement stands, rounded, in two documents: the first one counts.
            if not any(_same(row, other) for other in rows.values()):
                rows[row.device, row.backend, row.threads, row.network, row.latency_ms] = row
    return list(rows.values())


def _same(one: Row, other: Row) -> bool:
    alike = (one.device, one.backend, one.threads, one.network) == (
        other.device,
        other.backend,
        other.threads,
        other.network,
    )
    return alike and abs(one.latency_ms / other.latency_ms - 1) < 0.01


def _document(source: str) -> str:
    """The document without its path inside a results repository: "owner/repository@commit:file" at most."""
    first = source.split(" ; ")[0]
    repository, _, path = first.partition(":")
    return repository if repository.startswith("mlcommons/") else f"{repository}:{path}"


def network_of(line: dict[str, str]) -> str | None:
    """The network of a line of the table, as `published_networks.build` takes it."""
    model = line["model"].lower().replace(" ", "_")
    width, side = line["width"] or "1.0", line["resolution"] or "224"
    if match := re.fullmatch(_WHOLE, model):
        side = str(_MEASURED_AT.get((line["device"], model), side))
        return f"{match[0]}-1.0-{side}"
    if match := re.search(r"efficientnet.*lite(\d)", model):
        return f"efficientnet_lite{match[1]}-{float(width)}-{side}"
    if match := re.search(r"mobilenet[-_]v3.*(large|small)([-_]minimalistic)?", model):
        # The MLPerf rows carry the width 1.0 whatever their model is called.
        width = "0.75" if "_0.75_" in f"{model}_" else width
        return f"mobilenet_v3_{match[1]}{'_minimal' if match[2] else ''}-{float(width)}-{side}"
    if match := re.search(r"mobilenet[-_]v([12])", model):
        return f"mobilenet_v{match[1]}-{float(width)}-{side}"
    if match := re.fullmatch(r"mnasnet(_a1)?_.*", model):
        return f"mnasnet_{'a1' if match[1] else 'b1'}-{float(width)}-{side}"
    return None
