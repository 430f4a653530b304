"""SCRFD, InsightFace's face detector (arXiv:2105.04714).

For each stride an output of scores, then one of box sides, then (`_kps` models) one of five landmarks: (anchors, 1 | 4 | 10), in
models of several pictures (N, anchors, 1 | 4 | 10). Three strides have two anchors a cell, five have one. Sides and landmarks
count in strides from the cell's corner (InsightFace `python-package/insightface/model_zoo/scrfd.py`).

Preprocessing as there: in proportion into the top left corner, the rest black; RGB, (x - 127.5) / 128. Suppression is by the
usual IoU, where InsightFace makes boxes a pixel larger: a difference only for faces of a few pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from visionpool.errors import InferenceFailed, InvalidModel

from visionpool_server.families import FamilySpec, Options, Tensors, image_input
from visionpool_server.families.boxes import Candidates, Floats
from visionpool_server.families.face_detector import FaceDetector
from visionpool_server.families.points import within_reach
from visionpool_server.imaging.recipe import Arithmetic, Pad, Recipe, Resize

_USUAL_SIZE = (640, 640)
_STRIDES = {3: ((8, 16, 32), 2), 5: ((8, 16, 32, 64, 128), 1)}  # by their number: strides, anchors a cell
_ARITHMETIC = Arithmetic(1.0, (127.5, 127.5, 127.5), (128.0, 128.0, 128.0))
_LANDMARKS = 10  # numbers: five times x, y


@dataclass(frozen=True, slots=True)
class _Head:
    """The outputs of one stride. `corners` (anchors, 2): x, y of each anchor's cell in the prepared picture."""

    scores: str
    sides: str
    landmarks: str | None
    corners: Floats
    stride: int


class Scrfd(FaceDetector):
    fallback = Options(score_threshold=0.5, iou_threshold=0.4, max_detections=1000)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size or _USUAL_SIZE
        self.recipe = spec.recipe or Recipe((Resize(size, keep_ratio=True, rounding="down"), Pad(size)), _ARITHMETIC)
        prepared = self.recipe.output_size()
        if prepared is None:
            raise InvalidModel("preprocess leaves the size of pictures open", hint="end it with pad: [HEIGHT, WIDTH]")
        self._heads = _heads(spec, prepared)
        self.one_at_a_time = len(spec.outputs[self._heads[0].scores]) == 2
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = spec.labels or ("face",)
        self.class_count = 1

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        found = [_decoded(head, outputs, threshold) for head in self._heads]
        boxes, scores, landmarks = (np.concatenate(parts) for parts in zip(*found, strict=True))
        more = landmarks if self._heads[0].landmarks else None
        candidates = Candidates(boxes, scores, np.zeros(len(scores), np.int64), more)
        return candidates.take(within_reach(landmarks))


def _decoded(head: _Head, outputs: Tensors, threshold: float) -> tuple[Floats, Floats, Floats]:
    """Boxes (n, 4), scores (n,) and landmarks (n, 10 or 0) of the faces over `threshold`."""
    scores: Floats = outputs[head.scores].reshape(-1)
    if len(scores) != len(head.corners):
        raise InferenceFailed(
            f"output {head.scores!r} has {len(scores)} anchors, and the picture {len(head.corners)} at stride {head.stride}",
            hint="the model's operator should check preprocess and input_size in model.yaml",
        )
    anchors = np.flatnonzero(scores > threshold)
    corners = head.corners[anchors]
    sides = outputs[head.sides][anchors] * np.float32(head.stride)
    boxes = np.concatenate([corners - sides[:, :2], corners + sides[:, 2:]], axis=1)
    if head.landmarks is None:
        return boxes, scores[anchors], np.empty((len(anchors), 0), np.float32)
    steps = outputs[head.landmarks][anchors] * np.float32(head.stride)
    return boxes, scores[anchors], steps + np.tile(corners, _LANDMARKS // 2)


def _heads(spec: FamilySpec, size: tuple[int, int]) -> list[_Head]:
    """By what the outputs' last dimension is, and in each kind by the order in the file."""
    kinds = {
        last: [name for name, shape in spec.outputs.items() if shape[-1:] == (last,)] for last in (1, 4, _LANDMARKS)
    }
    count = len(kinds[1])
    ranks = {len(shape) for shape in spec.outputs.values()}
    complete = len(kinds[4]) == count and len(kinds[_LANDMARKS]) in (0, count) and ranks in ({2}, {3})
    if count not in _STRIDES or not complete or sum(map(len, kinds.values())) != len(spec.outputs):
        raise InvalidModel(
            f"SCRFD has outputs (anchors, 1), (anchors, 4) and perhaps (anchors, {_LANDMARKS}) for each of three or five "
            f"strides; this model has {dict(spec.outputs)}",
            hint="check family: in model.yaml",
        )
    strides, anchors = _STRIDES[count]
    landmarks: list[str] | list[None] = kinds[_LANDMARKS] or [None] * count
    return [
        _Head(scores, sides, points, _corners(size, stride, anchors), stride)
        for scores, sides, points, stride in zip(kinds[1], kinds[4], landmarks, strides, strict=True)
    ]


def _corners(size: tuple[int, int], stride: int, anchors: int) -> Floats:
    """(rows * columns * anchors, 2) x, y of each cell's corner, row by row, the anchors of a cell one after the other."""
    y, x = np.mgrid[: -(-size[0] // stride), : -(-size[1] // stride)]
    cells = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32) * stride
    return np.repeat(cells, anchors, axis=0)
