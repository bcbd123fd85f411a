"""Runs exported files in the runtimes that devices use, behind one face: normalised NCHW images in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.files import shown
from exporters.quiet import without_info_lines

Array = NDArray[np.float32]


class Images(Protocol):
    """Normalised float32 images (N, C, H, W), an array or what makes the parts of one when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, some: slice, /) -> Array: ...


_CHUNK = 32  # images per run of a file whose batch is open


@dataclass(frozen=True)
class End:
    """What a file takes or gives: the type's name and, for integers, real = scale * (integer - zero_point)."""

    dtype: str = "float32"
    scale: float | None = None
    zero_point: int | None = None

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> End:
        """From LiteRT's details of a tensor."""
        dtype = np.dtype(details["dtype"])
        if dtype.kind == "f":
            return cls(dtype.name)
        scale, zero_point = details["quantization"]
        return cls(dtype.name, float(scale), int(zero_point))

    def from_real(self, values: Array) -> NDArray[Any]:
        """Real values as this end holds them, rounded to the nearest and clipped."""
        if self.scale is None or self.zero_point is None:
            return values
        limits = np.iinfo(self.dtype)
        whole = np.round(values / np.float32(self.scale)) + self.zero_point
        return np.clip(whole, limits.min, limits.max).astype(self.dtype)

    def to_real(self, held: NDArray[Any]) -> Array:
        if self.scale is None or self.zero_point is None:
            return np.asarray(held, dtype=np.float32)
        return (held.astype(np.float32) - self.zero_point) * np.float32(self.scale)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


class Runtime(ABC):
    """A loaded file.

    name: the runtime with its version.  image: (C, H, W) that it takes.  batch: images per run, None where it is open.
    taken, given: the types of its input and output; calls take and give float32 whatever they are.
    """

    name: str
    image: tuple[int, int, int]
    batch: int | None
    taken: End = End()
    given: End = End()

    @abstractmethod
    def _run(self, images: Array) -> Array:
        """One run on exactly `batch` images (any number where it is open), NCHW."""

    def __call__(self, images: Array) -> Array:
        """Logits (N, classes) of normalised float32 images (N, C, H, W), at whatever batch the file takes.

        Raises ExportError where the images have another size than the file's.
        """
        images = np.ascontiguousarray(images, dtype=np.float32)
        if images.ndim != 4 or images.shape[1:] != self.image or len(images) == 0:
            want = "x".join(map(str, self.image))
            raise ExportError(f"the file takes images of {want} (N, C, H, W), but was given an array of {images.shape}")
        step = self.batch or _CHUNK
        logits = []
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            lacking = 0 if self.batch is None else self.batch - len(chunk)
            if lacking:
                chunk = np.concatenate([chunk, np.zeros((lacking, *self.image), np.float32)])
            logits.append(self._run(chunk)[: step - lacking])
        return np.concatenate(logits)


# On x86-64 without VNNI, ONNX Runtime adds pairs of products of 8 bits in 16, which saturate: it costs four int8 files
# of MobileNetV1 1.8 to 4.1 points of top-1. With this setting sums are exact, as they are anyway on ARM and with VNNI,
# for a fifth to a third more time (results/exact_sums.csv). Latencies are measured with it, too (runners/worker.py).
EXACT_SUMS = "session.x64quantprecision"


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    def __init__(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self._session = self._opened(onnxruntime, model, options)
        taken = self._session.get_inputs()
        if len(taken) != 1 or len(taken[0].shape) != 4 or taken[0].type != "tensor(float)":
            raise ValueError("it does not take one float32 image tensor")
        batch, *image = taken[0].shape
        self.image = (int(image[0]), int(image[1]), int(image[2]))
        self.batch = batch if isinstance(batch, int) else None
        self._input = taken[0].name

    def _opened(self, onnxruntime: Any, model: bytes, options: Any) -> Any:
        options.add_session_config_entry(EXACT_SUMS, "1")
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception:  # not files of ours: 1.31 fails where layers share an int8 zero point
            self.name += ", int8 sums saturate"
            options.add_session_config_entry(EXACT_SUMS, "0")
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _run(self, images: Array) -> Array:
        return np.asarray(self._session.run(None, {self._input: images})[0], dtype=np.float32)


class LiteRuntime(Runtime):
    """LiteRT (the successor of TensorFlow Lite) with its XNNPACK kernels."""

    def __init__(self, model: bytes, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with without_info_lines():
            self.interpreter = Interpreter(model_content=model, num_threads=threads)
            self.interpreter.allocate_tensors()
        taken, given = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        if len(taken) != 1 or len(taken[0]["shape"]) != 4:
            raise ValueError("it does not take one image tensor")
        batch, height, width, channels = (int(side) for side in taken[0]["shape"])
        self.name = self.label()
        self.image = (channels, height, width)
        self.batch = batch
        self.taken, self.given = End.of(taken[0]), End.of(given[0])
        self._input, self._output = taken[0]["index"], given[0]["index"]

    @staticmethod
    def label() -> str:
        """The runtime's name with its version."""
        return f"litert {version('ai-edge-litert')}"

    def _run(self, images: Array) -> Array:
        self.interpreter.set_tensor(
            self._input, self.taken.from_real(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        )
        self.interpreter.invoke()
        return self.given.to_real(self.interpreter.get_tensor(self._output))


class ExecutorchRuntime(Runtime):
    """ExecuTorch's own interpreter of .pte files; the threads are its library's."""

    batch = 1

    def __init__(self, model: bytes, threads: int) -> None:
        with without_info_lines():
            from executorch.runtime import Runtime as Interpreter
            from executorch.runtime import Verification

            self._program = Interpreter.get().load_program(model, verification=Verification.InternalConsistency)
            self._method = self._program.load_method("forward")
        sizes = self._method.metadata.input_tensor_meta(0).sizes()
        self.name = f"executorch {version('executorch')}"
        self.image = (int(sizes[1]), int(sizes[2]), int(sizes[3]))

    def _run(self, images: Array) -> Array:
        import torch

        return np.asarray(self._method.execute((torch.from_numpy(images),))[0].numpy(), dtype=np.float32)


_BY_SUFFIX: dict[str, type[Runtime]] = {".onnx": OnnxRuntime, ".tflite": LiteRuntime, ".pte": ExecutorchRuntime}
_INSTALL = {
    ".onnx": "pip install onnxruntime",
    ".tflite": "pip install 'mobileprune[tflite]'",
    ".pte": "pip install 'mobileprune[executorch]'",
}


def open_runtime(path: Path, threads: int = 1) -> Runtime:
    """Load a file in the runtime of its format (.onnx, .tflite, .pte), with `threads` threads.

    Raises ExportError where the file is missing, damaged or of another kind, or its runtime is not installed.
    """
    path = Path(path)
    if path.suffix not in _BY_SUFFIX:
        raise ExportError(f"no runtime is known for {shown(path)}; its name must end in {' or '.join(_BY_SUFFIX)}")
    try:
        return _BY_SUFFIX[path.suffix](path.read_bytes(), threads)  # type: ignore[call-arg]
    except ImportError as error:
        raise ExportError(f"cannot run {shown(path)}: {error}; run: {_INSTALL[path.suffix]}") from error
    except OSError as error:
        raise ExportError(f"cannot read {shown(path)}: {(error.strerror or str(error)).lower()}") from error
    except Exception as error:  # the runtimes raise types of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"cannot load {shown(path)}: {reason}; export it again") from error
