"""Small ONNX files with the tensor layouts of real exports, made by the tests themselves: random weights, real graphs.

What they find in a picture means nothing, but depends on it: a few strided convolutions stand in for a backbone, so that
scores and boxes vary from cell to cell and from picture to picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Batch = int | str  # a str is the name of a dynamic dimension
SIZE = 64  # of all pictures, unless a builder is told otherwise
STRIDE = 8
PICODET_STRIDES = (8, 16, 32, 64)
BINS = 8


class Graph:
    """Collects nodes and constants; `save` writes a checked file."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node; its first output's name, made up unless given."""
        name = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int, spread: float = 1.0) -> str:
        return self.constant(self.random.normal(0, spread, shape))

    def input(self, name: str, shape: Sequence[Batch | None], kind: int = TensorProto.FLOAT) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, shape: Sequence[Batch | None], kind: int = TensorProto.FLOAT) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def patches(self, picture: str, channels: int, stride: int, spread: float = 1.0, inputs: int = 3) -> str:
        """(N, `inputs`, H, W) -> (N, `channels`, H / stride, W / stride)."""
        weights = self.weights(channels, inputs, stride, stride, spread=spread / stride)
        biases = self.weights(channels, spread=0.5)
        return self.add("Conv", picture, weights, biases, kernel_shape=[stride] * 2, strides=[stride] * 2)

    def rows(self, features: str, channels: int, *, output: str | None = None) -> str:
        """(N, channels, h, w) -> (N, h * w, channels)."""
        flat = self.add("Reshape", features, self.constant([0, channels, -1], np.int64))
        return self.add("Transpose", flat, output=output, perm=[0, 2, 1])

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
        graph = helper.make_graph(self._nodes, "tiny", self._inputs, self._outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        helper.set_model_props(model, dict(metadata or {}))
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(path))
        return path


