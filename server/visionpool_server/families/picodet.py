"""PicoDet exported with raw heads: per stride one tensor of class scores and one of box-side distributions.

A side's distance is the mean of a discrete distribution over `bins` steps of the stride (Generalized Focal Loss,
arXiv:2006.04388, section 3.2). Preprocessing: resized without keeping the ratio, cubic; RGB; ImageNet mean and std
(PaddleDetection `configs/picodet`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from visionpool.errors import InvalidModel

from visionpool_server.families import (
    FamilySpec,
    Options,
    Tensors,
    image_input,
    numbered,
)
from visionpool_server.families.boxes import CandidateDetector, Candidates, Floats, Ints
from visionpool_server.imaging.recipe import Arithmetic, Recipe, Resize

STRIDES = (8, 16, 32, 64, 128)
IMAGENET = Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CANDIDATES_PER_HEAD = 1000  # `nms_top_k` of PaddleDetection's PicoDet configs


@dataclass(frozen=True, slots=True)
class _Head:
    scores: str  # output (N, anchors, classes)
    sides: str  # output (N, anchors, 4 * bins)
    centres: Floats  # (anchors, 2) x, y in the prepared picture
    stride: int


class PicoDet(CandidateDetector):
    """Score heads first, then side heads, in the same order of strides."""

    fallback = Options(score_threshold=0.5, iou_threshold=0.6, max_detections=100)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size
        if size is None:
            raise InvalidModel("the size of the input is not known", hint="say runtime.shapes in model.yaml")
        self.recipe = spec.recipe or Recipe((Resize(size, interpolation="cubic"),), IMAGENET)
        self._heads = _heads(spec, size)
        self.defaults = spec.defaults.over(self.fallback)
        self.class_count = spec.outputs[self._heads[0].scores][2]
        self.labels = spec.labels or numbered(self.class_count)

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        found = [_decode(head, outputs, threshold) for head in self._heads]
        boxes, scores, label_ids = (np.concatenate(part) for part in zip(*found, strict=True))
        return Candidates(boxes, scores, label_ids)


def _decode(head: _Head, outputs: Tensors, threshold: float) -> tuple[Floats, Floats, Ints]:
    """Boxes (N, 4) xyxy in the prepared picture, scores (N,) and ids (N,): every class over `threshold` counts."""
    scores = outputs[head.scores]
    anchors, label_ids = np.nonzero(scores > threshold)
    found = scores[anchors, label_ids]
    if len(found) > CANDIDATES_PER_HEAD:
        best = np.argpartition(-found, CANDIDATES_PER_HEAD)[:CANDIDATES_PER_HEAD]
        anchors, label_ids, found = anchors[best], label_ids[best], found[best]
    flat = outputs[head.sides]  # (anchors, 4 * bins)
    sides = flat[anchors].reshape(len(anchors), 4, flat.shape[1] // 4)
    weights = np.exp(sides - sides.max(axis=2, keepdims=True))
    steps = np.arange(sides.shape[2], dtype=np.float32)
    distances = (weights @ steps) / weights.sum(axis=2) * head.stride  # (N, 4): left, top, right, bottom
    centres = head.centres[anchors]
    return np.hstack([centres - distances[:, :2], centres + distances[:, 2:]]), found, label_ids


def _heads(spec: FamilySpec, size: tuple[int, int]) -> list[_Head]:
    names = list(spec.outputs)
    if len(names) % 2 or not names or any(len(shape) != 3 for shape in spec.outputs.values()):
        raise InvalidModel(
            f"a raw PicoDet has pairs of 3-D outputs (scores, box sides); this model has {dict(spec.outputs)}",
            hint="for an export that ends in NMS say family: paddle_detection",
        )
    half = len(names) // 2
    heads = []
    for scores, sides in zip(names[:half], names[half:], strict=True):
        anchors, stride = spec.outputs[scores][1], 0
        for candidate in STRIDES:
            rows, columns = -(-size[0] // candidate), -(-size[1] // candidate)
            if rows * columns == anchors:
                stride = candidate
                break
        if not stride or spec.outputs[sides][1] != anchors:
            raise InvalidModel(f"output {scores!r} has {anchors} anchors, which no stride of {STRIDES} gives at {size}")
        heads.append(_Head(scores, sides, _centres(rows, columns, stride), stride))
    return heads


def _centres(rows: int, columns: int, stride: int) -> Floats:
    """(rows * columns, 2) x, y of the anchors' centres, row by row."""
    y, x = np.mgrid[:rows, :columns]
    return (np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32) + 0.5) * stride
