"""One small model in every format that is served, written by hand where its own tools are not installed; and stand-ins for real
ones: LeNet in NumPy, from the weights in its TensorFlow graph.

The model: the mean of each channel of a picture, plus BIAS. (N, 3, SIZE, SIZE) or (N, SIZE, SIZE, 3) -> (N, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import openvino
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tests import tiny_models

SIZE = 8
BIAS = np.array([0.25, -0.5, 1.0], np.float32)
Array = NDArray[np.float32]


def means(pictures: Array, layout: str) -> Array:
    """What the model answers."""
    out: Array = pictures.mean(axis=(2, 3) if layout == "NCHW" else (1, 2), dtype=np.float64).astype(np.float32) + BIAS
    return out


# Protocol buffers, as far as graphs need them


def field(number: int, value: int | float | bytes | str) -> bytes:
    """One field of a message: an int as varint, a float as 32 bits, anything else with its length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value % 2**64)
    if isinstance(value, float):
        return varint(number << 3 | 5) + np.float32(value).tobytes()
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(number: int, values: Sequence[int | float | bytes | str]) -> bytes:
    return b"".join(field(number, value) for value in values)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def parsed(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: ints, and bytes for whatever has a length."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = number()
        size = {0: 0, 1: 8, 5: 4}.get(tag & 7)
        if size == 0:
            yield tag >> 3, number()
            continue
        size = number() if size is None else size
        yield tag >> 3, message[at : at + size]
        at += size


# TensorFlow: tensorflow/core/framework/{graph,node_def,attr_value,tensor,types}.proto, protobuf/{saved_model,meta_graph}.proto

FLOAT, INT32 = 1, 3


def _shape(sizes: Sequence[int]) -> bytes:
    return fields(2, [field(1, size) for size in sizes])


def _node(name: str, op: str, inputs: Sequence[str] = (), **attributes: bytes) -> bytes:
    attrs = [field(1, key) + field(2, value) for key, value in attributes.items()]
    return field(1, name) + field(2, op) + fields(3, inputs) + fields(5, attrs)


def _constant(name: str, values: NDArray[Any], kind: int) -> bytes:
    tensor = field(1, kind) + field(2, _shape(values.shape)) + field(4, values.tobytes())
    return _node(name, "Const", dtype=field(6, kind), value=field(8, tensor))


def graph_def() -> bytes:
    nodes = [
        _node("picture", "Placeholder", dtype=field(6, FLOAT), shape=field(7, _shape([-1, SIZE, SIZE, 3]))),
        _constant("axes", np.array([1, 2], np.int32), INT32),
        _constant("bias", BIAS, FLOAT),
        _node("mean", "Mean", ["picture", "axes"], T=field(6, FLOAT), Tidx=field(6, INT32), keep_dims=field(5, 0)),
        _node("scores", "AddV2", ["mean", "bias"], T=field(6, FLOAT)),
    ]
    return fields(1, nodes) + field(4, field(1, 1087))


def frozen_graph(folder: Path) -> Path:
    path = folder / "frozen_graph.pb"
    path.write_bytes(graph_def())
    return path


def saved_model(folder: Path) -> Path:
    def tensor(name: str, sizes: Sequence[int]) -> bytes:
        return field(1, name) + field(2, FLOAT) + field(3, _shape(sizes))

    inputs = field(1, "picture") + field(2, tensor("picture:0", [-1, SIZE, SIZE, 3]))
    outputs = field(1, "scores") + field(2, tensor("scores:0", [-1, 3]))
    signature = field(1, inputs) + field(2, outputs) + field(3, "tensorflow/serving/predict")
    served = field(1, "serving_default") + field(2, signature)
    graph = field(1, field(4, "serve")) + field(2, graph_def()) + field(5, served)
    (folder / "saved_model.pb").write_bytes(field(1, 1) + field(2, graph))
    return folder


# TensorFlow Lite: tensorflow/compiler/mlir/lite/schema/schema.fbs

MEAN, ADD, REDUCER_OPTIONS, ADD_OPTIONS, TFLITE_INT32 = 40, 0, 27, 11, 2


class _Flat:
    """Tables of a flatbuffer from their fields: (slot, kind, value), a vector or table by its offset."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def table(self, *slots: tuple[int, str, int]) -> int:
        self.builder.StartObject(1 + max((slot for slot, _, _ in slots), default=0))
        for slot, kind, value in slots:
            getattr(self.builder, f"Prepend{kind}Slot")(slot, value, 0)
        return int(self.builder.EndObject())

    def offsets(self, values: Sequence[int]) -> int:
        return self._vector(values, self.builder.PrependUOffsetTRelative)

    def ints(self, values: Sequence[int]) -> int:
        return self._vector(values, self.builder.PrependInt32)

    def _vector(self, values: Sequence[int], prepend: Callable[[int], None]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            prepend(value)
        return int(self.builder.EndVector())


def tflite(folder: Path) -> Path:
    flat = _Flat()
    data = [b"", np.array([1, 2], np.int32).tobytes(), BIAS.tobytes()]
    buffers = [
        flat.table((0, "UOffsetTRelative", flat.builder.CreateByteVector(one))) if one else flat.table() for one in data
    ]

    def tensor(name: str, shape: Sequence[int], buffer: int = 0, kind: int = 0) -> int:
        text, sizes = flat.builder.CreateString(name), flat.ints(shape)
        return flat.table(
            (0, "UOffsetTRelative", sizes), (1, "Int8", kind), (2, "Uint32", buffer), (3, "UOffsetTRelative", text)
        )

    def operator(index: int, inputs: Sequence[int], output: int, options: int) -> int:
        used, made, settings = flat.ints(inputs), flat.ints([output]), flat.table()
        return flat.table(
            (0, "Uint32", index),
            (1, "UOffsetTRelative", used),
            (2, "UOffsetTRelative", made),
            (3, "Uint8", options),
            (4, "UOffsetTRelative", settings),
        )

    tensors = [
        tensor("picture", [1, SIZE, SIZE, 3]),
        tensor("axes", [2], 1, TFLITE_INT32),
        tensor("mean", [1, 3]),
        tensor("bias", [3], 2),
        tensor("scores", [1, 3]),
    ]
    operators = flat.offsets([operator(0, [0, 1], 2, REDUCER_OPTIONS), operator(1, [2, 3], 4, ADD_OPTIONS)])
    vectors = flat.offsets(tensors), flat.ints([0]), flat.ints([4]), operators
    subgraph = flat.table(*((slot, "UOffsetTRelative", vector) for slot, vector in enumerate(vectors)))
    codes = flat.offsets([flat.table((0, "Int8", code), (2, "Int32", 1), (3, "Int32", code)) for code in (MEAN, ADD)])
    subgraphs, stored = flat.offsets([subgraph]), flat.offsets(buffers)
    model = flat.table(
        (0, "Uint32", 3),
        (1, "UOffsetTRelative", codes),
        (2, "UOffsetTRelative", subgraphs),
        (4, "UOffsetTRelative", stored),
    )
    flat.builder.Finish(model, file_identifier=b"TFL3")
    path = folder / "model.tflite"
    path.write_bytes(bytes(flat.builder.Output()))
    return path


# Paddle 2: paddle/fluid/framework/framework.proto

FP32, LOD_TENSOR, FEED_MINIBATCH, FETCH_LIST = 5, 7, 9, 10
ATTRIBUTE_KINDS = {
    "int": (0, 3),
    "ints": (3, 6),
    "bool": (6, 10),
}  # kind -> its number, and the field that has the value


def _variable(name: str, sizes: Sequence[int] | None, kind: int = LOD_TENSOR, *, persistable: bool = False) -> bytes:
    described = field(1, kind)
    if sizes is not None:
        described += field(3, field(1, field(1, FP32) + fields(2, list(sizes))))
    return field(1, name) + field(2, described) + field(3, int(persistable))


def _operator(kind: str, inputs: Mapping[str, str], outputs: Mapping[str, str], **attributes: tuple[str, Any]) -> bytes:
    used = [field(1, slot) + field(2, name) for slot, name in inputs.items()]
    made = [field(1, slot) + field(2, name) for slot, name in outputs.items()]
    attrs = []
    for name, (said, value) in attributes.items():
        number, place = ATTRIBUTE_KINDS[said]
        attrs.append(field(1, name) + field(2, number) + fields(place, value if said == "ints" else [int(value)]))
    return fields(1, used) + fields(2, made) + field(3, kind) + fields(4, attrs)


def pdiparams(*tensors: Array) -> bytes:
    """A file of weights: see `conversion/parameters.py`, which reads them."""
    out = b""
    for tensor in tensors:
        description = field(1, FP32) + fields(2, list(tensor.shape))
        out += bytes(16) + len(description).to_bytes(4, "little") + description + tensor.tobytes()
    return out


def paddle(folder: Path) -> Path:
    variables = [
        _variable("feed", None, FEED_MINIBATCH, persistable=True),
        _variable("fetch", None, FETCH_LIST, persistable=True),
        _variable("picture", [-1, 3, SIZE, SIZE]),
        _variable("mean", [-1, 3]),
        _variable("bias", [3], persistable=True),
        _variable("scores", [-1, 3]),
    ]
    mean = {"dim": ("ints", [2, 3]), "keep_dim": ("bool", False), "reduce_all": ("bool", False)}
    operators = [
        _operator("feed", {"X": "feed"}, {"Out": "picture"}, col=("int", 0)),
        _operator("reduce_mean", {"X": "picture"}, {"Out": "mean"}, **mean),
        _operator("elementwise_add", {"X": "mean", "Y": "bias"}, {"Out": "scores"}, axis=("int", -1)),
        _operator("fetch", {"X": "scores"}, {"Out": "fetch"}, col=("int", 0)),
    ]
    block = field(1, 0) + field(2, -1) + fields(3, variables) + fields(4, operators)
    (folder / "inference.pdmodel").write_bytes(field(1, block) + field(4, field(1, 2_000_000)))
    (folder / "inference.pdiparams").write_bytes(pdiparams(BIAS))
    return folder / "inference.pdmodel"


# ONNX and OpenVINO IR


def onnx(folder: Path) -> Path:
    graph = tiny_models.Graph()
    picture = graph.input("picture", ["batch", 3, SIZE, SIZE])
    mean = graph.add("ReduceMean", picture, axes=[2, 3], keepdims=0)
    graph.add("Add", mean, graph.constant(BIAS), output="scores")
    graph.output("scores", ["batch", 3])
    return graph.save(folder / "model.onnx")


def ir(folder: Path) -> Path:
    """Full precision, and tensors without names, as some exporters write them."""
    model = openvino.Core().read_model(onnx(folder))
    (folder / "model.onnx").unlink()
    for port in (*model.inputs, *model.outputs):
        port.get_tensor().set_names(set())
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


# Format -> who writes it, the layout of its pictures, and the names of its input and output.
FORMATS: dict[str, tuple[Callable[[Path], Path], str, tuple[str, str]]] = {
    "onnx": (onnx, "NCHW", ("picture", "scores")),
    "ir": (ir, "NCHW", ("input_0", "output_0")),
    "paddle": (paddle, "NCHW", ("picture", "scores")),
    "frozen_graph": (frozen_graph, "NHWC", ("picture:0", "scores:0")),
    "saved_model": (saved_model, "NHWC", ("picture", "scores")),
    "tflite": (tflite, "NHWC", ("picture", "scores")),
}


# LeNet


def constants(graph: bytes) -> dict[str, Array]:
    """The float constants of a GraphDef, by name."""
    found = {}
    for number, node in parsed(graph):
        if number != 1:
            continue
        parts = list(parsed(node))
        name = next(value.decode() for key, value in parts if key == 1)
        if (2, b"Const") not in parts:
            continue
        attributes = [dict(parsed(value)) for key, value in parts if key == 5]
        (tensor,) = (dict(parsed(one[2]))[8] for one in attributes if one[1] == b"value")
        content = dict(parsed(tensor))
        if content[1] == FLOAT and 4 in content:
            sizes = [dict(parsed(size)).get(1, 0) for key, size in parsed(content[2]) if key == 2]
            found[name] = np.frombuffer(content[4], np.float32).reshape(sizes)
    return found


def lenet(graph: bytes, pictures: Array) -> Array:
    """(N, 28, 28, 1) -> (N, 3): three convolutions of 5x5, two of them pooled, and two dense layers."""
    weights = constants(graph)
    x = pictures
    for index, name in enumerate(("input_tensor", "conv2d", "conv2d_1")):
        x = np.maximum(_convolved(x, weights[f"{name}/kernel"]) + weights[f"{name}/bias"], 0)
        if index < 2:
            n, height, width, channels = x.shape
            x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    x = x.reshape(len(x), -1)
    x = np.maximum(x @ weights["dense/kernel"] + weights["dense/bias"], 0)
    logits = x @ weights["output_tensor/kernel"] + weights["output_tensor/bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Array = powers / powers.sum(axis=1, keepdims=True)
    return out


def _convolved(x: Array, kernel: Array) -> Array:
    margin = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))  # (N, H, W, C, 5, 5)
    out: Array = np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True)
    return out
