"""TFLite Model Metadata: what MediaPipe Tasks and Android Studio read from inside a .tflite file.

The layout is the public schema `metadata_schema.fbs` (file identifier M001). Each `_SLOTS` entry is a field's place in
its table there. The label file lies in a ZIP archive appended to the model, as readers expect it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
import numpy as np

from exporters.artifact import InputSpec

LABELS = "labels.txt"
_NAME, _IDENTIFIER = "TFLITE_METADATA", b"M001"
_IMAGE_PROPERTIES, _FEATURE_PROPERTIES = 2, 1  # of the union ContentProperties
_NORMALIZATION = 1  # of the union ProcessUnitOptions
_TENSOR_AXIS_LABELS = 2
_RGB, _GRAYSCALE = 1, 2
_OLDEST_PARSER = "1.0.0"
_SLOTS = {
    "ModelMetadata": {"name": 0, "description": 1, "subgraphs": 3, "min_parser_version": 7},
    "SubGraphMetadata": {"inputs": 2, "outputs": 3},
    "TensorMetadata": {"name": 0, "description": 1, "content": 3, "process_units": 4, "stats": 5, "files": 6},
    "Content": {"properties_type": 0, "properties": 1},
    "ImageProperties": {"color_space": 0, "default_size": 1},
    "ImageSize": {"width": 0, "height": 1},
    "FeatureProperties": {},
    "ProcessUnit": {"options_type": 0, "options": 1},
    "NormalizationOptions": {"mean": 0, "std": 1},
    "Stats": {"max": 0, "min": 1},
    "AssociatedFile": {"name": 0, "description": 1, "type": 2},
}


class _Writer:
    """Builds tables from the leaves up, as FlatBuffers wants it."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> tuple[str, int]:
        return "offset", self.builder.CreateString(value)

    def numbers(self, values: Sequence[float]) -> tuple[str, int]:
        return "offset", self._vector(4, values, self.builder.PrependFloat32)

    def tables(self, *tables: tuple[str, int]) -> tuple[str, int]:
        return "offset", self._vector(4, [place for _, place in tables], self.builder.PrependUOffsetTRelative)

    def _vector(self, size: int, values: Sequence[Any], prepend: Callable[[Any], None]) -> int:
        self.builder.StartVector(size, len(values), size)
        for value in reversed(values):
            prepend(value)
        return int(self.builder.EndVector())

    def table(self, kind: str, **fields: tuple[str, int]) -> tuple[str, int]:
        """A table of the schema; each field is what another method gave, or ("byte" or "uint", value)."""
        slots = _SLOTS[kind]
        self.builder.StartObject(max(slots.values(), default=-1) + 1)
        for name, (sort, value) in fields.items():
            add = {
                "offset": self.builder.PrependUOffsetTRelativeSlot,
                "byte": self.builder.PrependInt8Slot,
                "uint": self.builder.PrependUint32Slot,
            }[sort]
            add(slots[name], value, 0)
        return "offset", int(self.builder.EndObject())


