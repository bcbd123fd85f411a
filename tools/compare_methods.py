"""mobileprune against what people would use instead, at equal measured latency and with equal fine-tuning.

    .venv/bin/python tools/compare_methods.py cifar10-resnet20 --images 20000 --speedups 2 3 5 --csv results/methods.csv

Every method starts from the same fine-tuned base and gets the same epochs of the same recipe for its final network.
Where mobileprune has probes, a rival has a line of networks (tools/rivals.py): all of them are measured beside the base
in interleaved rounds and the largest that keeps the latency is taken (tools/timed_lines.py). Those of --extra are also
given mobileprune's probe cost as further epochs. The finals are exported to ONNX and TFLite in the setting's precision
and measured in one session, one thread; choices are made on the validation split, the figure is top-1 on the test
split, for int8 that of the TFLite file. Killed, the same command goes on; the rows of other settings and seeds stay in
the table.

--images is for machines that are too slow for a whole set: so many training images, drawn by the seed, and others to
choose on (5,000, of photographs half as many); the test split stays whole.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rivals import LINES, Candidate, lines
from subsets import fewer
from tables import Table
from timed_lines import Ledger, first_within

import exporters
from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from exporters import verify
from mobileprune.api import optimize
from mobileprune.borrow import borrow
from mobileprune.commands.common import context_of
from mobileprune.errors import UsageError
from mobileprune.pruning.cost import count
from mobileprune.request import Request, open_or_create
from mobileprune.run import Run, locked
from mobileprune.scale import Scale
from mobileprune.stages.context import Context
from mobileprune.stages.files import Images, Job
from mobileprune.stages.problem import Problem
from mobileprune.stages.prune import restore
from mobileprune.stages.records import base_latency_ms, scale_key
from mobileprune.stages.solve import chosen_scale, current_budgets
from mobileprune.stages.train import forget, scores, train, training_data

SHARED = Path(__file__).resolve().parents[2] / "shared"
SETTINGS: dict[str, dict[str, Any]] = {
    "cifar10-resnet20": {
        "model": f"{SHARED}/models/resnet_cifar.py:resnet20",
        "checkpoint": SHARED / "data/checkpoints/resnet20-12fca82f.th",
        "data": f"{SHARED}/data/cifar10_jpeg.npz",
        "batch_size": 128,
    },
    "cifar10-resnet56": {
        "model": f"{SHARED}/models/resnet_cifar.py:resnet56",
        "checkpoint": SHARED / "data/checkpoints/resnet56-4bfd9763.th",
        "data": f"{SHARED}/data/cifar10_jpeg.npz",
        "batch_size": 128,
    },
    "imagenette-mobilenetv1": {
        "model": f"{SHARED}/models/mobilenet_v1.py:mobilenet_v1",
        "model_arguments": ("width=0.75", f"checkpoint={SHARED}/data/checkpoints/mobilenet_v1_075_224_keras.npz"),
        "data": f"{SHARED}/data/imagenette160.tar",
        "image_size": 160,
        "batch_size": 64,
    },
    "imagenette-regnetx": {  # from random weights: give it epochs of the base
        "model": "timm:regnetx_002",
        "data": f"{SHARED}/data/imagenette160.tar",
        "image_size": 128,
        "batch_size": 64,
        "learning_rate": 0.1,
    },
}
SETTINGS["imagenette-mobilenetv1-int8"] = {**SETTINGS["imagenette-mobilenetv1"], "precision": "int8"}
COLUMNS = (
    "setting", "seed", "method", "target_speedup", "label", "epochs", "probe_epochs", "macs", "params",
    "validation_top1", "test_top1", "predicted_validation_top1", "expected_validation_top1", "onnx_ms", "onnx_spread",
    "onnx_speedup", "tflite_ms", "tflite_spread", "tflite_speedup", "schedule", "wall_s",
)  # fmt: skip
_SAME_SPEED = 0.1  # by what the base's latency may differ between the search and the last session
_WAITS = 15
_EXTRA_HELP = "RIVAL@SPEEDUP that is also trained for as many more epochs as the probes took"


def probe_epochs(ctx: Context) -> float:
    """What all probes cost, in epochs of the images that a final network is trained on."""
    share = len(training_data(ctx, "probe").train) / len(ctx.data.train)
    return share * ctx.schedule("probe").epochs * len(ctx.run.journal.all("probe"))


def written(ctx: Context, model: Any, size: int, stem: Path, validation: float) -> dict[str, str]:
    """The network as ONNX and TFLite files. validation: its accuracy as a module, a fraction.

    A file that differs too much from the module would not be handed out; here it is judged by what it answers itself.
    """
    images = Images(ctx.view_at(size), ctx.data.train, ctx.data.validation, ctx.seed)
    job = Job(model, images, ctx.precision, validation)
    files = {}
    for name in ("onnx", "tflite"):
        path = stem.with_name(f"{stem.name}.{name}")
        try:
            files[name] = str(job.write(path, name).artifact.path)
        except exporters.ExportError as error:
            rejected = path.parent / "rejected" / path.name
            if not rejected.exists():
                raise
            print(f"  {error}")
            files[name] = str(rejected)
    return files


def test_top1(ctx: Context, entry: dict[str, Any], tflite: Path, size: int) -> float:
    """Accuracy on the test split: of the module, or of an integer file itself, which computes something else."""
    if ctx.precision == "float32":
        return float(entry["test"]["accuracy"])
    assert ctx.data.test is not None
    images = ctx.view_at(size)(ctx.data.test.images).contiguous().numpy()
    return verify.accuracy(tflite, images, ctx.data.test.labels.numpy())


def rival(
    ctx: Context, ledger: Ledger, name: str, line: str, candidates: Sequence[Candidate], speedup: float, more: float
) -> None:
    """Fine-tune the rival's network for one speed-up and write its files. more: times the epochs of others."""
    key = f"final {name} {speedup:g}x"
    chosen = first_within(ctx, ledger, line, candidates, speedup)
    if chosen is None:
        found = ledger.done[f"line {line}"]
        label = f"not reached: {1 / min(found['shares']):.2f}x at the most"
        label += f"; {found['broken']} of {len(candidates)} networks do not run" if found.get("broken") else ""
        ledger.add(key, method=name, speedup=speedup, reached=False, label=label)
        return
    if ledger.has(key, chosen.label):
        return
    began = time.monotonic()
    model, size = chosen.start()
    epochs = round(ctx.schedule("result").epochs * more)
    stem = ctx.folder("finals") / key.replace(" ", "-").replace(",", "").replace("=", "")
    train(ctx, model, ctx.view_at(size), "result", stem.name, distill=True, epochs=epochs)
    scored = scores(ctx, model, ctx.view_at(size))
    cost = count(model.eval(), ctx.example[:1, :, :size, :size])
    entry = {"label": chosen.label, "epochs": epochs, "macs": cost.macs, "params": cost.params}
    files = written(ctx, model, size, stem, scored["validation"]["accuracy"])
    entry |= {"test_top1": test_top1(ctx, scored, Path(files["tflite"]), size), **scored, "files": files}
    ledger.add(key, method=name, speedup=speedup, reached=True, wall_s=time.monotonic() - began, **entry)
    forget(ctx, stem.name)


