"""Which rows of a YOLO output count, and for which class. A leaf: it imports no family.

v5      (anchors, 5 + classes + more): objectness is the fifth
v8      (4 + classes + more, anchors)
final   (rows, 6 + more): what the graph has suppressed itself, or need not; the fifth is the score, the sixth the class

An anchor counts for its best class, as in Ultralytics' `predict`; under `EVALUATION_THRESHOLD` once for each class over the
threshold, as in its `val` (`multi_label=True`).

Coordinates are pixels of the prepared picture, in TensorFlow's exports shares of it (all of YOLOv5's, Ultralytics' TFLite:
`ultralytics/nn/autobackend.py`), and nothing but the numbers says which: `unit`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.families import FamilySpec
from visionpool_server.families.boxes import Floats, Ints

EVALUATION_THRESHOLD = 0.01
"""Under this score threshold a caller draws precision-recall curves."""

Anchors = NDArray[np.intp]
Layout = Literal["v5", "v8", "final"]
_MOST = 1e6  # no class has a higher number
_SHARES = 2.0  # boxes at the picture's border reach a little beyond 1; pixels go far over it, as anchors are all over the picture


def only_output(spec: FamilySpec, what: str, task: str) -> str:
    """The name of the one output of `what`. Raises InvalidModel for a model with others."""
    outputs = list(spec.outputs.items())
    if len(outputs) != 1 or len(outputs[0][1]) != 3:
        raise InvalidModel(
            f"{what} has one 3-D output; this one has {dict(spec.outputs)}", hint=f"export it for the task '{task}'"
        )
    return outputs[0][0]


def unit(output: Floats, layout: Layout, size: tuple[int, int] | None) -> Floats:
    """(4,): how many pixels a 1 of a box's numbers is: 1, or the sides of the prepared picture of this (height, width)."""
    x_and_y = output[:2] if layout == "v8" else output[:, :2] if layout == "v5" else output[:, :4]
    shares = size is not None and np.fmax.reduce(x_and_y, axis=None, initial=0) <= _SHARES
    return np.array((size[::-1] if shares and size else (1, 1)) * 2, np.float32)


def read(output: Floats, layout: Layout, classes: int, threshold: float) -> tuple[Floats, Floats, Ints, Floats]:
    """Of the rows over `threshold`: the numbers of their boxes (N, 4), scores (N,), classes (N,), and what follows (N, k)."""
    if layout == "v5":
        anchors, scores, label_ids = over_with_objectness(output, classes, threshold)
        return output[anchors, :4], scores, label_ids, output[anchors, 5 + classes :]
    if layout == "v8":
        anchors, scores, label_ids = over(output[4 : 4 + classes], threshold)
        return output[:4, anchors].T, scores, label_ids, output[4 + classes :, anchors].T
    rows = output[(output[:, 4] > threshold) & (output[:, 5] >= 0) & (output[:, 5] < _MOST)]
    return rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), rows[:, 6:]


def over(scores: NDArray[Any], threshold: float) -> tuple[Anchors, Floats, Ints]:
    """`scores` (classes, anchors): the anchors over `threshold`, the score and the class of each."""
    if threshold < EVALUATION_THRESHOLD:
        label_ids, anchors = np.nonzero(scores > threshold)
        return anchors, scores[label_ids, anchors], label_ids
    anchors = np.flatnonzero(scores.max(axis=0, initial=-np.inf) > threshold)
    columns = scores[:, anchors]
    label_ids = columns.argmax(axis=0) if len(columns) else np.empty(0, np.int64)
    return anchors, columns[label_ids, np.arange(len(anchors))], label_ids


def over_with_objectness(rows: Floats, classes: int, threshold: float) -> tuple[Anchors, Floats, Ints]:
    """`rows` (anchors, 5 + classes + more) with the objectness fifth: a class's score is the product of both."""
    likely = np.flatnonzero(rows[:, 4] > threshold)  # a score cannot exceed its objectness
    scores = rows[likely, 5 : 5 + classes].T * rows[likely, 4]
    chosen, found, label_ids = over(scores, threshold)
    return likely[chosen], found, label_ids
