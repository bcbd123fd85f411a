"""Prune every network of a zoo at four scales and check each result: results/zoo.csv.

    .venv/bin/python tools/zoo.py [--only TEXT ...] [--again TEXT ...] [--minutes 30] [--csv results/zoo.csv]

For each network (random weights, 96 px or what it needs) and scale: prune, forward, backward, one optimiser step, the
recipe and safetensors rebuild a bit-equal network in a fresh process, the MACs are those predicted, and the ONNX file
gives the same numbers in ONNX Runtime. Where the architecture lacks a dimension the row says so and why; in the mixed
scale it stays at 1. A refused row is one that this package cannot prune.
Every network runs in a child process of its own, on one thread; those in the table already are not run again.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from odd_networks import ODD
from tables import write_rows
from torch import Tensor, nn

from exporters import InputSpec, export
from exporters.verify import parity
from mobileprune._torchvision import import_timm, import_torchvision
from mobileprune.errors import MobilepruneError
from mobileprune.pruning.anatomy import Anatomy
from mobileprune.pruning.cost import count
from mobileprune.pruning.layers import Inputs, image_of, like, resized
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import Pruned, prune
from mobileprune.pruning.recipe import Recipe, rebuild
from mobileprune.scale import Scale
from mobileprune.tensors import tensors_in

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "models"
SCALES = (Scale(1, 0.5, 1), Scale(0.5, 1, 1), Scale(1, 1, 0.7), Scale(0.7, 0.7, 0.8))
SIDE, SIDES = 96, {"shared:resnet_cifar:resnet56": 32}
TIMEOUT_S = 900.0  # per network
ATOL = 1e-3  # of the largest output, between ONNX Runtime and torch
COLUMNS = (
    "network", "depth", "width", "resolution", "status", "reached_depth", "reached_width", "reached_resolution",
    "macs_share", "params_share", "macs_error", "onnx_error", "seconds", "note",
)  # fmt: skip

TORCHVISION = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "squeezenet1_1",
    "googlenet", "inception_v3", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf",
    "convnext_tiny",
)  # fmt: skip
TIMM = (
    "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small", "efficientnet_lite0",
    "ghostnet_100", "hrnet_w18_small", "dla34", "cspresnet50", "repvgg_a0", "resnest14d", "tinynet_a", "fbnetc_100",
    "hardcorenas_a", "mixnet_s", "rexnet_100", "nf_resnet50", "lcnet_050", "edgenext_xx_small",
)  # fmt: skip
TRANSFORMERS = ("vit_tiny_patch16_224",)  # to be refused


class Flat(nn.Module):
    """All outputs of a model, whatever holds them, as one (N, ...) tensor: what an ONNX file is compared by.

    A model of several inputs gets the same image for each.
    """

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.model = model
        self.inputs = len(example) if isinstance(example, tuple) else 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([t.flatten(1) for t in tensors_in(self.model(*[x] * self.inputs))], 1)


def names() -> list[str]:
    shared = [("resnet_cifar", "resnet56"), ("mobilenet_v1", "mobilenet_v1")]
    return [
        *(f"shared:{file}:{name}" for file, name in shared if (SHARED / f"{file}.py").exists()),
        *(f"odd:{name}" for name in ODD),
        *(f"torchvision:{name}" for name in TORCHVISION),
        *(f"timm:{name}" for name in [*TIMM, *TRANSFORMERS]),
    ]


def build(name: str) -> nn.Module:
    """The network ``name`` with random weights, the same ones each time."""
    torch.manual_seed(0)
    kind, _, rest = name.partition(":")
    if kind == "torchvision":
        options: dict[str, Any] = {}
        if rest in ("googlenet", "inception_v3"):  # the latter's auxiliary head trains at 299 px and above only
            options = {"aux_logits": rest == "googlenet", "init_weights": False}
        return cast(nn.Module, import_torchvision().models.get_model(rest, weights=None, **options)).eval()
    if kind == "timm":
        return cast(nn.Module, import_timm().create_model(rest, pretrained=False)).eval()
    if kind == "odd":
        return ODD[rest]().eval()
    file, _, factory = rest.partition(":")
    spec = importlib.util.spec_from_file_location(file, SHARED / f"{file}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(nn.Module, getattr(module, factory)()).eval()


def rows_of(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The four rows of one network, whose results go to ``folder``. What goes wrong is written down, not hidden."""
    side = SIDES.get(name, 224 if name.removeprefix("timm:") in TRANSFORMERS else SIDE)
    image = torch.randn(1, 3, side, side)
    example: Inputs = (image, image) if name == "odd:two_inputs" else image
    try:
        model = build(name)
        anatomy = Anatomy.of(model, example)
    except Exception as error:  # the table says it, for every scale
        status = "refused" if isinstance(error, MobilepruneError) else "fail"
        yield from (_row(name, scale, status=status, note=_said(error)) for scale in SCALES)
        return
    for number, scale in enumerate(SCALES):
        started = time.monotonic()
        try:
            found = check(model, anatomy, scale, example, folder / str(number))
        except MobilepruneError as error:
            found = {"status": _status(error, anatomy), "note": _said(error)}
        except Exception as error:  # whatever the network or a library raises is a result
            found = {"status": "fail", "note": _said(error)}
        yield _row(name, scale, **found, seconds=f"{time.monotonic() - started:.1f}")