def metadata(spec: InputSpec, name: str, description: str, input_description: str) -> bytes:
    """The metadata of an image classifier that takes RGB (or grey) pixels normalised as `spec` says."""
    writer = _Writer()
    size = writer.table("ImageSize", width=("uint", spec.width), height=("uint", spec.height))
    space = ("byte", _GRAYSCALE if spec.channels == 1 else _RGB)
    image = writer.table("ImageProperties", color_space=space, default_size=size)
    content = writer.table("Content", properties_type=("byte", _IMAGE_PROPERTIES), properties=image)
    # Readers subtract and divide pixels in [0, 255].
    mean, std = [255 * value for value in spec.mean], [255 * value for value in spec.std]
    options = writer.table("NormalizationOptions", mean=writer.numbers(mean), std=writer.numbers(std))
    unit = writer.table("ProcessUnit", options_type=("byte", _NORMALIZATION), options=options)
    low = [-m / s for m, s in zip(spec.mean, spec.std, strict=True)]
    high = [(1 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
    stats = writer.table("Stats", max=writer.numbers(high), min=writer.numbers(low))
    taken = writer.table(
        "TensorMetadata",
        name=writer.text("image"),
        description=writer.text(input_description),
        content=content,
        process_units=writer.tables(unit),
        stats=stats,
    )
    given = writer.table(
        "TensorMetadata",
        name=writer.text("logits"),
        description=writer.text("one logit per class; softmax makes probabilities of them"),
        content=writer.table(
            "Content", properties_type=("byte", _FEATURE_PROPERTIES), properties=writer.table("FeatureProperties")
        ),
        files=writer.tables(_labels_file(writer)),
    )
    subgraph = writer.table("SubGraphMetadata", inputs=writer.tables(taken), outputs=writer.tables(given))
    _, root = writer.table(
        "ModelMetadata",
        name=writer.text(name),
        description=writer.text(description),
        subgraphs=writer.tables(subgraph),
        min_parser_version=writer.text(_OLDEST_PARSER),
    )
    writer.builder.Finish(root, _IDENTIFIER)
    return bytes(writer.builder.Output())


def _labels_file(writer: _Writer) -> tuple[str, int]:
    return writer.table(
        "AssociatedFile",
        name=writer.text(LABELS),
        description=writer.text("one class per line, in the order of the logits"),
        type=("byte", _TENSOR_AXIS_LABELS),
    )


def embed(model: bytes, content: bytes, labels: bytes) -> bytes:
    """The .tflite file `model` with the metadata `content` and the label file inside; old metadata is replaced."""
    from ai_edge_litert import schema_py_generated as schema

    graph = unpacked(schema, model)
    graph.metadata = [entry for entry in graph.metadata or [] if entry.name not in (_NAME, _NAME.encode())]
    held = schema.BufferT()
    held.data = list(content)
    graph.buffers.append(held)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _NAME, len(graph.buffers) - 1
    graph.metadata.append(entry)
    return packed(graph, len(model)) + _archive(labels)


def normalising(model: bytes, spec: InputSpec) -> bytes:
    """The .tflite file `model`, which takes float32, with (x - mean) / std as its first two operators.

    Its input is then pixels in [0, 1]. The mean cannot be folded into the first convolution: its padding is zero after
    the normalisation, not before.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = unpacked(schema, model)
    (subgraph,) = graph.subgraphs
    old = int(subgraph.inputs[0])
    std = np.array(spec.std, np.float32)
    pixels = _tensor(schema, graph, "pixels", subgraph.tensors[old].shape)
    scaled = _tensor(schema, graph, "scaled", subgraph.tensors[old].shape)
    scale = _tensor(schema, graph, "scale", [1, 1, 1, spec.channels], 1 / std)
    shift = _tensor(schema, graph, "shift", [1, 1, 1, spec.channels], -np.array(spec.mean, np.float32) / std)
    kinds = schema.BuiltinOperator
    multiply = _operator(schema, graph, kinds.MUL, (pixels, scale), scaled, schema.MulOptionsT())
    add = _operator(schema, graph, kinds.ADD, (scaled, shift), old, schema.AddOptionsT())
    subgraph.operators = [multiply, add, *subgraph.operators]
    subgraph.inputs = [pixels]
    for signature in graph.signatureDefs or []:
        for end in signature.inputs:
            end.tensorIndex = pixels
    return packed(graph, len(model))


def _tensor(schema: Any, graph: Any, name: str, shape: Sequence[int], values: Any = None) -> int:
    """Add a float32 tensor, constant where it has values; its index."""
    (subgraph,) = graph.subgraphs
    held = schema.BufferT()
    if values is not None:
        held.data = list(np.asarray(values, np.float32).tobytes())
    graph.buffers.append(held)
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = f"normalise/{name}", list(shape), schema.TensorType.FLOAT32
    tensor.buffer = len(graph.buffers) - 1
    subgraph.tensors.append(tensor)
    return len(subgraph.tensors) - 1


def _operator(schema: Any, graph: Any, kind: int, inputs: tuple[int, int], output: int, options: Any) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 1
    graph.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(graph.operatorCodes) - 1
    operator.inputs, operator.outputs = list(inputs), [output]
    operator.builtinOptions = options
    names = schema.BuiltinOptions
    operator.builtinOptionsType = names.MulOptions if kind == schema.BuiltinOperator.MUL else names.AddOptions
    return operator


def unpacked(schema: Any, model: bytes) -> Any:
    """The file as objects, with all weights in them: a quantised file keeps some behind the flatbuffer, by offset."""
    graph = schema.ModelT.InitFromPackedBuf(model, 0)
    for held in graph.buffers:
        if held.offset:
            held.data = np.frombuffer(model, np.uint8, held.size, held.offset)
            held.offset = held.size = 0
    return graph


def packed(graph: Any, size: int) -> bytes:
    builder = flatbuffers.Builder(size + 4096)
    builder.Finish(graph.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _archive(labels: bytes) -> bytes:
    """A ZIP archive without the clock in it, so that the same labels give the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS, date_time=(1980, 1, 1, 0, 0, 0)), labels)
    return file.getvalue()
