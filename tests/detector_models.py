"""Small ONNX files and one OpenVINO IR with the graph endings of real detectors: what `tiny_models` has not.

As there, random weights and real graphs: what they find means nothing, but depends on the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.tiny_models import BINS, PICODET_STRIDES, SIZE, STRIDE, Batch, Graph

CLASSES = 3
STRIDES = (8, 16, 32)
ANCHORS = sum((SIZE // stride) ** 2 for stride in STRIDES)  # one a cell


class Endings(Graph):
    """What ends of detectors are made of. Tensors of rows are (N, rows, columns)."""

    def top(self, values: str, count: int) -> tuple[str, str]:
        """TopK along the last axis: values and indices."""
        names = f"top_{len(self._nodes)}", f"top_at_{len(self._nodes)}"
        inputs = [values, self.constant([count], np.int64)]
        self._nodes.append(helper.make_node("TopK", inputs, list(names), axis=-1))
        return names

    def times(self, a: str, factor: Any) -> str:
        return self.add("Mul", a, self.constant(factor))

    def plus(self, a: str, term: Any) -> str:
        return self.add("Add", a, self.constant(term))

    def columns(self, rows: str, start: int, end: int) -> str:
        return self.add("Slice", rows, *(self.constant([v], np.int64) for v in (start, end, 2)))

    def gathered(self, rows: str, indices: str, columns: int) -> str:
        """Of `rows` those at `indices` (N, k): (N, k, columns)."""
        deep = self.add("Unsqueeze", indices, self.constant([2], np.int64))
        wide = self.add("Concat", *[deep] * columns, axis=2)
        return self.add("GatherElements", rows, wide, axis=1)

    def scores(self, picture: str, stride: int, classes: int = CLASSES, *, shift: float = -1.0) -> str:
        """Class scores after sigmoid, (N, cells, classes)."""
        return self.add("Sigmoid", self.logits(picture, stride, classes, shift=shift))

    def logits(
        self, picture: str, stride: int, classes: int = CLASSES, *, shift: float = -1.0, spread: float = 3.0
    ) -> str:
        """Each cell with a bias of its own, without which those of a plain picture would be as good as one another."""
        bias = self.random.normal(shift, 0.2, (1, (SIZE // stride) ** 2, classes))
        return self.plus(self.rows(self.patches(picture, classes, stride, spread=spread), classes), bias)

    def numbers(self, picture: str, stride: int, columns: int = 4) -> str:
        """About -1..1, (N, cells, columns)."""
        return self.add("Tanh", self.rows(self.patches(picture, columns, stride), columns))


def grid(stride: int, offset: float = 0.0, size: int = SIZE) -> NDArray[np.float32]:
    """(1, cells, 2) x, y of cells in cells."""
    y, x = (part.ravel() for part in np.mgrid[: size // stride, : size // stride])
    return (np.stack([x, y], axis=1)[None] + offset).astype(np.float32)


def yolox(
    path: Path, *, decoded: bool = False, batch: Batch = "batch", name: str = "output", strides: Sequence[int] = STRIDES
) -> Path:
    """(N, anchors, 5 + classes). The picture comes as 0..255, which real weights make up for."""
    graph = Endings(1)
    picture = graph.times(graph.input("images", [batch, 3, SIZE, SIZE]), [1 / 255])
    levels = []
    for stride in strides:
        raw = graph.numbers(picture, stride)
        centres, sides = graph.columns(raw, 0, 2), graph.columns(raw, 2, 4)
        if decoded:
            centres = graph.times(graph.plus(centres, grid(stride)), [stride])
            sides = graph.times(graph.add("Exp", sides), [stride])
        objectness = graph.scores(picture, stride, 1, shift=1.0)
        levels.append(graph.add("Concat", centres, sides, objectness, graph.scores(picture, stride, shift=0.5), axis=2))
    graph.add("Concat", *levels, output=name, axis=1)
    graph.output(name, [batch, sum((SIZE // stride) ** 2 for stride in strides), 5 + CLASSES])
    return graph.save(path)


def yolov6(path: Path, *, batch: Batch = "batch") -> Path:
    """(N, anchors, 5 + classes) with an objectness of 1, in pixels: YOLOv6 `deploy/ONNX/export_onnx.py`."""
    graph = Endings(2)
    picture = graph.input("images", [batch, 3, SIZE, SIZE])
    levels = []
    for stride in STRIDES:
        raw = graph.numbers(picture, stride)
        centres = graph.times(graph.plus(graph.columns(raw, 0, 2), grid(stride, 0.5)), [stride])
        sides = graph.times(graph.add("Exp", graph.columns(raw, 2, 4)), [1.5 * stride])
        one = graph.plus(graph.times(graph.columns(raw, 0, 1), [0.0]), [1.0])
        levels.append(graph.add("Concat", centres, sides, one, graph.scores(picture, stride), axis=2))
    graph.add("Concat", *levels, output="outputs", axis=1)
    graph.output("outputs", [batch, ANCHORS, 5 + CLASSES])
    return graph.save(path)


def raw_heads(path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """YOLOv5's or YOLOv7's without the grid: for each stride (N, 3, rows, columns, 5 + classes)."""
    graph = Endings(3)
    picture = graph.input("images", ["batch", 3, SIZE, SIZE])
    for stride in STRIDES:
        cells, width = SIZE // stride, 5 + CLASSES
        features = graph.patches(picture, 3 * width, stride)
        shape = graph.constant([0, 3, width, cells, cells], np.int64)
        deep = graph.add("Reshape", features, shape)
        graph.add("Transpose", deep, output=f"head_{stride}", perm=[0, 1, 3, 4, 2])
        graph.output(f"head_{stride}", ["batch", 3, cells, cells, width])
    return graph.save(path, metadata)


def ppyoloe(
    path: Path,
    ending: Literal["exclude_nms", "exclude_post_process", "export_nms"],
    *,
    batch: Batch = "batch",
    rows_of_scores: bool = False,
) -> Path:
    """As PaddleDetection exports without NMS: PP-YOLOE in two ways, and PicoDet's `export_nms: False`."""
    graph = Endings(4)
    picture = graph.input("image", [batch, 3, SIZE, SIZE])
    boxes, scores = _paddle_heads(graph, picture)
    if ending == "exclude_post_process":
        graph.add("Concat", boxes, scores, output="concat_0.tmp_0", axis=2)
        graph.output("concat_0.tmp_0", [batch, ANCHORS, 4 + CLASSES])
        return graph.save(path)
    if ending == "exclude_nms":
        scale = graph.add(
            "Gather", graph.input("scale_factor", [batch, 2]), graph.constant([1, 0, 1, 0], np.int64), axis=1
        )
        graph.add("Div", boxes, graph.add("Unsqueeze", scale, graph.constant([1], np.int64)), output="boxes.tmp_0")
    else:
        graph.add("Identity", boxes, output="boxes.tmp_0")
    if rows_of_scores:
        graph.add("Identity", scores, output="scores.tmp_0")
    else:
        graph.add("Transpose", scores, output="scores.tmp_0", perm=[0, 2, 1])
    graph.output("boxes.tmp_0", [batch, ANCHORS, 4])
    graph.output("scores.tmp_0", [batch, ANCHORS, CLASSES] if rows_of_scores else [batch, CLASSES, ANCHORS])
    return graph.save(path)


