"""How far two models answer alike, where nobody says what the right answer is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from visionpool.results import (
    ClassifyResult,
    DetectionResult,
    EmbeddingResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    OCRResult,
    Result,
    SegmentationResult,
)

from visionpool_server.evaluation.overlaps import overlaps
from visionpool_server.families import Tensors

Figures = dict[str, float]
Pairs = Sequence[tuple[Result, Result]]


def of_results(pairs: Pairs) -> Figures | None:
    """The figures for results of one type; None for a type that has none here: then compare the tensors.

    Whatever has boxes: `boxes_matched_50` and `_75`, the share of all boxes of both models that have a partner of the same
    class in the other with an overlap (IoU) of at least that, and `mean_score_difference` between partners; with keypoints or
    landmarks also `mean_point_distance` between those of partners, over the square root of their boxes' area. Classification:
    `top1_agreement`, `mean_score_difference` of the best class. Segmentation: `pixel_agreement`. Text: `same_text`, the share
    of pictures that both read alike, and `text_similarity`. Embeddings: `mean_cosine` between the two.
    """
    match pairs[0][0]:
        case ClassifyResult():
            return _classes(
                [(a, b) for a, b in pairs if isinstance(a, ClassifyResult) and isinstance(b, ClassifyResult)]
            )
        case SegmentationResult(label_map=(_, *_)):
            maps = [(a, b) for a, b in pairs if isinstance(a, SegmentationResult) and isinstance(b, SegmentationResult)]
            same = [np.mean(np.array(a.label_map) == np.array(b.label_map)) for a, b in maps]
            return {"pixel_agreement": float(np.mean(same))}
        case EmbeddingResult():
            both = [(a, b) for a, b in pairs if isinstance(a, EmbeddingResult) and isinstance(b, EmbeddingResult)]
            return {"mean_cosine": float(np.mean([_cosine(a, b) for a, b in both]))}
        case OCRResult() if any(isinstance(item, OCRResult) and item.text for pair in pairs for item in pair):
            return _texts([(a, b) for a, b in pairs if isinstance(a, OCRResult) and isinstance(b, OCRResult)])
    found = [(_objects(a), _objects(b)) for a, b in pairs]
    return _detections([(a, b) for a, b in found if a and b]) if all(a and b for a, b in found) else None


def of_tensors(pairs: Iterable[tuple[Tensors, Tensors]]) -> Figures:
    """`max_relative_error`: the largest difference over the largest value, of any output; `mean_relative_error`: the mean
    difference over the mean value. Outputs whose shapes differ (boxes found, say) count as 1."""
    largest, means = [0.0], []
    for before, after in pairs:
        for name, value in before.items():
            worst, mean = _relative(np.asarray(value, np.float64), np.asarray(after[name], np.float64))
            largest.append(worst)
            means.append(mean)
    return {"max_relative_error": max(largest), "mean_relative_error": float(np.mean(means)) if means else 0.0}


def _relative(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    if before.shape != after.shape:
        return 1.0, 1.0
    difference, size = np.abs(after - before), np.abs(before)
    if not difference.size or not difference.max():
        return 0.0, 0.0
    tiny = np.finfo(np.float64).tiny
    return float(difference.max() / max(size.max(), tiny)), float(difference.mean() / max(size.mean(), tiny))


@dataclass(frozen=True, slots=True)
class _Objects:
    """`points`: (objects, points of each, 2), where the model gives such."""

    boxes: NDArray[np.float64]  # (objects, 4) xyxy
    scores: Sequence[float]
    label_ids: NDArray[np.int64]
    points: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, boxes: Sequence[Sequence[float]], scores: Sequence[float], points: Sequence[Any] = ()) -> Self:
        """Of one class."""
        ids, count = np.zeros(len(boxes), np.int64), len(boxes)
        each = np.array(points, np.float64).reshape(count, -1, 2) if points else None
        return cls(np.array(boxes, np.float64).reshape(-1, 4), scores, ids, each)


def _objects(result: Result) -> _Objects | None:
    match result:
        case DetectionResult():
            return replace(_Objects.of(result.boxes, result.scores), label_ids=np.array(result.label_ids, np.int64))
        case FaceDetectionResult():
            return _Objects.of(result.boxes, result.scores, result.landmarks)
        case KeyPointDetectionResult():
            return _Objects.of(result.boxes, result.box_scores, result.keypoints)
        case OCRResult():  # of a detector: four corners each
            quads = np.array(result.boxes, np.float64).reshape(-1, 4, 2)
            return _Objects.of(np.hstack([quads.min(axis=1), quads.max(axis=1)]).tolist(), result.rec_scores)
    return None


def _detections(pairs: Sequence[tuple[_Objects, _Objects]]) -> Figures:
    boxes = sum(len(a.boxes) + len(b.boxes) for a, b in pairs)
    partners = [item for a, b in pairs for item in _partners(a, b)]
    shares = {
        f"boxes_matched_{round(limit * 100)}": 2 * sum(iou >= limit for iou, *_ in partners) / boxes if boxes else 1.0
        for limit in (0.5, 0.75)
    }
    close = [(difference, apart) for iou, difference, apart in partners if iou >= 0.5]
    figures = {**shares, "mean_score_difference": _mean([difference for difference, _ in close]), "boxes": boxes / 2}
    distances = [apart for _, apart in close if apart is not None]
    return figures | ({"mean_point_distance": _mean(distances)} if distances else {})


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _partners(a: _Objects, b: _Objects) -> list[tuple[float, float, float | None]]:
    """IoU, score difference and distance of points of each box of `a`, best first, with the free box of `b` of its class
    that overlaps most."""
    overlap = overlaps(a.boxes, b.boxes)
    overlap *= a.label_ids.reshape(-1, 1) == b.label_ids.reshape(1, -1)
    found = []
    for index in range(len(a.boxes)):
        other = int(overlap[index].argmax()) if len(b.boxes) else -1
        if other >= 0 and overlap[index, other] > 0:
            difference = abs(a.scores[index] - b.scores[other])
            found.append((float(overlap[index, other]), difference, _apart(a, b, index, other)))
            overlap[:, other] = 0
    return found


def _apart(a: _Objects, b: _Objects, index: int, other: int) -> float | None:
    """The mean distance of the points of two objects, over the square root of the area of the first's box."""
    if a.points is None or b.points is None:
        return None
    size = np.sqrt(np.prod(a.boxes[index, 2:] - a.boxes[index, :2]))
    distance = np.linalg.norm(a.points[index] - b.points[other], axis=1).mean()
    return float(distance / size) if size > 0 else None


def _cosine(a: EmbeddingResult, b: EmbeddingResult) -> float:
    one, other = np.array(a.embedding), np.array(b.embedding)
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / length) if length > 0 else 0.0


def _texts(pairs: Sequence[tuple[OCRResult, OCRResult]]) -> Figures:
    said = [(" ".join(a.text), " ".join(b.text)) for a, b in pairs]
    return {
        "same_text": float(np.mean([a == b for a, b in said])),
        "text_similarity": float(np.mean([SequenceMatcher(None, a, b, autojunk=False).ratio() for a, b in said])),
    }


def _classes(pairs: Sequence[tuple[ClassifyResult, ClassifyResult]]) -> Figures:
    best = [(a, b) for a, b in pairs if a.label_ids and b.label_ids]
    same = [(a, b) for a, b in best if a.label_ids[0] == b.label_ids[0]]
    differences = [abs(a.scores[0] - b.scores[0]) for a, b in same]
    return {
        "top1_agreement": len(same) / len(best) if best else 1.0,
        "mean_score_difference": float(np.mean(differences)) if differences else 0.0,
    }
