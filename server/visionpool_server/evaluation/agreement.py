"""How far two answers to the same picture agree, whatever is true: 1 wholly, 0 not at all, and in words where they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidSetting
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

from visionpool_server.evaluation.classes import named
from visionpool_server.evaluation.extra import needed
from visionpool_server.evaluation.judges.segmentation import label_map
from visionpool_server.evaluation.judges.text import spoken, where_apart
from visionpool_server.evaluation.overlaps import overlaps
from visionpool_server.evaluation.report import PictureDifference
from visionpool_server.families import label_of

_SAME_OBJECT = 0.5  # boxes that overlap so far mean the same
_FAINT = 0.5  # of the threshold: a box this strong still confirms one of the other model
_SHOWN = 4
_NOUNS = {"faces": "face", "keypoints": "person", "ocr": "line"}
_ALIKE = 0.995  # an agreement above it is no difference worth words


@dataclass(frozen=True, slots=True)
class Comparer:
    """`first` and `second`: the models' labels. Their classes are the same where they have the same names, or, where one of
    them has none, the same numbers. `threshold`: objects of a lower score are not compared."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    threshold: float = 0.25
    _names: dict[int, int] = field(default_factory=dict)  # the second's ids -> the first's

    def __post_init__(self) -> None:
        if named(self.first) and named(self.second):
            mine = {label: index for index, label in reversed(list(enumerate(self.first)))}
            own = enumerate(self.second)
            same = {i: i if self.first[i : i + 1] == (label,) else mine.get(label, -1 - i) for i, label in own}
            self._names.update(same)

    def compare(self, picture: str, first: Result, second: Result) -> PictureDifference:
        """Raises InvalidSetting for results of different or unknown kinds."""
        match first, second:
            case ClassifyResult(), ClassifyResult():
                agreement, what, details = self._classes(first, second)
            case SegmentationResult(), SegmentationResult():
                agreement, what, details = self._areas(first, second)
            case OCRResult(), OCRResult() if first.text or second.text or not (first.boxes or second.boxes):
                agreement, what, details = _texts(first, second)
            case EmbeddingResult(), EmbeddingResult():
                agreement, what, details = _directions(first, second)
            case _:
                one, other = self._objects(first), self._objects(second, translated=True)
                agreement, what, details = self._boxes(one, other, _NOUNS.get(first.type))
        return PictureDifference(picture, round(agreement, 6), what, details)

    def _mine(self, label_id: int) -> int:
        return self._names.get(label_id, label_id)

    def _label(self, label_id: int) -> str:
        """The name of one of the first's classes, or of one that only the second has."""
        return label_of(self.first, label_id) if label_id >= 0 else label_of(self.second, -1 - label_id)

    def _classes(self, first: ClassifyResult, second: ClassifyResult) -> tuple[float, str, dict[str, Any]]:
        """The share of the scores that both give alike: 1 less the total variation, of scores that sum to 1."""
        one = dict(zip(first.label_ids, first.scores, strict=True))
        other = {self._mine(i): score for i, score in zip(second.label_ids, second.scores, strict=True)}
        apart = sum(abs(one.get(i, 0.0) - other.get(i, 0.0)) for i in one.keys() | other.keys()) / 2
        agreement = max(0.0, 1.0 - apart)
        best, rival = next(iter(one), None), next(iter(other), None)
        said = [None if i is None else self._label(i) for i in (best, rival)]
        details = {"first": said[0], "second": said[1], "changed": best != rival}
        if best != rival:
            scores = (one[best] if best is not None else 0.0, other[rival] if rival is not None else 0.0)
            return agreement, f"{said[0]} {scores[0]:.2f} → {said[1]} {scores[1]:.2f}", details
        if best is None or agreement > _ALIKE:
            return agreement, "", details
        return agreement, f"{said[0]} {one[best]:.2f} → {other[best]:.2f}", details

    def _areas(self, first: SegmentationResult, second: SegmentationResult) -> tuple[float, str, dict[str, Any]]:
        """The mean over the classes of intersection over union."""
        one, other = label_map(first), label_map(second)
        if one.shape != other.shape:
            raise InvalidSetting(f"one model's mask has the shape {one.shape}, the other's {other.shape}")
        other = _translated(other, self._names)
        ious = {}
        for label_id in sorted({*np.unique(one).tolist(), *np.unique(other).tolist()}):
            both, either = (one == label_id) & (other == label_id), (one == label_id) | (other == label_id)
            ious[self._label(label_id)] = float(both.sum() / either.sum())
        agreement = float(np.mean(list(ious.values()))) if ious else 1.0
        changed = float((one != other).mean()) if one.size else 0.0
        worst = sorted(ious, key=lambda name: ious[name])[:_SHOWN]
        parts = ", ".join(f"{name} IoU {ious[name]:.2f}" for name in worst if ious[name] < _ALIKE)
        what = f"{changed:.1%} of the pixels: {parts}" if parts else ""
        return agreement, what, {"changed_pixels": changed, "iou": ious}

    def _objects(self, result: Result, *, translated: bool = False) -> _Boxes:
        match result:
            case DetectionResult():
                ids = [self._mine(i) if translated else i for i in result.label_ids]
                return _Boxes.of(result.boxes, result.scores, ids)
            case FaceDetectionResult():
                return _Boxes.of(result.boxes, result.scores, [0] * len(result.boxes))
            case KeyPointDetectionResult():
                return _Boxes.of(result.boxes, result.box_scores, [0] * len(result.boxes))
            case OCRResult():  # of a detector, which finds lines and reads none
                return _Boxes.of([_around(quad) for quad in result.boxes], result.rec_scores, [0] * len(result.boxes))
        raise InvalidSetting(f"answers of type {result.type!r} are not compared")

    def _boxes(self, one: _Boxes, other: _Boxes, noun: str | None) -> tuple[float, str, dict[str, Any]]:
        """The sum of the overlaps of objects that both see, over the number of objects that either sees.

        An object that one model gives just more than the threshold and the other just less is seen by both. `noun`: what all
        objects are, where they are of no class.
        """
        one, other = one.over(self.threshold * _FAINT), other.over(self.threshold * _FAINT)
        pairs = [p for p in _matched(one, other) if max(one.scores[p[0]], other.scores[p[1]]) >= self.threshold]
        alone = one.strong_beside([a for a, _, _ in pairs], self.threshold)
        added = other.strong_beside([b for _, b, _ in pairs], self.threshold)
        everything = len(pairs) + len(alone) + len(added)
        agreement = sum(iou for _, _, iou in pairs) / everything if everything else 1.0
        gaps = [float(abs(one.scores[a] - other.scores[b])) for a, b, _ in pairs]
        missing, extra = self._counted(alone, noun), self._counted(added, noun)
        details = {
            "matched": len(pairs),
            "missing": missing,
            "extra": extra,
            "mean_iou": float(np.mean([iou for *_, iou in pairs])) if pairs else None,
            "mean_score_difference": float(np.mean(gaps)) if gaps else None,
        }
        parts = [f"{word} {_listed(counts)}" for word, counts in (("missing", missing), ("extra", extra)) if counts]
        if not parts and agreement < _ALIKE:
            parts = [f"boxes overlap by {agreement:.2f}"]
        return agreement, ", ".join(parts), details

    def _counted(self, label_ids: Sequence[int], noun: str | None) -> dict[str, int]:
        return dict(Counter(noun or self._label(label_id) for label_id in label_ids).most_common())


