"""Small ONNX files that end as real exports of instance models do: masks, oriented boxes, joints, faces, R-CNN.

Random weights, real graphs: what they find means nothing, but depends on the picture, cell by cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from tests.tiny_models import Batch, Graph

Size = tuple[int, int]  # height, width
SIZE: Size = (64, 96)
STRIDE = 8
MASKS = 6  # coefficients and prototypes; 32 in real exports


def _part(graph: Graph, values: str, start: int, end: int, axis: int) -> str:
    return graph.add("Slice", values, *(graph.constant([value], np.int64) for value in (start, end, axis)))


def _cells(size: Size, stride: int = STRIDE) -> NDArray[np.float64]:
    """(cells, 2): x, y of the corner of each cell, row by row."""
    y, x = np.mgrid[: -(-size[0] // stride), : -(-size[1] // stride)]
    return np.stack([x.ravel(), y.ravel()], axis=1) * float(stride)


def _boxes(graph: Graph, raw: str, size: Size) -> str:
    """Raw values (N, cells, 4) as centre and size in pixels: up to a cell beside their own, 4 to 52 wide."""
    squashed = graph.add("Sigmoid", raw)
    scaled = graph.add("Mul", squashed, graph.constant([[[16, 16, 48, 48]]]))
    cells = _cells(size)
    return graph.add("Add", scaled, graph.constant(np.concatenate([cells - 4, np.full_like(cells, 4)], axis=1)[None]))


def _columns(graph: Graph, parts: Sequence[str], count: int, cells: int, batch: Batch) -> str:
    """Parts (N, cells, k) as the output (N, count, cells)."""
    graph.add("Transpose", graph.add("Concat", *parts, axis=2), output="output0", perm=[0, 2, 1])
    return graph.output("output0", [batch, count, cells])


def yolo_segmentation(
    path: Path,
    *,
    layout: Literal["v5", "v8"] = "v8",
    classes: int = 3,
    batch: Batch = "batch",
    size: Size = SIZE,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Rows with mask coefficients, and prototypes (N, MASKS, H / 4, W / 4)."""
    graph = Graph(seed)
    picture = graph.input("images", [batch, 3, *size])
    scores = classes + (layout == "v5")
    count = 4 + scores + MASKS
    raw = graph.rows(graph.patches(picture, count, STRIDE, spread=2.0), count)
    parts = [
        _boxes(graph, _part(graph, raw, 0, 4, 2), size),
        graph.add("Sigmoid", _part(graph, raw, 4, 4 + scores, 2)),
        graph.add("Tanh", _part(graph, raw, 4 + scores, count, 2)),
    ]
    cells = len(_cells(size))
    if layout == "v8":
        _columns(graph, parts, count, cells, batch)
    else:
        graph.add("Concat", *parts, output="output0", axis=2)
        graph.output("output0", [batch, cells, count])
    prototypes = graph.patches(picture, MASKS, 4, spread=1.5)
    graph.add("Relu", prototypes, output="output1")
    graph.output("output1", [batch, MASKS, size[0] // 4, size[1] // 4])
    return graph.save(path, metadata)


def yolo_obb(
    path: Path,
    *,
    classes: int = 3,
    batch: Batch = "batch",
    size: Size = SIZE,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Output (N, 4 + classes + 1, cells), the angle last, -pi / 4 to 3 pi / 4 as Ultralytics' head gives it."""
    graph = Graph(seed)
    picture = graph.input("images", [batch, 3, *size])
    count = 4 + classes + 1
    raw = graph.rows(graph.patches(picture, count, STRIDE, spread=2.0), count)
    angle = graph.add("Sub", graph.add("Sigmoid", _part(graph, raw, count - 1, count, 2)), graph.constant([0.25]))
    parts = [
        _boxes(graph, _part(graph, raw, 0, 4, 2), size),
        graph.add("Sigmoid", _part(graph, raw, 4, 4 + classes, 2)),
        graph.add("Mul", angle, graph.constant([np.pi])),
    ]
    _columns(graph, parts, count, len(_cells(size)), batch)
    return graph.save(path, metadata)


def yolo_pose(
    path: Path,
    *,
    joints: tuple[int, int] = (17, 3),
    classes: int = 1,
    batch: Batch = "batch",
    size: Size = SIZE,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Output (N, 4 + classes + joints * numbers, cells); joints lie up to two cells beside their own."""
    graph = Graph(seed)
    picture = graph.input("images", [batch, 3, *size])
    points, numbers = joints
    count, cells = 4 + classes + points * numbers, len(_cells(size))
    raw = graph.rows(graph.patches(picture, count, STRIDE, spread=2.0), count)
    squashed = graph.add("Sigmoid", _part(graph, raw, 4 + classes, count, 2))
    each = graph.add("Reshape", squashed, graph.constant([0, cells, points, numbers], np.int64))
    around = graph.add("Mul", _part(graph, each, 0, 2, 3), graph.constant([40.0]))
    placed = [graph.add("Add", around, graph.constant(_cells(size)[None, :, None] - 16))]
    if numbers == 3:
        placed.append(_part(graph, each, 2, 3, 3))
    joined = graph.add("Concat", *placed, axis=3)
    parts = [
        _boxes(graph, _part(graph, raw, 0, 4, 2), size),
        graph.add("Sigmoid", _part(graph, raw, 4, 4 + classes, 2)),
        graph.add("Reshape", joined, graph.constant([0, cells, points * numbers], np.int64)),
    ]
    _columns(graph, parts, count, cells, batch)
    return graph.save(path, metadata)


def suppressed(
    path: Path,
    task: Literal["segment", "pose", "obb"],
    *,
    classes: int = 3,
    batch: Batch = "batch",
    size: Size = SIZE,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """As Ultralytics exports with `nms=True`, and YOLO26: a row of box, score, class and what else there is for each
    object; here for each cell.

    Boxes are corners, but of `obb` centre and size. `segment` has MASKS coefficients, `pose` three joints of three numbers.
    """
    graph = Graph(seed)
    picture = graph.input("images", [batch, 3, *size])
    more, cells = {"segment": MASKS, "pose": 9, "obb": 1}[task], len(_cells(size))
    count = 4 + classes + more
    raw = graph.rows(graph.patches(picture, count, STRIDE, spread=2.0), count)
    boxes = _boxes(graph, _part(graph, raw, 0, 4, 2), size)
    if task != "obb":
        centre, half = (
            _part(graph, boxes, 0, 2, 2),
            graph.add("Mul", _part(graph, boxes, 2, 4, 2), graph.constant([0.5])),
        )
        boxes = graph.add("Concat", graph.add("Sub", centre, half), graph.add("Add", centre, half), axis=2)
    scores = graph.add("Sigmoid", _part(graph, raw, 4, 4 + classes, 2))
    best = graph.add("ReduceMax", scores, axes=[2])
    which = graph.add("Cast", graph.add("ArgMax", scores, axis=2), to=TensorProto.FLOAT)
    rest = graph.add("Mul", _part(graph, raw, 4 + classes, count, 2), graph.constant([1.0 if task == "obb" else 10.0]))
    graph.add("Concat", boxes, best, which, rest, output="output0", axis=2)
    graph.output("output0", [batch, cells, 6 + more])
    if task == "segment":
        graph.add("Relu", graph.patches(picture, MASKS, 4, spread=1.5), output="output1")
        graph.output("output1", [batch, MASKS, size[0] // 4, size[1] // 4])
    return graph.save(path, metadata)


def yolov5_face(path: Path, *, batch: Batch = "batch", size: Size = SIZE, seed: int = 0) -> Path:
    """Output (N, cells, 16): box, objectness, five landmarks, the class."""
    graph = Graph(seed)
    picture = graph.input("input", [batch, 3, *size])
    raw = graph.rows(graph.patches(picture, 16, STRIDE, spread=2.0), 16)
    squashed = graph.add("Sigmoid", raw)
    landmarks = graph.add("Mul", _part(graph, squashed, 5, 15, 2), graph.constant([30.0]))
    parts = [
        _boxes(graph, _part(graph, raw, 0, 4, 2), size),
        _part(graph, squashed, 4, 5, 2),
        graph.add("Add", landmarks, graph.constant(np.tile(_cells(size) - 11, 5)[None])),
        _part(graph, squashed, 15, 16, 2),
    ]
    graph.add("Concat", *parts, output="output", axis=2)
    graph.output("output", [batch, len(_cells(size)), 16])
    return graph.save(path)


def scrfd(
    path: Path,
    *,
    landmarks: bool = True,
    batched: bool = False,
    five: bool = False,
    size: Size = (128, 128),
    open_size: bool = False,
    seed: int = 0,
) -> Path:
    """Per stride scores, then per stride box sides, then per stride landmarks: (anchors, k), or (N, anchors, k) if `batched`.

    `open_size`: the input's height and width are left dynamic, as in InsightFace's files.
    """
    graph = Graph(seed)
    sides: list[Batch] = ["height", "width"] if open_size else list(size)
    picture = graph.input("input.1", ["batch" if batched else 1, 3, *sides])
    strides, anchors = ((8, 16, 32, 64, 128), 1) if five else ((8, 16, 32), 2)
    kinds = [("score", 1, 2.0), ("bbox", 4, 1.5), ("kps", 10, 1.5)][: 3 if landmarks else 2]
    for kind, count, spread in kinds:
        for stride in strides:
            name = f"{kind}_{stride}"
            features = graph.patches(picture, count * anchors, stride, spread=spread)
            rows = graph.add("Transpose", features, perm=[0, 2, 3, 1])
            shape = [0, -1, count] if batched else [-1, count]
            raw = graph.add("Reshape", rows, graph.constant(shape, np.int64))
            graph.add({"score": "Sigmoid", "bbox": "Softplus", "kps": "Identity"}[kind], raw, output=name)
            cells: Batch = f"cells_{stride}" if open_size else len(_cells(size, stride)) * anchors
            graph.output(name, (["batch"] if batched else []) + [cells, count])
    return graph.save(path)


def rcnn(
    path: Path,
    *,
    masks: Literal["grids", "pasted"] | None = None,
    classes: int = 4,
    batch_dimension: bool = False,
    size: Size | None = None,
    seed: int = 0,
    order: Sequence[str] = ("boxes", "labels", "scores", "masks"),
    scale: float = 1.0,
) -> Path:
    """Faster and Mask R-CNN: proposals and their NMS, RoiAlign, classes and boxes, NMS again, and a mask each.

    Input (3, H, W), or (1, 3, H, W) with `batch_dimension`, of any size unless `size` says one. `classes` counts the background;
    `scale` brings pixels that are not in 0 to 1 near it.
    """
    graph = Graph(seed)
    sides: list[Batch] = list(size) if size else ["height", "width"]
    picture = graph.input("image", ([1] if batch_dimension else []) + [3, *sides])
    if not batch_dimension:
        picture = graph.add("Unsqueeze", picture, graph.constant([0], np.int64))
    limits = _far_corner(graph, picture)
    padded = graph.add("Pad", picture, graph.constant([0, 0, 0, 0, 0, 0, 7, 7], np.int64))  # cells for the last pixels
    features = graph.add("Relu", graph.patches(padded, 8, STRIDE, spread=2.0 * scale))
    proposals = _proposals(graph, features, limits)
    boxes, labels, scores = _second_stage(graph, features, proposals, limits, classes)
    made = {"boxes": boxes, "labels": labels, "scores": scores}
    shapes: dict[str, list[Batch | None]] = {"boxes": ["n", 4], "labels": ["n"], "scores": ["n"]}
    if masks:
        made["masks"] = _grids(graph, features, boxes) if masks == "grids" else _pasted(graph, picture, boxes)
        shapes["masks"] = ["n", 1, 28, 28] if masks == "grids" else ["n", 1, *sides]
    for name in order:
        if name in made:
            graph.add("Identity", made[name], output=name)
            graph.output(name, shapes[name], TensorProto.INT64 if name == "labels" else TensorProto.FLOAT)
    return graph.save(path)


def _far_corner(graph: Graph, picture: str) -> str:
    """(4,): width, height, width, height of the picture."""
    shape = graph.add("Cast", graph.add("Shape", picture), to=TensorProto.FLOAT)
    return graph.add("Gather", shape, graph.constant([3, 2, 3, 2], np.int64))


def _inside(graph: Graph, boxes: str, limits: str) -> str:
    return graph.add("Min", graph.add("Max", boxes, graph.constant([0.0])), limits)


def _proposals(graph: Graph, features: str, limits: str) -> str:
    """(m, 4) xyxy: the best of a box a cell."""
    raw = graph.rows(graph.add("Conv", features, graph.weights(5, 8, 1, 1, spread=0.6), graph.weights(5)), 5)
    plane = graph.add("Slice", features, *(graph.constant([v], np.int64) for v in (0, 1, 1)))
    ones = graph.add("Add", graph.add("Abs", plane), graph.constant([1.0]))
    found = graph.add("Transpose", graph.add("NonZero", ones), perm=[1, 0])  # (cells, 4): picture, channel, row, column
    cells = graph.add(
        "Cast", graph.add("Gather", found, graph.constant([3, 2, 3, 2], np.int64), axis=1), to=TensorProto.FLOAT
    )
    sides = graph.add(
        "Mul", graph.add("Sigmoid", _part(graph, raw, 0, 4, 2)), graph.constant([-24.0, -24.0, 24.0, 24.0])
    )
    apart = graph.add("Add", sides, graph.constant([0.0, 0.0, 8.0, 8.0]))
    boxes = _inside(graph, graph.add("Add", apart, graph.add("Mul", cells, graph.constant([8.0]))), limits)
    scores = graph.add("Transpose", graph.add("Sigmoid", _part(graph, raw, 4, 5, 2)), perm=[0, 2, 1])
    return graph.add("Squeeze", _kept(graph, boxes, scores, (40, 0.7, 0.0))[0], graph.constant([0], np.int64))


def _kept(graph: Graph, boxes: str, scores: str, limits: tuple[int, float, float]) -> tuple[str, str, str]:
    """Boxes (1, k, 4), classes (k,) and scores (k,) of what NonMaxSuppression leaves. `limits`: how many, IoU, score."""
    count, overlap, score = limits
    chosen = graph.add(
        "NonMaxSuppression",
        boxes,
        scores,
        graph.constant([count], np.int64),
        graph.constant([overlap]),
        graph.constant([score]),
    )
    classes, places = (
        graph.add("Squeeze", _part(graph, chosen, i, i + 1, 1), graph.constant([1], np.int64)) for i in (1, 2)
    )
    return graph.add("Gather", boxes, places, axis=1), classes, graph.add("GatherND", scores, chosen)


def _aligned(graph: Graph, features: str, boxes: str, side: int) -> str:
    """(k, channels, side, side)."""
    count = graph.add("Slice", graph.add("Shape", boxes), *(graph.constant([v], np.int64) for v in (0, 1)))
    zeros = graph.add("Expand", graph.constant([0], np.int64), count)
    return graph.add(
        "RoiAlign",
        features,
        boxes,
        zeros,
        output_height=side,
        output_width=side,
        sampling_ratio=2,
        spatial_scale=1 / STRIDE,
    )


def _second_stage(graph: Graph, features: str, proposals: str, limits: str, classes: int) -> tuple[str, str, str]:
    """Boxes (k, 4), labels (k,) from 1 on, scores (k,)."""
    pooled = graph.add("Flatten", _aligned(graph, features, proposals, 5))
    hidden = graph.add("Relu", graph.add("Gemm", pooled, graph.weights(200, 16, spread=0.15), graph.weights(16)))
    logits = graph.add("Gemm", hidden, graph.weights(16, classes, spread=0.5), graph.weights(classes))
    scores = graph.add("Unsqueeze", graph.add("Softmax", logits, axis=1), graph.constant([0], np.int64))
    objects = graph.add("Transpose", _part(graph, scores, 1, classes, 2), perm=[0, 2, 1])  # (1, classes - 1, m)
    moves = graph.add("Tanh", graph.add("Gemm", hidden, graph.weights(16, 4, spread=0.3), graph.weights(4)))
    moved = graph.add("Add", proposals, graph.add("Mul", moves, graph.constant([5.0])))
    boxes = graph.add("Unsqueeze", _inside(graph, moved, limits), graph.constant([0], np.int64))
    kept, labels, found = _kept(graph, boxes, objects, (20, 0.5, 0.05))
    final = graph.add("Squeeze", kept, graph.constant([0], np.int64))
    return final, graph.add("Add", labels, graph.constant([1], np.int64)), found


def _grids(graph: Graph, features: str, boxes: str) -> str:
    """(k, 1, 28, 28), after sigmoid."""
    aligned = _aligned(graph, features, boxes, 14)
    large = graph.add(
        "ConvTranspose", aligned, graph.weights(8, 4, 2, 2), graph.weights(4), kernel_shape=[2, 2], strides=[2, 2]
    )
    one = graph.add("Conv", graph.add("Relu", large), graph.weights(1, 4, 1, 1, spread=1.5), graph.constant([-0.5]))
    return graph.add("Sigmoid", one)


def _pasted(graph: Graph, picture: str, boxes: str) -> str:
    """(k, 1, H, W): in each box what the picture's own colours say, outside next to nothing."""
    plane = _part(graph, picture, 0, 1, 1)  # (1, 1, H, W)
    ones = graph.add("Add", graph.add("Abs", plane), graph.constant([1.0]))
    places = graph.add("Cast", graph.add("NonZero", ones), to=TensorProto.FLOAT)  # (4, H * W)
    inside = None
    for axis, (low, high) in ((3, (0, 2)), (2, (1, 3))):
        position = graph.add("Add", graph.add("Gather", places, graph.constant(axis, np.int64)), graph.constant([0.5]))
        ends = [graph.add("Gather", boxes, graph.constant([i], np.int64), axis=1) for i in (low, high)]
        distance = graph.add("Min", graph.add("Sub", position, ends[0]), graph.add("Sub", ends[1], position))
        inside = distance if inside is None else graph.add("Min", inside, distance)
    assert inside
    flat = graph.add("Reshape", plane, graph.constant([1, -1], np.int64))
    soft = graph.add("Sigmoid", graph.add("Add", inside, graph.add("Mul", flat, graph.constant([-4.0]))))
    count = graph.add("Slice", graph.add("Shape", boxes), *(graph.constant([v], np.int64) for v in (0, 1)))
    sides = graph.add("Slice", graph.add("Shape", picture), *(graph.constant([v], np.int64) for v in (2, 4)))
    shape = graph.add("Concat", count, graph.constant([1], np.int64), sides, axis=0)
    return graph.add("Reshape", soft, shape)


def paddle_masks(
    path: Path, *, kind: Literal["mask_rcnn", "solov2"] = "mask_rcnn", classes: int = 4, seed: int = 1
) -> Path:
    """As PaddleDetection exports Mask R-CNN and SOLOv2: inputs `image`, `im_shape` and `scale_factor` (1, 2), y before x.

    Mask R-CNN: rows (n, 6) of class, score and corners in original pixels, the count, masks (n, H, W) int32 in the original's
    size. SOLOv2: the count, labels, scores, masks uint8. `classes` counts the background, which has no number in the outputs.
    """
    graph = Graph(seed)
    picture = graph.input("image", [1, 3, "height", "width"])
    resized, scale = graph.input("im_shape", [1, 2]), graph.input("scale_factor", [1, 2])
    limits = _far_corner(graph, picture)
    padded = graph.add("Pad", picture, graph.constant([0, 0, 0, 0, 0, 0, 7, 7], np.int64))
    features = graph.add("Relu", graph.patches(padded, 8, STRIDE, spread=2.0))
    boxes, labels, scores = _second_stage(graph, features, _proposals(graph, features, limits), limits, classes)
    original = graph.add("Floor", graph.add("Add", graph.add("Div", resized, scale), graph.constant([0.5])))
    placed = graph.add("Div", boxes, graph.add("Gather", scale, graph.constant([1, 0, 1, 0], np.int64), axis=1))
    numbers = graph.add("Sub", labels, graph.constant([1], np.int64))
    masks = _masks_of(graph, placed, original)
    count = graph.add("Slice", graph.add("Shape", scores), *(graph.constant([v], np.int64) for v in (0, 1)))
    graph.add("Cast", count, output="bbox_num", to=TensorProto.INT32)
    if kind == "mask_rcnn":
        columns = [graph.add("Cast", numbers, to=TensorProto.FLOAT), scores]
        rows = [graph.add("Unsqueeze", column, graph.constant([1], np.int64)) for column in columns]
        graph.add("Concat", *rows, placed, output="bbox", axis=1)
        graph.add("Cast", masks, output="mask", to=TensorProto.INT32)
        graph.output("bbox", ["n", 6])
        graph.output("bbox_num", [1], TensorProto.INT32)
        graph.output("mask", ["n", "rows", "columns"], TensorProto.INT32)
        return graph.save(path)
    graph.output("bbox_num", [1], TensorProto.INT32)
    graph.add("Identity", numbers, output="cate_label")
    graph.add("Identity", scores, output="cate_score")
    graph.add("Cast", masks, output="segm", to=TensorProto.UINT8)
    graph.output("cate_label", ["n"], TensorProto.INT64)
    graph.output("cate_score", ["n"])
    graph.output("segm", ["n", "rows", "columns"], TensorProto.UINT8)
    return graph.save(path)


def _masks_of(graph: Graph, boxes: str, size: str) -> str:
    """(n, H, W) of true and false: in each box what is not too near to its wavy sides. `size` (1, 2): H, W."""
    near = []
    for axis, (low, high), expand in ((1, (0, 2), 1), (0, (1, 3), 2)):
        end = graph.add("Gather", size, graph.constant(axis, np.int64), axis=1)
        steps = graph.add("Range", graph.constant(0.0), graph.add("Squeeze", end), graph.constant(1.0))
        position = graph.add("Add", steps, graph.constant([0.5]))
        ends = [graph.add("Gather", boxes, graph.constant([i], np.int64), axis=1) for i in (low, high)]
        distance = graph.add("Min", graph.add("Sub", position, ends[0]), graph.add("Sub", ends[1], position))
        waves = graph.add("Mul", graph.add("Sin", position), graph.constant([1.5]))
        near.append(graph.add("Unsqueeze", graph.add("Sub", distance, waves), graph.constant([expand], np.int64)))
    return graph.add("Greater", graph.add("Min", *near), graph.constant([0.0]))
