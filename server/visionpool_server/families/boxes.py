"""What the detection families share: from candidate boxes to a result. A leaf: it imports no family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.results import DetectionResult, Result

from visionpool_server.families import (
    Options,
    PictureFamily,
    Tensors,
    class_ids,
    label_of,
)
from visionpool_server.imaging.recipe import Geometry, Recipe

MAX_CANDIDATES = 30_000  # Ultralytics' `max_nms`: bounds the time that one hostile threshold can take

_SOME = 1000
_BEYOND = 1e7  # pixels

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a detector may have found, in the prepared picture. All fields are parallel.

    `more`: what else a row says of its object, as the family lays it out: mask coefficients, joints, an angle.
    """

    boxes: Floats  # (N, 4) xyxy
    scores: Floats  # (N,)
    label_ids: Ints  # (N,)
    more: Floats | None = None  # (N, k)

    def take(self, which: NDArray[Any]) -> Candidates:
        """Those of a mask (N,) or of indices."""
        more = None if self.more is None else self.more[which]
        return Candidates(self.boxes[which], self.scores[which], self.label_ids[which], more)


class CandidateDetector(PictureFamily):
    """A detector whose graph ends in candidates, not yet suppressed.

    `candidates` is what differs from one to the next; `suppressed` and `result` where boxes are not all there is.
    """

    accepts = frozenset({"score_threshold", "iou_threshold", "max_detections", "classes"})
    recipe: Recipe
    image_input: str
    labels: tuple[str, ...]
    class_count: int | None
    defaults: Options  # with score_threshold and max_detections set, and iou_threshold where suppression is left to do

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> Result:
        """Outputs: one picture's rows, without the batch dimension."""
        chosen = options.over(self.defaults)
        score, limit = chosen.score_threshold, chosen.max_detections
        iou = (
            1.0 if chosen.iou_threshold is None else chosen.iou_threshold
        )  # None: the graph leaves no two of one object
        assert score is not None and limit is not None
        with np.errstate(over="ignore", invalid="ignore"):
            found = _meaningful(self.candidates(outputs, score))
        if chosen.classes:
            found = found.take(allowed(found.label_ids, class_ids(chosen.classes, self.labels, self.class_count)))
        found = found.take(self.suppressed(found, iou, limit))
        return self.result(found, outputs, geometry, chosen)

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        """Those that score over `threshold`."""
        raise NotImplementedError

    def suppress_nothing(self) -> None:
        """For a graph that leaves a row for each object: there is no threshold to choose."""
        self.accepts = self.accepts - {"iou_threshold"}
        self.defaults = replace(self.defaults, iou_threshold=None)

    def suppressed(self, found: Candidates, iou_threshold: float, limit: int) -> NDArray[np.intp]:
        """The indices that stay, best score first, at most `limit`."""
        return non_maximum_suppression(found.boxes, found.scores, found.label_ids, iou_threshold, limit)

    def result(self, found: Candidates, outputs: Tensors, geometry: Geometry, options: Options) -> Result:  # noqa: ARG002  families override it
        """What the caller gets of those that stay."""
        return detection_result(geometry.to_original(found.boxes), found.scores, found.label_ids, self.labels)


def non_maximum_suppression(
    boxes: Floats, scores: Floats, label_ids: Ints, iou_threshold: float, limit: int
) -> NDArray[np.intp]:
    """Class-aware greedy suppression: the indices that stay, best score first, at most `limit`.

    boxes (N, 4) xyxy, scores (N,), label_ids (N,). OpenCV's `NMSBoxesBatched` does the work.
    """
    if not len(boxes):
        return np.empty(0, np.intp)
    order = _best_first(scores)
    if iou_threshold >= 1:  # nothing overlaps more: OpenCV would still compare each with all
        return order[:limit]
    xywh = boxes[order].astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    xywh[:, :2] -= xywh[:, :2].min()  # OpenCV lays the classes side by side, and takes 0 for the smallest coordinate
    sorted_scores, sorted_ids = scores[order], label_ids[order].astype(np.int32)
    some = min(max(_SOME, 4 * limit), len(order))
    while True:  # who stays is decided by better ones alone: with enough of them the rest need not be looked at
        kept: Any = cv2.dnn.NMSBoxesBatched(
            cast(Any, xywh[:some]), cast(Any, sorted_scores[:some]), cast(Any, sorted_ids[:some]), 0.0, iou_threshold
        )  # its stubs ask for lists; it takes arrays, and faster
        kept_in_order = np.sort(np.asarray(kept, np.intp).reshape(-1))
        if len(kept_in_order) >= limit or some == len(order):
            return order[kept_in_order[:limit]]
        some = min(4 * some, len(order))


def _meaningful(found: Candidates) -> Candidates:
    """Without what a model that overflowed leaves: coordinates or scores that are no numbers, or beyond all pictures."""
    if not len(found.boxes):
        return found
    sane = (np.abs(found.boxes).max(axis=1) < _BEYOND) & np.isfinite(found.scores)
    return found if sane.all() else found.take(sane)


def cells(rows: int, columns: int) -> Floats:
    """(rows * columns, 2) x, y of the cells of a grid, row by row."""
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def corners(xywh: Floats) -> Floats:
    """(N, 4) centre x, y, width, height as xmin, ymin, xmax, ymax."""
    xywh = xywh.astype(np.float32, copy=False)  # half precision has whole pixels only, over 1024
    half = xywh[:, 2:] / 2
    xyxy: Floats = np.concatenate([xywh[:, :2] - half, xywh[:, :2] + half], axis=1)
    return xyxy


def _best_first(scores: Floats) -> NDArray[np.intp]:
    """The indices of the best `MAX_CANDIDATES`, best first."""
    if len(scores) <= MAX_CANDIDATES:
        return np.argsort(-scores, kind="stable")
    best = np.argpartition(-scores, MAX_CANDIDATES)[:MAX_CANDIDATES]
    return best[np.argsort(-scores[best], kind="stable")]


def allowed(label_ids: NDArray[Any], wanted: Sequence[int]) -> NDArray[np.bool_]:
    """Which of `label_ids` are among `wanted`."""
    mask: NDArray[np.bool_] = np.isin(label_ids, wanted)
    return mask


def detection_result(boxes: Floats, scores: Floats, label_ids: Ints, labels: Sequence[str]) -> DetectionResult:
    """The result of boxes (N, 4) xyxy in the original picture, in the order given."""
    ids = label_ids.tolist()
    return DetectionResult(
        boxes=tuple(map(tuple, np.round(boxes.astype(np.float64), 3).tolist())),  # 0.001 px: shorter JSON
        scores=tuple(np.round(scores.astype(np.float64), 6).tolist()),
        label_ids=tuple(ids),
        labels=tuple(label_of(labels, i) for i in ids),
    )