def _status(error: MobilepruneError, anatomy: Anatomy) -> str:
    """lacks: the architecture has nothing to remove there, as its notes say; refused: this package cannot."""
    if "cannot be pruned" not in str(error):
        return "fail"
    known = ("depth: no residual block", "width: no layer has", "resolution: not at")
    lacking = [n for n in anatomy.notes if n.startswith(known) or "is the only removable block" in n]
    return "lacks" if any(note in str(error) for note in lacking) else "refused"


def check(model: nn.Module, anatomy: Anatomy, scale: Scale, example: Inputs, folder: Path) -> dict[str, Any]:
    """Prune ``model`` to ``scale``, check the result and store it; raises at the first thing that is wrong."""
    asked, notes = scale, []
    if sum(value < 1 for value in scale.as_tuple()) > 1:
        able = {"depth": len(anatomy.depths), "width": len(anatomy.widths.values), "resolution": len(anatomy.sizes)}
        asked = Scale(*(getattr(scale, k) if n > 1 else 1.0 for k, n in able.items()))
        missing = ", ".join(k for k, n in able.items() if n < 2)
        notes += [f"without {missing}, which it lacks"] if missing else []
    result = prune(model, asked, example, anatomy=anatomy)
    shape = resized(example, result.input_size)
    inputs = like(shape, 2, torch.randn)
    if isinstance(inputs, tuple):
        inputs = (inputs[0],) * len(inputs)
    counted = count(result.model, inputs).macs
    predicted = anatomy.cost(asked).macs
    _require(abs(counted / predicted - 1) <= 0.05, f"{counted} MACs counted, {predicted} predicted")
    _train_one_step(result.model, inputs)
    reestimate_norms(result.model, [like(shape, 8, torch.randn)])  # at their initial values signals die out
    store(result, inputs, folder)
    error = _onnx_error(result, inputs, quick=True)
    if error > ATOL:
        notes.append(f"the quick ONNX file is off by {error:.2g}, the full one is not")
        error = _onnx_error(result, inputs, quick=False)
    _require(error <= ATOL, f"ONNX Runtime differs by {error:.2g} of the largest output")
    reached = dict(zip(("reached_depth", "reached_width", "reached_resolution"), result.scale.as_tuple(), strict=True))
    return {
        "status": "pass",
        **{key: f"{value:.4f}" for key, value in reached.items()},
        "macs_share": f"{result.macs:.4f}",
        "params_share": f"{result.params:.4f}",
        "macs_error": f"{counted / predicted - 1:.4f}",
        "onnx_error": f"{error:.1e}",
        "note": "; ".join(notes),
    }


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _call(model: nn.Module, inputs: Inputs) -> Any:
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _train_one_step(model: nn.Module, inputs: Inputs) -> None:
    model.train()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = torch.stack([t.float().square().mean() for t in tensors_in(_call(model, inputs))]).sum()
    cast(Any, loss).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    _require(bool(gradients) and all(bool(g.isfinite().all()) for g in gradients), "no or infinite gradients")
    optimizer.step()
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    _require(moved, "the optimiser step changed no weight")
    model.eval()