def _paddle_heads(graph: Endings, picture: str) -> tuple[str, str]:
    """Boxes (N, anchors, 4) xyxy in the prepared picture and scores (N, anchors, classes), the coarsest stride first."""
    boxes, scores = [], []
    for stride in reversed(STRIDES):
        sides = graph.plus(graph.numbers(picture, stride), [1.2])  # how far left, top, right, bottom
        left, right = graph.columns(sides, 0, 2), graph.columns(sides, 2, 4)
        centres = graph.constant(grid(stride, 0.5))
        both = graph.add("Concat", graph.add("Sub", centres, left), graph.add("Add", centres, right), axis=2)
        boxes.append(graph.times(both, [stride]))
        scores.append(graph.scores(picture, stride))
    return graph.add("Concat", *boxes, axis=1), graph.add("Concat", *scores, axis=1)


def picodet_heads(
    path: Path,
    *,
    order: Literal["scores first", "sides first", "in pairs", "coarsest first"] = "scores first",
    logits: bool = False,
    classes: int = CLASSES,
    batch: Batch = "batch",
    size: int = SIZE,
    shifted: bool = False,
) -> Path:
    """Raw heads in any order. `shifted`: the last operator does not tell that the scores are logits."""
    graph = Endings(5)
    picture = graph.input("image", [batch, 3, size, size])
    names: dict[str, list[str]] = {"scores": [], "sides": []}
    for stride in PICODET_STRIDES:
        scores = graph.logits(picture, stride, classes, spread=1.0)
        scores = scores if logits else graph.add("Sigmoid", scores)
        sides = graph.rows(graph.patches(picture, 4 * BINS, stride), 4 * BINS)
        graph.add("Neg" if shifted else "Identity", scores, output=f"a_{stride}")
        graph.add("Identity", sides, output=f"b_{stride}")
        names["scores"].append(f"a_{stride}")
        names["sides"].append(f"b_{stride}")
    ordered = {
        "scores first": [*names["scores"], *names["sides"]],
        "sides first": [*names["sides"], *names["scores"]],
        "in pairs": [name for pair in zip(*names.values(), strict=True) for name in pair],
        "coarsest first": [*names["scores"][::-1], *names["sides"][::-1]],
    }[order]
    for name in ordered:
        stride = int(name[2:])
        graph.output(name, [batch, (size // stride) ** 2, classes if name[0] == "a" else 4 * BINS])
    return graph.save(path)


QUERIES = (SIZE // STRIDE) ** 2
FOUND = 40  # what the graph of RT-DETR leaves of them


def rtdetr(
    path: Path,
    ending: Literal["rows", "found", "raw"],
    *,
    names: tuple[str, str] = ("pred_logits", "pred_boxes"),
    batch: Batch = "batch",
    size_type: int = TensorProto.INT64,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """`rows`: Ultralytics; `found`: `tools/export_onnx.py`, with TopK inside; `raw`: logits and boxes."""
    graph = Endings(6)
    picture = graph.input("images", [batch, 3, SIZE, SIZE])
    centres = graph.times(
        graph.plus(graph.columns(graph.numbers(picture, STRIDE), 0, 2), grid(STRIDE, 0.5)), [STRIDE / SIZE]
    )
    sides = graph.times(graph.add("Exp", graph.columns(graph.numbers(picture, STRIDE), 2, 4)), [0.15])
    shares = graph.add("Concat", centres, sides, axis=2)
    logits = graph.logits(picture, STRIDE)
    if ending == "rows":
        graph.add("Concat", shares, graph.add("Sigmoid", logits), output="output0", axis=2)
        graph.output("output0", [batch, QUERIES, 4 + CLASSES])
    elif ending == "raw":
        graph.add("Identity", logits, output=names[0])
        graph.add("Identity", shares, output=names[1])
        graph.output(names[0], [batch, QUERIES, CLASSES])
        graph.output(names[1], [batch, QUERIES, 4])
    else:
        _found(graph, shares, logits, batch, size_type)
    return graph.save(path, metadata)


def _found(graph: Endings, shares: str, logits: str, batch: Batch, size_type: int) -> None:
    sizes = graph.add("Cast", graph.input("orig_target_sizes", [batch, 2], size_type), to=TensorProto.FLOAT)
    scores, queries, labels = _best(graph, logits)
    sides = graph.add("Unsqueeze", graph.add("Concat", sizes, sizes, axis=1), graph.constant([1], np.int64))
    graph.add("Identity", labels, output="labels")
    graph.add("Mul", graph.gathered(_xyxy(graph, shares), queries, 4), sides, output="boxes")
    graph.add("Identity", scores, output="scores")
    graph.output("labels", [batch, FOUND], TensorProto.INT64)
    graph.output("boxes", [batch, FOUND, 4])
    graph.output("scores", [batch, FOUND])


def _best(graph: Endings, logits: str) -> tuple[str, str, str]:
    """Scores, queries and labels, each (N, FOUND), of the best classes of all queries."""
    flat = graph.add("Flatten", graph.add("Sigmoid", logits), axis=1)
    scores, at = graph.top(flat, FOUND)
    count = graph.constant([CLASSES], np.int64)
    return scores, graph.add("Div", at, count), graph.add("Mod", at, count)


def _xyxy(graph: Endings, boxes: str) -> str:
    centres, half = graph.columns(boxes, 0, 2), graph.times(graph.columns(boxes, 2, 4), [0.5])
    return graph.add("Concat", graph.add("Sub", centres, half), graph.add("Add", centres, half), axis=2)


def paddle_rtdetr(path: Path, *, batch: Batch = "batch") -> Path:
    """PaddleDetection's RT-DETR: rows (N * FOUND, 6) of class, score, corners in original pixels, and their counts."""
    graph = Endings(7)
    shape = graph.input("im_shape", [batch, 2])
    picture = graph.input("image", [batch, 3, SIZE, SIZE])
    scale = graph.input("scale_factor", [batch, 2])
    shares = graph.add("Sigmoid", graph.numbers(picture, STRIDE))
    scores, queries, labels = _best(graph, graph.logits(picture, STRIDE))
    original = graph.add("Floor", graph.plus(graph.add("Div", shape, scale), [0.5]))
    sides = graph.add("Gather", original, graph.constant([1, 0, 1, 0], np.int64), axis=1)
    boxes = graph.add(
        "Mul",
        graph.gathered(_xyxy(graph, shares), queries, 4),
        graph.add("Unsqueeze", sides, graph.constant([1], np.int64)),
    )
    two = graph.constant([2], np.int64)
    parts = [
        graph.add("Cast", graph.add("Unsqueeze", labels, two), to=TensorProto.FLOAT),
        graph.add("Unsqueeze", scores, two),
    ]
    rows = graph.add("Concat", *parts, boxes, axis=2)
    graph.add("Reshape", rows, graph.constant([-1, 6], np.int64), output="rows")
    over = graph.add("ReduceSum", scores, graph.constant([1], np.int64), keepdims=0)  # (N,)
    graph.add("Cast", graph.plus(graph.times(over, [0.0]), [FOUND]), output="counts", to=TensorProto.INT32)
    graph.output("rows", ["rows", 6])
    graph.output("counts", [batch], TensorProto.INT32)
    return graph.save(path)


KEPT = 48  # rows of a detector with NMS inside
KEPT_SCORE = 0.4  # under which they are zeros


def yolo_end2end(
    path: Path,
    ending: Literal["rows", "four", "packed"] = "rows",
    *,
    batch: Batch = "batch",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """`rows`: (N, KEPT, 6), filled up with zeros; `four`: as TensorRT's EfficientNMS has its outputs, by ordinary operators."""
    graph = Endings(8)
    picture = graph.input("images", [batch, 3, SIZE, SIZE])
    centres = graph.times(graph.plus(graph.columns(graph.numbers(picture, STRIDE), 0, 2), grid(STRIDE, 0.5)), [STRIDE])
    sides = graph.times(graph.add("Exp", graph.columns(graph.numbers(picture, STRIDE), 2, 4)), [10.0])
    every = graph.scores(picture, STRIDE, shift=-2.0)
    best, at = graph.top(graph.add("ReduceMax", every, axes=[2], keepdims=0), KEPT)
    labels = graph.add("ArgMax", every, axis=2, keepdims=1)
    boxes = graph.gathered(_xyxy(graph, graph.add("Concat", centres, sides, axis=2)), at, 4)
    classes = graph.gathered(labels, at, 1)
    keep = graph.add("Cast", graph.add("Greater", best, graph.constant([KEPT_SCORE])), to=TensorProto.FLOAT)
    if ending == "four":
        return _four(graph, path, (boxes, best, classes, keep), batch)
    if ending == "packed":
        return _packed(graph, path, (boxes, best, classes, keep))
    two = graph.constant([2], np.int64)
    parts = [graph.add("Unsqueeze", best, two), graph.add("Cast", classes, to=TensorProto.FLOAT)]
    rows = graph.add("Concat", boxes, *parts, axis=2)
    graph.add("Mul", rows, graph.add("Unsqueeze", keep, two), output="output0")
    graph.output("output0", [batch, KEPT, 6])
    return graph.save(path, metadata)


def _four(graph: Endings, path: Path, found: tuple[str, str, str, str], batch: Batch) -> Path:
    boxes, scores, classes, keep = found
    one, two = graph.constant([1], np.int64), graph.constant([2], np.int64)
    graph.add("Cast", graph.add("ReduceSum", keep, one, keepdims=1), output="num_dets", to=TensorProto.INT32)
    graph.add("Identity", boxes, output="det_boxes")
    graph.add("Identity", scores, output="det_scores")
    graph.add("Cast", graph.add("Squeeze", classes, two), output="det_classes", to=TensorProto.INT32)
    graph.output("num_dets", [batch, 1], TensorProto.INT32)
    graph.output("det_boxes", [batch, KEPT, 4])
    graph.output("det_scores", [batch, KEPT])
    graph.output("det_classes", [batch, KEPT], TensorProto.INT32)
    return graph.save(path)


def _packed(graph: Endings, path: Path, found: tuple[str, str, str, str]) -> Path:
    """YOLOv7's: rows of the picture's number, corners, class, score."""
    boxes, scores, classes, keep = found
    at = graph.add("Transpose", graph.add("NonZero", keep), perm=[1, 0])  # (rows, 2)
    number = graph.add("Slice", at, *(graph.constant([v], np.int64) for v in (0, 1, 1)))
    deep = graph.add("Unsqueeze", scores, graph.constant([2], np.int64))
    parts = [
        graph.add("GatherND", values, at) for values in (boxes, graph.add("Cast", classes, to=TensorProto.FLOAT), deep)
    ]
    graph.add("Concat", graph.add("Cast", number, to=TensorProto.FLOAT), *parts, output="output", axis=1)
    graph.output("output", ["rows", 7])
    return graph.save(path)


def constant_output(path: Path, values: NDArray[np.float32], name: str = "output0") -> Path:
    """A detector that answers `values` (1, rows, columns) to every picture."""
    graph = Endings()
    picture = graph.input("images", [1, 3, SIZE, SIZE])
    nothing = graph.add("ReduceMin", graph.times(picture, [0.0]), axes=[1, 2, 3], keepdims=0)  # (1,)
    graph.add("Add", graph.constant(values), nothing, output=name)
    graph.output(name, list(values.shape))
    return graph.save(path)


def paddle_nms(path: Path, *, nms: Mapping[str, Any], fixed: bool = False) -> Path:
    """PP-YOLOE ending in MulticlassNms, as an IR: OpenVINO's own operator, with the attributes that Paddle's becomes.

    The heads come from an ONNX of `ppyoloe`, whose two outputs are given to the operator. `fixed`: a batch of one.
    """
    import openvino
    import openvino.opset13 as ops

    heads = ppyoloe(path.with_suffix(".heads.onnx"), "exclude_nms")
    model = openvino.Core().read_model(heads)
    if fixed:
        model.reshape({"image": [1, 3, SIZE, SIZE], "scale_factor": [1, 2]})
    boxes, scores = (output.get_node().input_value(0) for output in model.outputs)
    kept = ops.multiclass_nms(boxes, scores, output_type="i32", sort_result_type="classid", **nms)
    kept.output(0).get_tensor().set_names({"multiclass_nms3_0.tmp_0"})
    kept.output(2).get_tensor().set_names({"multiclass_nms3_0.tmp_2"})
    results = [ops.result(kept.output(0)), ops.result(kept.output(2))]
    openvino.save_model(openvino.Model(results, model.get_parameters(), "ppyoloe"), path, compress_to_fp16=False)
    heads.unlink()
    return path