def answered_in(run: Run) -> float:
    """Seconds from the last question, or from the base where that was trained for it, to the report of its answer.

    Probes, networks timed, fine-tuning, files and their check; with its pauses where the run was killed.
    """
    entries = run.journal.entries
    begun = max(i for i, entry in enumerate(entries) if entry["kind"] == "question")
    trained = max(i for i, entry in enumerate(entries) if (entry["kind"], entry["key"]) == ("base", "score"))
    reported = next(entry for entry in entries[begun:] if entry["kind"] == "report")
    return float(reported["time"] - entries[max(begun, trained)]["time"])


def ours(ctx: Context, ledger: Ledger, speedup: float) -> None:
    """mobileprune's own answer for one speed-up; its probes are shared by all of them."""
    key, scale = f"final mobileprune {speedup:g}x", chosen_scale(ctx.run)
    if ledger.has(key, str(scale)):
        return
    folder = ctx.run.path / "results" / scale_key(scale)
    network = restore(ctx, folder, "weights")
    entry = ctx.run.journal.get("finetuned", scale_key(scale))
    assert entry is not None
    cost = count(network.model.eval(), ctx.example[:1, :, : network.size, : network.size])
    files = {name: str(folder / "artifacts" / f"model.{name}") for name in ("onnx", "tflite")}
    ledger.add(
        key,
        wall_s=answered_in(ctx.run),
        method="mobileprune",
        speedup=speedup,
        reached=True,
        label=str(scale),
        scale=scale.as_tuple(),
        epochs=ctx.schedule("result").epochs,
        probe_epochs=round(probe_epochs(ctx), 2),
        macs=cost.macs,
        params=cost.params,
        validation=entry["validation"],
        test=entry["test"],
        test_top1=test_top1(ctx, entry, Path(files["tflite"]), network.size),
        files=files,
    )


