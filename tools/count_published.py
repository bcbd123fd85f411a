"""Count the work of the published networks through files, as `device_profiles.operators` counts any file.

    python tools/count_published.py ../shared/data/published/phone_latency.csv

Writes results/published_networks.csv: one line per network and kind of operator. Networks that are there already are
not counted again: remove the file to count anew.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from device_profiles.operators import KindWork, Work, count

RESULTS = Path(__file__).resolve().parents[1] / "results"
COUNTS = RESULTS / "published_networks.csv"
_WORK = ("operators", "macs", "activation_elements", "activation_bytes", "weight_bytes")
_WHOLE = ("params", "peak_activation_bytes", "input_elements")
COLUMNS = ("network", "kind", *_WORK, *_WHOLE)


def read_counts(path: Path = COUNTS) -> dict[str, Work]:
    """Network -> its work, from the table; nothing where there is no table yet."""
    if not path.exists():
        return {}
    kinds: dict[str, dict[str, KindWork]] = {}
    whole: dict[str, tuple[int, int, int]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(row for row in file if not row.startswith("#")):
            work = KindWork(*(int(line[key]) for key in _WORK))
            kinds.setdefault(line["network"], {})[line["kind"]] = work
            params, peak, inputs = (int(line[key]) for key in _WHOLE)
            whole[line["network"]] = (params, peak, inputs)
    return {name: Work(kinds[name], whole[name][0], whole[name][1], {}, whole[name][2]) for name in kinds}


def write_counts(counts: dict[str, Work], path: Path = COUNTS) -> None:
    """Write the table, whole or not at all, sorted by network."""
    beside = path.with_name(f".{path.name}.part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        file.write("# python tools/count_published.py ../shared/data/published/phone_latency.csv\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, work in sorted(counts.items()):
            whole = [getattr(work, key) for key in _WHOLE]
            for kind, one in work.kinds.items():
                writer.writerow([name, kind, *(getattr(one, key) for key in _WORK), *whole])
    beside.replace(path)


def count_network(name: str) -> Work:
    """Build the network, write a throw-away ONNX file, and count that; raises ValueError for unknown operators."""
    from published_networks import build

    from exporters import InputSpec, export

    module, side = build(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        spec = InputSpec(3, side, side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        export(module, spec, path, format="onnx", simplify=False)
        work = count(path)
    if work.unsupported:
        raise ValueError(f"{name}: operators that are not counted: {', '.join(work.unsupported)}")
    return work


def count_all(names: Iterable[str], path: Path = COUNTS) -> dict[str, Work]:
    """The work of all these networks; those not in the table yet are counted and added to it one by one."""
    counts = read_counts(path)
    for name in dict.fromkeys(names):
        if name not in counts:
            counts[name] = count_network(name)
            write_counts(counts, path)
            print(f"{name}: {counts[name].macs / 1e6:.1f} MMAC", file=sys.stderr)
    return counts


def main() -> None:
    from published_rows import read

    count_all(row.network for row in read(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
