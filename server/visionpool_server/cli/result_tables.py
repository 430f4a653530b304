"""Results for the eye, one table a picture: what `visionpool predict` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table
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

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_TEXTS = ("label", "text", "box", "embedding")  # all other columns hold numbers
_SEEN = 0.5  # the score from which a joint is counted
_FIRST = 6  # numbers of an embedding


def table(result: Result) -> Table:
    columns, rows = _content(result)
    shown = Table()
    for column in columns:
        shown.add_column(column, justify="left" if column in _TEXTS else "right")
    for row in rows:
        shown.add_row(*(escape(str(value)) for value in row))
    return shown


def _content(result: Result) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
    """The columns, and the rows."""
    match result:
        case DetectionResult():
            objects = zip(result.labels, result.scores, result.boxes, strict=True)
            return ("label", "score", *_SIDES), ((label, f"{score:.3f}", *_sides(box)) for label, score, box in objects)
        case ClassifyResult():
            classes = zip(result.labels, result.scores, strict=True)
            return ("label", "score"), ((label, f"{score:.4f}") for label, score in classes)
        case SegmentationResult():
            return ("label", "pixels", "share"), _areas(result)
        case OCRResult() if result.text:
            lines = zip(result.text, result.rec_scores, result.boxes, strict=True)
            return ("text", "score", "box"), (
                (text, f"{score:.3f}", " ".join(map(str, box))) for text, score, box in lines
            )
        case OCRResult():
            found = zip(result.rec_scores, result.boxes, strict=True)
            return ("score", "box"), ((f"{score:.3f}", " ".join(map(str, box))) for score, box in found)
        case KeyPointDetectionResult():
            return ("person", "score", "joints", *_SIDES), _persons(result)
        case FaceDetectionResult():
            faces = zip(result.scores, result.boxes, strict=True)
            return ("score", *_SIDES), ((f"{score:.3f}", *_sides(box)) for score, box in faces)
        case EmbeddingResult():
            first = " ".join(f"{value:.4f}" for value in result.embedding[:_FIRST])
            return ("numbers", "embedding"), [(len(result.embedding), f"{first} ...")]
    return (), ()


def _sides(box: Sequence[float]) -> list[str]:
    return [f"{value:.1f}" for value in box]


def _areas(result: SegmentationResult) -> Iterable[Sequence[Any]]:
    """Each class that is there, the largest first."""
    from visionpool_server.imaging.masks import map_of

    pixels = map_of(result.label_map_png) if result.label_map_png else np.array(result.label_map, np.int32)
    ids, counts = np.unique(pixels, return_counts=True)
    for i in np.argsort(-counts, kind="stable").tolist():
        label_id = int(ids[i])
        label = result.labels[label_id] if label_id < len(result.labels) else label_id
        yield label, int(counts[i]), f"{counts[i] / pixels.size:.1%}"


def _persons(result: KeyPointDetectionResult) -> Iterable[Sequence[Any]]:
    """`joints`: how many of a person's are seen."""
    for i, (score, box) in enumerate(zip(result.box_scores, result.boxes, strict=True)):
        scores = result.scores[i * result.num_joints : (i + 1) * result.num_joints]
        seen = sum(score >= _SEEN for score in scores) if scores else result.num_joints
        yield i + 1, f"{score:.3f}", f"{seen} of {result.num_joints}", *_sides(box)