def settled(ctx: Context) -> None:
    """Wait, for some minutes at most, until the base takes what it took when the scales were chosen.

    Where a machine runs at another speed for a while, small networks gain and lose other shares of it than their base.
    """
    path = ctx.run.path / "base" / "artifacts" / "model.onnx"
    wanted = base_latency_ms(ctx.run)
    for _ in range(_WAITS):
        now = benchmark(open_device("host"), {"base": path}, rounds=5, min_seconds=0.25, threads=1)
        took = now.measurements["base"].latency_ms
        if abs(took / wanted - 1.0) <= _SAME_SPEED:
            return
        time.sleep(20)
    print(f"  measured though the base takes {took:.4g} ms, {wanted:.4g} ms when the last scale was chosen")


def measured_together(ctx: Context, finals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All finals and the base in one session, by file.

    25 rounds: where a clock changes between two speeds every few seconds, the median of 9 is of one or of the other.
    """
    settled(ctx)
    files = {f"base.{n}": ctx.run.path / "base" / "artifacts" / f"model.{n}" for n in ("onnx", "tflite")}
    for entry in finals:
        files |= {f"{entry['key']}.{n}": Path(path) for n, path in entry["files"].items()}
    return benchmark(open_device("host"), files, rounds=25, min_seconds=0.25, threads=1).measurements


def rows(ctx: Context, setting: str, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """The table of one setting and seed: the base, then every final; speed-ups that a rival cannot reach are said."""
    finals = [e for e in ledger.done.values() if e["key"].startswith("final ")]
    reached = [e for e in finals if e["reached"]]
    measured = measured_together(ctx, reached)
    base = ctx.run.journal.get("base", "score")
    assert base is not None
    tflite = ctx.run.path / "base" / "artifacts" / "model.tflite"
    entry = {**base, "key": "base", "method": "base", "speedup": 1.0, "label": "", "epochs": 0}
    entry["test_top1"] = test_top1(ctx, base, tflite, ctx.data.size)
    same = {"setting": setting, "seed": ctx.seed, "schedule": schedule_of(ctx)}
    for e in [entry, *reached]:
        row = dict.fromkeys(COLUMNS, "") | same | {"method": e["method"], "target_speedup": e["speedup"]}
        row |= {name: e.get(name, "") for name in ("label", "epochs", "probe_epochs", "macs", "params")}
        row |= {"validation_top1": f"{e['validation']['accuracy']:.4f}", "test_top1": f"{e['test_top1']:.4f}"}
        if e["method"] == "mobileprune":
            row |= foretold(ctx, Scale(*e["scale"]))
        for name in ("onnx", "tflite"):
            now, before = measured[f"{e['key']}.{name}"], measured[f"base.{name}"]
            row |= {f"{name}_ms": f"{now.latency_ms:.4f}", f"{name}_spread": f"{now.spread:.4f}"}
            row[f"{name}_speedup"] = f"{1 / now.share_of(before)[0]:.3f}"
        yield row | {"wall_s": f"{e['wall_s']:.0f}" if "wall_s" in e else ""}
    for e in finals:
        if not e["reached"]:
            named = {"method": e["method"], "target_speedup": e["speedup"], "label": e["label"]}
            yield dict.fromkeys(COLUMNS, "") | same | named


def foretold(ctx: Context, scale: Scale) -> dict[str, str]:
    """What the journal, as it was before a result of mobileprune was trained, said of its accuracy."""
    run = Run.open(ctx.run.path)
    entries = run.journal.entries
    trained = next(i for i, e in enumerate(entries) if (e["kind"], e["key"]) == ("finetuned", scale_key(scale)))
    del entries[trained:]
    problem = Problem(run, current_budgets(run))
    found = {"predicted": problem.accuracy.estimate([scale])[0][0], "expected": problem.expected(scale)[0]}
    return {f"{word}_validation_top1": f"{value:.4f}" for word, value in found.items()}


def schedule_of(ctx: Context) -> str:
    """Epochs of base, probes and results, and the training images, in words."""
    epochs = " + ".join(f"{ctx.schedule(what).epochs} {what}" for what in ("base", "probe", "result"))
    return f"{epochs} epochs of {len(ctx.data.train)} images"


def compare(setting: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Everything for one setting and one seed; finished parts are kept in its run folder."""
    path = arguments.runs / f"{setting}-seed{seed}"
    asked = {**SETTINGS[setting], "seed": seed, "device": "host"}
    asked |= {
        name: getattr(arguments, name) for name in ("probes", "probe_images", "base_epochs", "probe_epochs", "epochs")
    }
    if arguments.images:
        asked["data"] = str(fewer(Path(asked["data"]), arguments.runs, arguments.images, seed))
    with locked(path):
        run = open_or_create(path, Request(**asked))
        if arguments.base_from:
            borrow(run, Run.open(arguments.base_from))
    ledger = Ledger(path / "comparison.jsonl")
    if context_of(run).data.test is None:
        raise SystemExit(f"{asked['data']} has no test split: give --images, which makes one")
    for speedup in sorted(arguments.speedups, reverse=True):  # the probes of the hardest serve the others, too
        try:
            optimize(run=path, budget=f"{100 / speedup:.6g}%")
        except UsageError as error:
            label = f"not reached: {error}"
            ledger.add(
                f"final mobileprune {speedup:g}x", method="mobileprune", speedup=speedup, reached=False, label=label
            )
            continue
        ours(context_of(Run.open(path)), ledger, speedup)
    ctx = context_of(Run.open(path))
    extra_lines = [line for line, _ in arguments.extra if arguments.rivals and line not in arguments.rivals]
    candidates = lines(ctx, [*arguments.rivals, *dict.fromkeys(extra_lines)])
    for speedup in arguments.speedups:
        for line in arguments.rivals or candidates:
            rival(ctx, ledger, line, line, candidates[line], speedup, 1.0)
    more = 1.0 + probe_epochs(ctx) / ctx.schedule("result").epochs
    for line, speedup in arguments.extra:
        rival(ctx, ledger, f"{line}, with the probes' epochs too", line, candidates[line], speedup, more)
    return list(rows(ctx, setting, ledger))


def extra(text: str) -> tuple[str, float]:
    """RIVAL@SPEEDUP of the command line."""
    line, _, speedup = text.rpartition("@")
    if line not in LINES:
        raise argparse.ArgumentTypeError(f"{text!r} is not RIVAL@SPEEDUP with a rival of {', '.join(LINES)}")
    return line, float(speedup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--speedups", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=0, help="training images; all unless given")
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--probe-images", type=int, default=0, help="of every probe; all unless given")
    parser.add_argument("--base-from", type=Path, help="a run in another precision whose base and probes are used")
    parser.add_argument("--base-epochs", type=int, default=3)
    parser.add_argument("--probe-epochs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rivals", nargs="*", choices=LINES, default=[], help="all unless given")
    parser.add_argument("--extra", nargs="*", type=extra, default=[], help=_EXTRA_HELP)
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--csv", type=Path, required=True)
    arguments = parser.parse_args()
    table = Table(
        arguments.csv, COLUMNS, ("setting", "seed", "method", "target_speedup"), f"python {' '.join(sys.argv)}"
    )
    for seed in arguments.seeds:
        for row in compare(arguments.setting, seed, arguments):
            table.add(row)


if __name__ == "__main__":
    main()