def yolov5(
    path: Path,
    *,
    classes: int = 3,
    batch: Batch = "batch",
    size: int = SIZE,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Output (N, anchors, 5 + classes): centre x, y, width, height, objectness, class scores, after sigmoid."""
    graph = Graph(seed)
    features = graph.patches(graph.input("images", [batch, 3, size, size]), 5 + classes, STRIDE, spread=2.0)
    rows = graph.add("Sigmoid", graph.rows(features, 5 + classes))
    boxes = _boxes(graph, rows, size, axis=2)
    scores = graph.add("Slice", rows, *(graph.constant([v], np.int64) for v in (4, 5 + classes, 2)))
    graph.add("Concat", boxes, scores, output="output0", axis=2)
    graph.output("output0", [batch, (size // STRIDE) ** 2, 5 + classes])
    return graph.save(path, metadata)


def yolov8(
    path: Path,
    *,
    classes: int = 3,
    batch: Batch = "batch",
    size: int = SIZE,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Output (N, 4 + classes, anchors): centre x, y, width, height, class scores, after sigmoid."""
    graph = Graph(seed)
    features = graph.patches(graph.input("images", [batch, 3, size, size]), 4 + classes, STRIDE, spread=2.0)
    rows = graph.add("Sigmoid", graph.rows(features, 4 + classes))
    boxes = _boxes(graph, rows, size, axis=2)
    scores = graph.add("Slice", rows, *(graph.constant([v], np.int64) for v in (4, 4 + classes, 2)))
    joined = graph.add("Concat", boxes, scores, axis=2)
    graph.add("Transpose", joined, output="output0", perm=[0, 2, 1])
    graph.output("output0", [batch, 4 + classes, (size // STRIDE) ** 2])
    return graph.save(path, metadata)


def _boxes(graph: Graph, rows: str, size: int, axis: int) -> str:
    """The first four values of each row as centre and size in pixels: up to a cell beside its own, 4 to 52 wide."""
    cells = size // STRIDE
    y, x = (part.ravel() for part in np.mgrid[:cells, :cells])
    grid = np.stack([x * STRIDE - 4, y * STRIDE - 4, np.full_like(x, 4), np.full_like(x, 4)], axis=1)[None]
    first = graph.add("Slice", rows, *(graph.constant([v], np.int64) for v in (0, 4, axis)))
    scaled = graph.add("Mul", first, graph.constant([[[16, 16, 48, 48]]]))
    return graph.add("Add", scaled, graph.constant(grid))


def picodet(
    path: Path, *, classes: int = 3, batch: Batch = "batch", size: int = SIZE, seed: int = 0, shift: float = -1.0
) -> Path:
    """Four score outputs (N, anchors, classes), then four of side distributions (N, anchors, 4 * BINS)."""
    graph = Graph(seed)
    picture = graph.input("image", [batch, 3, size, size])
    for stride in PICODET_STRIDES:
        features = graph.rows(graph.patches(picture, classes, stride, spread=1.5), classes)
        graph.add("Sigmoid", graph.add("Add", features, graph.constant([shift])), output=f"scores_{stride}")
        graph.output(f"scores_{stride}", [batch, (size // stride) ** 2, classes])
    for stride in PICODET_STRIDES:
        graph.rows(graph.patches(picture, 4 * BINS, stride), 4 * BINS, output=f"sides_{stride}")
        graph.output(f"sides_{stride}", [batch, (size // stride) ** 2, 4 * BINS])
    return graph.save(path)


def classifier(
    path: Path,
    *,
    classes: int = 5,
    batch: Batch = "batch",
    size: int | None = 32,
    layout: str = "NCHW",
    channels: int = 3,
    softmax: bool = False,
    kind: int = TensorProto.FLOAT,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Output `logits` (N, classes), or probabilities with `softmax`. `size` None: any; `kind`: the input's type."""
    graph = Graph(seed)
    sides: list[Batch] = [size, size] if size else ["height", "width"]
    shape = [batch, channels, *sides] if layout == "NCHW" else [batch, *sides, channels]
    picture = graph.input("x", shape, kind)
    if kind != TensorProto.FLOAT:
        picture = graph.add("Cast", picture, to=TensorProto.FLOAT)
    if layout == "NHWC":
        picture = graph.add("Transpose", picture, perm=[0, 3, 1, 2])
    features = graph.add("Relu", graph.patches(picture, 16, 8, spread=2.0, inputs=channels))
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", features))
    last = None if softmax else "logits"
    logits = graph.add("Gemm", pooled, graph.weights(16, classes), graph.weights(classes), output=last)
    if softmax:
        graph.add("Softmax", logits, output="logits", axis=1)
    graph.output("logits", [batch, classes])
    return graph.save(path, metadata)


def paddle_detector(path: Path, *, classes: int = 3, batch: Batch = "batch", size: int = SIZE, seed: int = 0) -> Path:
    """As PaddleDetection exports: NMS inside; `rows` (M, 6) of class, score, corners in original pixels, and `counts`."""
    graph = Graph(seed)
    picture = graph.input("image", [batch, 3, size, size])
    scale_factor = graph.input("scale_factor", [batch, 2])  # y, x
    features = graph.patches(picture, 4 + classes, STRIDE, spread=2.0)
    rows = graph.add("Sigmoid", graph.rows(features, 4 + classes))
    centres = _boxes(graph, rows, size, axis=2)
    middle, sides = (
        graph.add("Slice", centres, *(graph.constant([v], np.int64) for v in (*ends, 2))) for ends in ((0, 2), (2, 4))
    )
    half = graph.add("Mul", sides, graph.constant([0.5]))
    corners = graph.add("Concat", graph.add("Sub", middle, half), graph.add("Add", middle, half), axis=2)
    scale = graph.add("Gather", scale_factor, graph.constant([1, 0, 1, 0], np.int64), axis=1)
    boxes = graph.add("Div", corners, graph.add("Unsqueeze", scale, graph.constant([1], np.int64)))
    scores_rows = graph.add("Slice", rows, *(graph.constant([v], np.int64) for v in (4, 4 + classes, 2)))
    scores = graph.add("Transpose", scores_rows, perm=[0, 2, 1])
    limits = (graph.constant([100], np.int64), graph.constant([0.6]), graph.constant([0.5]))
    kept = graph.add("NonMaxSuppression", boxes, scores, *limits)  # (M, 3): picture, class, box
    picture_id, class_id, box_id = (
        graph.add("Gather", kept, graph.constant([i], np.int64), axis=1) for i in range(3)
    )  # (M, 1)
    parts = [
        graph.add("Cast", class_id, to=TensorProto.FLOAT),
        graph.add(
            "Unsqueeze",
            graph.add("GatherND", scores, graph.add("Concat", picture_id, class_id, box_id, axis=1)),
            graph.constant([1], np.int64),
        ),
        graph.add("GatherND", boxes, graph.add("Concat", picture_id, box_id, axis=1)),
    ]
    graph.add("Concat", *parts, output="rows", axis=1)
    pictures = graph.add("Gather", graph.add("Shape", picture), graph.constant(0, np.int64))
    numbers = graph.add("Range", graph.constant(0, np.int64), pictures, graph.constant(1, np.int64))
    same = graph.add("Cast", graph.add("Equal", picture_id, numbers), to=TensorProto.INT32)  # (M, N)
    graph.add("ReduceSum", same, graph.constant([0], np.int64), output="counts", keepdims=0)
    graph.output("rows", ["rows", 6])
    graph.output("counts", [batch], TensorProto.INT32)
    return graph.save(path)


def plain(
    path: Path,
    kind: int = TensorProto.FLOAT,
    shape: Sequence[Batch | None] = ("n", 3),
    op: str = "Identity",
    inputs: Sequence[str] = ("x",),
) -> Path:
    """One operator on tensors of one type and shape: `y` = op(`inputs`)."""
    graph = Graph()
    for name in inputs:
        graph.input(name, shape, kind)
    graph.add(op, *inputs, output="y")
    graph.output("y", shape, kind)
    return graph.save(path)


def two_by_two(path: Path, rows: Batch = "n") -> Path:
    """`total` = `a` + `b` and `difference` = `a` - `b`, all (rows, 4) float32."""
    graph = Graph()
    for name in ("a", "b"):
        graph.input(name, [rows, 4])
    graph.add("Add", "a", "b", output="total")
    graph.add("Sub", "a", "b", output="difference")
    graph.output("total", [rows, 4])
    graph.output("difference", [rows, 4])
    return graph.save(path)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) of coloured blobs on a gradient: smooth enough to resize, busy enough to tell apart."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([x, y, 1 - x], axis=-1) * random.uniform(60, 200, 3)
    for _ in range(8):
        (cy, cx), radius = random.uniform(0, 1, 2), random.uniform(0.05, 0.3)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = random.uniform(0, 255, 3)
    return image.round().astype(np.uint8)
