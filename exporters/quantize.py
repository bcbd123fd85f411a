"""Integer files that keep the accuracy: the layers that lose most stay in float32, no more of them than needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.artifact import Artifact, InputSpec, sha256_of
from exporters.base import Options
from exporters.child import ChildError, shared_child
from exporters.errors import ExportError
from exporters.files import atomic, check_target, with_ending
from exporters.runtimes import Array
from exporters.writing import failed, save_images

if TYPE_CHECKING:
    from torch import nn

ALLOWED_DROP = 0.01  # fraction of accuracy that an integer file may lose
RANKING_IMAGES = 16
_MOST_KEPT = 0.5  # share of the layers that may stay in float32 before int8 has no point
_BACKENDS = {"tflite": "exporters.quantize_tflite", "onnx": "exporters.quantize_onnx"}


@dataclass(frozen=True)
class LayerLoss:
    """What the quantisation of one layer alone does: the mean squared error of the logits.

    name: as `Options.kept_float` takes it.  label: for people, with the module's path where it is known.
    """

    name: str
    label: str
    loss: float


@dataclass(frozen=True)
class Try:
    """One file: how many layers stayed in float32, its accuracy (fraction) and its size."""

    kept: int
    accuracy: float
    size_bytes: int


@dataclass(frozen=True)
class Quantized:
    """The file that was chosen. kept_float: labels of the layers in float32, worst first; losses: all, worst first."""

    artifact: Artifact
    accuracy: float
    float_accuracy: float
    allowed_drop: float
    kept_float: tuple[str, ...]
    losses: tuple[LayerLoss, ...]
    tries: tuple[Try, ...]

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The layers of `kept_float` as `Options.kept_float` takes them."""
        return tuple(layer.name for layer in self.losses[: len(self.kept_float)])

    @property
    def report(self) -> str:
        """What was done, in a sentence or two."""
        drop = (self.float_accuracy - self.accuracy) * 100
        first = f"{self.artifact.precision}: accuracy {self.accuracy:.2%}, {drop:+.2f} points lost against float32"
        if not self.kept_float:
            return first
        plain = (self.float_accuracy - self.tries[0].accuracy) * 100
        return (
            f"{first}. With every layer quantised {plain:.2f} points were lost ({self.allowed_drop * 100:g} allowed), "
            f"so {len(self.kept_float)} of {len(self.losses)} layers stay in float32: {'; '.join(self.kept_float)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For a manifest: without the artifact, which has its own place there; the five worst losses."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("artifact", "losses")}
        worst = [{"layer": layer.label, "loss": layer.loss} for layer in self.losses[:5]]
        return {**kept, "worst_layers": worst, "report": self.report}


def quantize_within(
    source: Artifact,
    path: Path,
    images: Array,
    evaluate: Callable[[Path], float],
    *,
    precision: str = "int8",
    allowed_drop: float = ALLOWED_DROP,
    module: nn.Module | None = None,
    timeout_s: float = 900.0,
    log: Path | None = None,
) -> Quantized:
    """Quantise the float32 artifact `source` (onnx, tflite) to `path` so that it loses at most `allowed_drop`.

    images: normalised training images (N, C, H, W) for the ranges of activations.  evaluate: accuracy (fraction) of a
    file on images that are not among them.  module: names the layers in the report.

    When the file with every layer quantised loses more, the layers are ranked by what each does to the logits alone,
    and the worst 1, 2, 4, ... stay in float32 until the accuracy holds; then as few of these as do. Raises ExportError
    where half the layers in float32 are not enough, naming the worst; the file with every layer quantised is then in
    `rejected/`.
    """
    work = _Work(source, path, images, evaluate, precision, timeout_s, log or with_ending(path, ".log"))
    wanted = evaluate(source.path) - allowed_drop
    with work:
        plain = work.attempt(())
        if plain >= wanted:
            return work.result((), (), wanted + allowed_drop, allowed_drop)
        losses = work.losses(module)
        kept = _fewest(lambda count: work.attempt([layer.name for layer in losses[:count]]) >= wanted, len(losses))
        if kept is None:
            worst = "; ".join(layer.label for layer in losses[:3])
            raise work.rejected(
                f"{source.format} in {precision} loses {(wanted + allowed_drop - plain) * 100:.1f} points of accuracy "
                f"({allowed_drop * 100:g} allowed), also with half of its layers in float32; worst: {worst}; "
                "use float16, allow more, or fine-tune with quantisation in the loop"
            )
        work.attempt([layer.name for layer in losses[:kept]])
        return work.result(losses[:kept], losses, wanted + allowed_drop, allowed_drop)


