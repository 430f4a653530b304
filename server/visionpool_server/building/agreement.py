"""How far two models answer alike, where nobody says what the right answer is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from visionpool.results import ClassifyResult, DetectionResult, Result, SegmentationResult

from visionpool_server.families import Tensors

Figures = dict[str, float]
Pairs = Sequence[tuple[Result, Result]]


def of_results(pairs: Pairs) -> Figures | None:
    """The figures for results of one type; None for a type that has none here: then compare the tensors.

    Detection: `boxes_matched_50` and `_75`, the share of all boxes of both models that have a partner of the same class in
    the other with an overlap (IoU) of at least that, and `mean_score_difference` between partners. Classification:
    `top1_agreement`, `mean_score_difference` of the best class. Segmentation: `pixel_agreement`.
    """
    match pairs[0][0]:
        case DetectionResult():
            return _detections(
                [(a, b) for a, b in pairs if isinstance(a, DetectionResult) and isinstance(b, DetectionResult)]
            )
        case ClassifyResult():
            return _classes(
                [(a, b) for a, b in pairs if isinstance(a, ClassifyResult) and isinstance(b, ClassifyResult)]
            )
        case SegmentationResult(label_map=(_, *_)):
            maps = [(a, b) for a, b in pairs if isinstance(a, SegmentationResult) and isinstance(b, SegmentationResult)]
            same = [np.mean(np.array(a.label_map) == np.array(b.label_map)) for a, b in maps]
            return {"pixel_agreement": float(np.mean(same))}
    return None


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


def _detections(pairs: Sequence[tuple[DetectionResult, DetectionResult]]) -> Figures:
    boxes = sum(len(a.boxes) + len(b.boxes) for a, b in pairs)
    partners = [item for a, b in pairs for item in _partners(a, b)]
    shares = {
        f"boxes_matched_{round(limit * 100)}": 2 * sum(iou >= limit for iou, _ in partners) / boxes if boxes else 1.0
        for limit in (0.5, 0.75)
    }
    close = [difference for iou, difference in partners if iou >= 0.5]
    return {**shares, "mean_score_difference": float(np.mean(close)) if close else 0.0, "boxes": boxes / 2}


def _partners(a: DetectionResult, b: DetectionResult) -> list[tuple[float, float]]:
    """IoU and score difference of each box of `a`, best first, with the free box of `b` of its class that overlaps most."""
    overlap = _overlaps(np.array(a.boxes, np.float64).reshape(-1, 4), np.array(b.boxes, np.float64).reshape(-1, 4))
    overlap *= np.array(a.label_ids).reshape(-1, 1) == np.array(b.label_ids).reshape(1, -1)
    found = []
    for index in range(len(a.boxes)):
        other = int(overlap[index].argmax()) if len(b.boxes) else -1
        if other >= 0 and overlap[index, other] > 0:
            found.append((float(overlap[index, other]), abs(a.scores[index] - b.scores[other])))
            overlap[:, other] = 0
    return found


def _overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes (N, 4) and (M, 4), xyxy: (N, M)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    found: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def _classes(pairs: Sequence[tuple[ClassifyResult, ClassifyResult]]) -> Figures:
    best = [(a, b) for a, b in pairs if a.label_ids and b.label_ids]
    same = [(a, b) for a, b in best if a.label_ids[0] == b.label_ids[0]]
    differences = [abs(a.scores[0] - b.scores[0]) for a, b in same]
    return {
        "top1_agreement": len(same) / len(best) if best else 1.0,
        "mean_score_difference": float(np.mean(differences)) if differences else 0.0,
    }
