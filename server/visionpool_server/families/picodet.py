"""PicoDet exported with raw heads: per stride one tensor of class scores and one of box-side distributions.

A side's distance is the mean of a discrete distribution over `bins` steps of the stride (Generalized Focal Loss,
arXiv:2006.04388, section 3.2). Preprocessing: resized without keeping the ratio, cubic; RGB; ImageNet mean and std
(PaddleDetection `configs/picodet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.families import (
    FamilySpec,
    Options,
    Tensors,
    image_input,
    numbered,
)
from visionpool_server.families.boxes import CandidateDetector, Candidates, Floats, cells
from visionpool_server.families.scores import Activation, activation_of, as_scores, logit, still_to_do
from visionpool_server.imaging.recipe import Arithmetic, Recipe, Resize

STRIDES = (8, 16, 32, 64, 128)
USUAL_WIDTH = 32  # of the side heads: 4 sides, `reg_max: 7`
IMAGENET = Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CANDIDATES_PER_HEAD = 1000  # `nms_top_k` of PaddleDetection's PicoDet configs


@dataclass(frozen=True, slots=True)
class _Head:
    scores: str  # output (N, anchors, classes)
    sides: str  # output (N, anchors, 4 * bins)
    centres: Floats  # (anchors, 2) x, y in the prepared picture
    stride: int


class PicoDet(CandidateDetector):
    """Heads in any order. Scores are after sigmoid, or logits: `postprocess: {activation: sigmoid}` in model.yaml, the
    graph's last operator or each picture's own numbers say which, the first that speaks."""

    activation: Activation | None
    accepts = CandidateDetector.accepts | {"activation"}
    fallback = Options(score_threshold=0.5, iou_threshold=0.6, max_detections=100)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size
        if size is None:
            raise InvalidModel("the size of the input is not known", hint="say runtime.shapes in model.yaml")
        self.recipe = spec.recipe or Recipe((Resize(size, interpolation="cubic"),), IMAGENET)
        self._heads = _heads(spec, size)
        self.activation = still_to_do(spec.settings.get("activation"), _ending(self._heads, spec), "sigmoid")
        self.defaults = spec.defaults.over(self.fallback)
        self.class_count = spec.outputs[self._heads[0].scores][2]
        self.labels = spec.labels or numbered(self.class_count)

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        activation = self.activation or self._apparent(outputs)
        found = [_decode(head, outputs, threshold, activation) for head in self._heads]
        boxes, scores, label_ids = (np.concatenate(part) for part in zip(*found, strict=True))
        return Candidates(boxes, scores, label_ids)

    def _apparent(self, outputs: Tensors) -> Activation:
        heads = {activation_of(outputs[head.scores]) for head in self._heads}
        return "sigmoid" if "sigmoid" in heads else "none"


def _decode(
    head: _Head, outputs: Tensors, threshold: float, activation: Activation
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Boxes (N, 4) xyxy in the prepared picture, scores (N,) and ids (N,): every class over `threshold` counts."""
    scores = outputs[head.scores]
    anchors, label_ids = np.nonzero(scores > (logit(threshold) if activation == "sigmoid" else threshold))
    found = as_scores(scores[anchors, label_ids], activation)
    if len(found) > CANDIDATES_PER_HEAD:
        best = np.argpartition(-found, CANDIDATES_PER_HEAD)[:CANDIDATES_PER_HEAD]
        anchors, label_ids, found = anchors[best], label_ids[best], found[best]
    flat = outputs[head.sides]  # (anchors, 4 * bins)
    sides = flat[anchors].astype(np.float32).reshape(len(anchors), 4, flat.shape[1] // 4)
    weights = np.exp(sides - sides.max(axis=2, keepdims=True))
    steps = np.arange(sides.shape[2], dtype=np.float32)
    distances = (weights @ steps) / weights.sum(axis=2) * head.stride  # (N, 4): left, top, right, bottom
    centres = head.centres[anchors]
    return np.hstack([centres - distances[:, :2], centres + distances[:, 2:]]), found, label_ids


def _heads(spec: FamilySpec, size: tuple[int, int]) -> list[_Head]:
    """The finest first."""
    scores, sides = _halves(spec)
    heads: list[_Head] = []
    for score, side in zip(_finest_first(scores, spec), _finest_first(sides, spec), strict=True):
        anchors = spec.outputs[score][1]
        coarser = [stride for stride in STRIDES if not heads or stride > heads[-1].stride]
        grids = {stride: (-(-size[0] // stride), -(-size[1] // stride)) for stride in coarser}
        stride = next((stride for stride, (rows, columns) in grids.items() if rows * columns == anchors), None)
        if stride is None or spec.outputs[side][1] != anchors:
            raise InvalidModel(f"output {score!r} has {anchors} anchors, which no stride of {STRIDES} gives at {size}")
        heads.append(_Head(score, side, (cells(*grids[stride]) + 0.5) * stride, stride))
    return heads


def _ending(heads: Sequence[_Head], spec: FamilySpec) -> str:
    """What the graph does last for the scores, where it does the same for all."""
    endings = {spec.endings.get(head.scores, "") for head in heads}
    return endings.pop() if len(endings) == 1 else ""


def _halves(spec: FamilySpec) -> tuple[list[str], list[str]]:
    """The names of the score heads and of the side heads, each in the file's order. The width of the rows tells them apart."""
    names, widths = list(spec.outputs), [shape[2] if len(shape) == 3 else None for shape in spec.outputs.values()]
    kinds = list(dict.fromkeys(widths))
    if len(names) % 2 or not names or None in kinds or len(kinds) > 2:
        raise InvalidModel(
            f"a raw PicoDet has pairs of 3-D outputs (scores, box sides); this model has {dict(spec.outputs)}",
            hint="for an export that ends in NMS say family: paddle_detection; for boxes and scores, family: ppyoloe",
        )
    if len(kinds) == 1:  # as many classes as numbers for the sides: the scores come first
        half = 1 if len(names) > 2 and spec.outputs[names[0]][1] == spec.outputs[names[1]][1] else len(names) // 2
        first = [i // half % 2 == 0 for i in range(len(names))]
    else:
        wide = _sides_width([width for width in kinds if width is not None], len(spec.labels))
        first = [width != wide for width in widths]
    scores = [name for name, is_first in zip(names, first, strict=True) if is_first]
    sides = [name for name in names if name not in scores]
    if len(scores) != len(sides):
        raise InvalidModel(f"{len(scores)} outputs of scores and {len(sides)} of box sides: a raw PicoDet has pairs")
    return scores, sides


def _sides_width(widths: list[int], classes: int) -> int:
    """Which of two widths is that of the sides: not the classes' count, a multiple of 4, best the usual one, else the second."""
    others = [width for width in widths if width != classes and width % 4 == 0]
    return USUAL_WIDTH if USUAL_WIDTH in others else others[-1] if others else widths[-1]


def _finest_first(names: list[str], spec: FamilySpec) -> list[str]:
    return sorted(names, key=lambda name: -(spec.outputs[name][1] or 0))