def _fewest(holds: Callable[[int], bool], layers: int) -> int | None:
    """The smallest count found for which `holds`: doubled until it does, then bisected; None above `_MOST_KEPT`."""
    most = max(1, int(layers * _MOST_KEPT))
    low, high = 0, 1
    while not holds(min(high, most)):
        if high >= most:
            return None
        low, high = high, high * 2
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class _Work:
    """The child and the files of one `quantize_within`."""

    def __init__(
        self,
        source: Artifact,
        path: Path,
        images: Array,
        evaluate: Callable[[Path], float],
        precision: str,
        timeout_s: float,
        log: Path,
    ) -> None:
        from exporters import exporter

        self._exporter = exporter(source.format)
        if source.format not in _BACKENDS or source.precision != "float32":
            raise ExportError(
                f"a {source.format} file in {source.precision} cannot be quantised; "
                f"give a float32 file of one of: {', '.join(_BACKENDS)}"
            )
        reason = self._exporter.missing() or self._exporter.refusal(Options(precision, calibration=images))
        if reason:
            raise ExportError(reason)
        check_target(path, self._exporter.suffix)
        self._source, self._path, self._evaluate, self._precision = source, path, evaluate, precision
        self._pictures, self._timeout_s, self._log = images, timeout_s, log
        self._tries: dict[tuple[str, ...], tuple[Try, bytes]] = {}
        self._last: tuple[str, ...] = ()

    def __enter__(self) -> _Work:
        self._folder = tempfile.TemporaryDirectory(prefix="mobileprune-")
        self._images = save_images(self._pictures, Path(self._folder.name, "images.npy"))
        self._few = save_images(self._pictures[:RANKING_IMAGES], Path(self._folder.name, "few.npy"))
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def _call(self, function: str, **arguments: Any) -> Any:
        name = f"{_BACKENDS[self._source.format]}:{function}"
        arguments |= {"source": str(self._source.path), "precision": self._precision}
        try:
            return shared_child().call(name, log=self._log, timeout_s=self._timeout_s, **arguments)
        except ChildError as error:
            raise failed(self._source.format, str(error), self._log) from error

    def attempt(self, kept: Sequence[str]) -> float:
        """The accuracy with the layers `kept` in float32."""
        key = self._last = tuple(kept)
        if key not in self._tries:
            made = Path(self._folder.name, f"try{len(self._tries)}{self._exporter.suffix}")
            self._call("quantize", made=str(made), images=self._images, kept_float=list(kept))
            data = made.read_bytes()
            self._tries[key] = (Try(len(key), float(self._evaluate(made)), len(data)), data)
        return self._tries[key][0].accuracy

    def losses(self, module: nn.Module | None) -> tuple[LayerLoss, ...]:
        found = self._call("layer_losses", images=self._few)
        paths = module_paths(found, _weighted(module, self._source.input) if module is not None else [])
        layers = [LayerLoss(f["name"], label(f, path), f["loss"]) for f, path in zip(found, paths, strict=True)]
        return tuple(sorted(layers, key=lambda layer: -layer.loss))

    def result(
        self, kept: Sequence[LayerLoss], losses: Sequence[LayerLoss], float_accuracy: float, allowed: float
    ) -> Quantized:
        """Put the last attempt's file at its final name."""
        chosen, data = self._tries[self._last]
        with atomic(self._path) as part:
            part.write_bytes(data)
            digest = sha256_of(part)
        source = self._source
        artifact = Artifact(
            self._path,
            source.format,
            self._precision,
            source.input,
            source.output_classes,
            digest,
            len(data),
            self._exporter.versions(),
        )
        tries = tuple(tried for tried, _ in self._tries.values())
        labels = tuple(layer.label for layer in kept)
        return Quantized(artifact, chosen.accuracy, float_accuracy, allowed, labels, tuple(losses), tries)

    def rejected(self, reason: str) -> ExportError:
        """Keep the file with every layer quantised aside; the error to raise."""
        from exporters.verify import reject

        _, data = self._tries[()]
        with atomic(self._path) as part:
            part.write_bytes(data)
        return reject(self._path, reason, {"tries": [asdict(tried) for tried, _ in self._tries.values()]})


def label(found: dict[str, Any], path: str) -> str:
    """A layer's operator, its weights' shape and its module's path."""
    shape = "x".join(map(str, found["shape"]))
    return " ".join(part for part in (found["operator"], shape, f"({path})" if path else "") if part)


def module_paths(found: Sequence[dict[str, Any]], weighted: Sequence[tuple[str, tuple[int, ...]]]) -> list[str]:
    """The path of the module that each operator of a file came from, "" where it is not known.

    Operators with weights come in the order in which the modules ran; weights may be transposed, so shapes are compared
    by their sorted sides. Where the counts or shapes differ nothing is named. An operator without weights is said to
    follow the last one with.
    """
    shaped = [sorted(side for side in f["shape"] if side > 1) for f in found if f["shape"]]
    if shaped != [sorted(side for side in shape if side > 1) for _, shape in weighted]:
        return ["" for _ in found]
    names = iter(weighted)
    paths, last = [], ""
    for f in found:
        if f["shape"]:
            last = next(names)[0]
        paths.append(last if f["shape"] else f"after {last}" if last else "")
    return paths


def _weighted(module: nn.Module, spec: InputSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Path and weight shape of each convolution and linear layer, in the order in which they run."""
    import torch
    from torch import nn

    from exporters.verify import torch_logits

    ran: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        part.register_forward_hook(lambda layer, *_, path=path: ran.append((path, tuple(layer.weight.shape))))
        for path, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    ]
    try:
        torch_logits(module, torch.zeros(1, spec.channels, spec.height, spec.width).numpy().astype(np.float32))
    finally:
        for hook in hooks:
            hook.remove()
    return ran
