"""A line of text on its way through the steps, and the result that all lines of a picture make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from visionpool.results import ClassifyResult, OCRResult

from visionpool_server.families.reading_order import reading_order
from visionpool_server.imaging.crops import Quad, is_vertical
from visionpool_server.imaging.recipe import Image
from visionpool_server.reading.times import Times


@dataclass(slots=True)
class Line:
    """`vertical`, `turned`: how it lay in the picture."""

    quad: Quad
    vertical: bool
    text: str = ""
    score: float = 0.0
    direction: tuple[int, float] | None = None  # class and score
    turned: bool = False
    times: Times = field(default_factory=Times)

    def says(self, seen: ClassifyResult, threshold: float) -> None:
        """Takes over what the classifier says of it."""
        self.direction = (seen.label_ids[0], seen.scores[0]) if seen.label_ids else (0, 0.0)
        self.turned = bool(seen.labels) and "180" in seen.labels[0] and seen.scores[0] > threshold


def lines_of(found: OCRResult) -> list[Line]:
    """The lines that a detector found."""
    quads = [np.array(box, np.float32).reshape(4, 2) for box in found.boxes]
    return [Line(quad, is_vertical(quad)) for quad in quads]


def whole(image: Image) -> Line:
    """All of a picture as one line."""
    right, bottom = image.shape[1] - 1, image.shape[0] - 1
    return Line(np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], np.float32), vertical=False)


def result_of(lines: Sequence[Line], least_score: float) -> OCRResult:
    """Those that score enough, in the order of reading."""
    kept = [line for line in lines if line.score >= least_score]
    quads = np.array([line.quad for line in kept], np.float32).reshape(-1, 4, 2)
    order = reading_order(quads, [line.vertical for line in kept], [line.turned for line in kept])
    kept = [kept[i] for i in order]
    directions = [line.direction for line in kept if line.direction is not None]
    return OCRResult(
        boxes=tuple(tuple(line.quad.astype(int).ravel().tolist()) for line in kept),
        text=tuple(line.text for line in kept),
        rec_scores=tuple(line.score for line in kept),
        cls_scores=tuple(score for _, score in directions),
        cls_labels=tuple(label for label, _ in directions),
    )