@dataclass(frozen=True, slots=True)
class _Boxes:
    boxes: NDArray[np.float64]  # (n, 4) xyxy
    scores: NDArray[np.float64]
    label_ids: NDArray[np.int64]

    @classmethod
    def of(cls, boxes: Sequence[Sequence[float]], scores: Sequence[float], label_ids: Sequence[int]) -> _Boxes:
        return cls(
            np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64), np.array(label_ids, np.int64)
        )

    def over(self, threshold: float) -> _Boxes:
        kept = self.scores >= threshold
        return _Boxes(self.boxes[kept], self.scores[kept], self.label_ids[kept])

    def strong_beside(self, taken: Sequence[int], threshold: float) -> list[int]:
        """The classes of those over the threshold that are not taken."""
        strong = self.scores >= threshold
        strong[list(taken)] = False
        ids: list[int] = self.label_ids[strong].tolist()
        return ids


def _matched(one: _Boxes, other: _Boxes) -> list[tuple[int, int, float]]:
    """Pairs of the same class that overlap enough, best overlap first, each box once: (index, index, IoU)."""
    iou = overlaps(one.boxes, other.boxes)
    iou[one.label_ids[:, None] != other.label_ids[None]] = 0
    pairs = []
    rows, columns = np.nonzero(iou >= _SAME_OBJECT)
    free = np.ones(len(one.scores), bool), np.ones(len(other.scores), bool)
    for at in np.argsort(-iou[rows, columns], kind="stable").tolist():
        a, b = int(rows[at]), int(columns[at])
        if free[0][a] and free[1][b]:
            free[0][a] = free[1][b] = False
            pairs.append((a, b, float(iou[a, b])))
    return pairs


def _texts(first: OCRResult, second: OCRResult) -> tuple[float, str, dict[str, Any]]:
    needed("rapidfuzz")
    from rapidfuzz.distance import Levenshtein

    one, other = spoken(first), spoken(second)
    what = " → ".join(map(repr, where_apart(one, other))) if one != other else ""
    return Levenshtein.normalized_similarity(one, other), what, {"first": one, "second": other}


def _directions(first: EmbeddingResult, second: EmbeddingResult) -> tuple[float, str, dict[str, Any]]:
    """The cosine of the angle between the two, 0 for a right angle and beyond."""
    one, other = np.array(first.embedding, np.float64), np.array(second.embedding, np.float64)
    if one.shape != other.shape:
        raise InvalidSetting(f"one model's embedding has {one.size} numbers, the other's {other.size}")
    cosine = float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), np.finfo(np.float64).tiny))
    agreement = min(max(cosine, 0.0), 1.0)
    return agreement, f"cosine {cosine:.3f}" if agreement < _ALIKE else "", {"cosine": cosine}


def _around(quad: Sequence[int]) -> tuple[int, int, int, int]:
    """The upright box around four corners."""
    return min(quad[::2]), min(quad[1::2]), max(quad[::2]), max(quad[1::2])


def _translated(ids: NDArray[np.int32], names: dict[int, int]) -> NDArray[np.int32]:
    if not names or not ids.size:
        return ids
    table = np.array([names.get(i, i) for i in range(int(ids.max()) + 1)], np.int32)
    return table[ids]


def _listed(counts: dict[str, int]) -> str:
    shown = [name if count == 1 else f"{count} {name}" for name, count in list(counts.items())[:_SHOWN]]
    left = sum(list(counts.values())[_SHOWN:])
    return ", ".join([*shown, *([f"{left} more"] if left else [])])