def store(result: Pruned, inputs: Inputs, folder: Path) -> None:
    """The recipe and the weights, and what the network makes of ``inputs``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(result.recipe.to_json())
    state = {key: tensor.clone().contiguous() for key, tensor in result.model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    with torch.no_grad():
        outputs = tensors_in(_call(result.model, inputs))
    data = {f"in{i}": t.clone() for i, t in enumerate(tensors_in(inputs))}
    data |= {f"out{i}": t.clone().contiguous() for i, t in enumerate(outputs)}
    save_file(data, folder / "data.safetensors")


def differs(name: str, folder: Path) -> str:
    """What is wrong with a freshly built base, cut by the stored recipe, on the stored weights; empty: nothing."""
    from safetensors.torch import load_file

    model = rebuild(Recipe.from_json((folder / "recipe.json").read_text()), lambda: build(name)).eval()
    state = model.state_dict()  # with the version that some networks ask for
    state.update(load_file(folder / "weights.safetensors"))
    model.load_state_dict(state)
    data = load_file(folder / "data.safetensors")
    inputs = tuple(data[key] for key in sorted(data) if key.startswith("in"))
    with torch.no_grad():
        outputs = tensors_in(_call(model, inputs))
    same = all(torch.equal(t, data[f"out{i}"]) for i, t in enumerate(outputs))
    return "" if same else "the network rebuilt in a fresh process differs"


def _onnx_error(result: Pruned, inputs: Inputs, quick: bool) -> float:
    """Largest difference between the ONNX file and the module, relative to the module's largest output."""
    model, image = Flat(result.model, inputs).eval(), image_of(inputs)
    height, width = result.input_size
    spec = InputSpec(image.shape[1], height, width, (0.0,) * image.shape[1], (1.0,) * image.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(model, spec, Path(folder) / "model.onnx", format="onnx", simplify=not quick)
        found = parity(Path(artifact.path), model, image.numpy())
    return found.max_abs / max(found.scale, 1e-12)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return (lines[0] if isinstance(error, MobilepruneError) else f"{type(error).__name__}: {lines[0]}")[:300]


def _row(name: str, scale: Scale, **found: Any) -> dict[str, Any]:
    asked = dict(zip(("depth", "width", "resolution"), scale.as_tuple(), strict=True))
    return {**dict.fromkeys(COLUMNS, ""), "network": name, **{k: f"{v:g}" for k, v in asked.items()}, **found}


def run_child(name: str) -> list[dict[str, Any]]:
    """The rows of one network, from a process of its own; those it did not come to are failures.

    A second process rebuilds what the first one stored.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines, why = _lines_of("--child", name, folder)
        rows = [json.loads(line) for line in lines]
        lines, broken = _lines_of("--fresh", name, folder)
        found = dict(json.loads(line) for line in lines)
        for number, row in enumerate(rows):
            wrong = found.get(str(number), broken)
            if row["status"] == "pass" and wrong:
                row.update(status="fail", note=wrong)
    return rows + [_row(name, scale, status="fail", note=why) for scale in SCALES[len(rows) :]]


def _lines_of(*arguments: str) -> tuple[list[str], str]:
    """What a child process of this script answers, and how it ended."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
        output, why = done.stdout, f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        why = f"not finished after {TIMEOUT_S:g} s"
    return [line[4:] for line in output.splitlines() if line.startswith("row ")], why


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    order = {name: i for i, name in enumerate(names())}
    ordered = sorted(rows, key=lambda row: order.get(row["network"], len(order)))
    write_rows(path, COLUMNS, ordered, [f"# python tools/zoo.py (torch {torch.__version__}, 1 thread)"])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    counts = {status: sum(row["status"] == status for row in rows) for status in ("pass", "lacks", "refused", "fail")}
    statuses: dict[str, set[str]] = {}
    for row in rows:
        statuses.setdefault(row["network"], set()).add(row["status"])
    everywhere = sum(found == {"pass"} for found in statuses.values())
    possible = sum(found <= {"pass", "lacks"} for found in statuses.values())
    return (
        f"{len(statuses)} networks: {everywhere} pass in all dimensions, {possible} in all that they have; "
        + ", ".join(f"{number} rows {status}" for status, number in counts.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a zoo and check every result.")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "zoo.csv")
    parser.add_argument("--only", nargs="*", default=[], help="networks whose name contains one of these")
    parser.add_argument("--again", nargs="*", default=[], help="run these anew though they are in the table")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no network after this time")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--fresh", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.child:
        for row in rows_of(asked.child[0], Path(asked.child[1])):
            print("row", json.dumps(row), flush=True)
        return
    if asked.fresh:
        for stored in sorted(Path(asked.fresh[1]).iterdir()):
            print("row", json.dumps([stored.name, differs(asked.fresh[0], stored)]), flush=True)
        return
    started = time.monotonic()
    for name in names():
        known = {row["network"] for row in read(asked.csv)}
        wanted = not asked.only or any(text in name for text in asked.only)
        if not wanted or (name in known and not any(text in name for text in asked.again)):
            continue
        if time.monotonic() - started > 60 * asked.minutes:
            print("out of time; run again to go on")
            break
        rows = run_child(name)
        write(asked.csv, [row for row in read(asked.csv) if row["network"] != name] + rows)
        print(f"{name}: {', '.join(row['status'] for row in rows)}", flush=True)
    print(summary(read(asked.csv)))


if __name__ == "__main__":
    main()
