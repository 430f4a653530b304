"""PP-OCR's text detectors (DB, versions 1 to 5): where there is text, not yet which."""

from __future__ import annotations

import numpy as np
from visionpool.errors import InvalidModel
from visionpool.results import OCRResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    PictureFamily,
    Tensors,
    image_input,
)
from visionpool_server.families.db import Binarization, Floats, boxes_of
from visionpool_server.families.reading_order import reading_order
from visionpool_server.imaging.crops import is_vertical
from visionpool_server.imaging.recipe import Arithmetic, Geometry, Recipe, Resize
from visionpool_server.imaging.text_lines import LimitSide

_LEAST_SIDE = 3  # pixels of the original: what is no longer is dropped
# ImageNet's, in the order of RGB: PaddleOCR applies them to BGR as they stand, and its networks learned so.
ARITHMETIC = Arithmetic(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels="bgr")


class OcrDetection(PictureFamily):
    """Output (N, 1, H, W): how likely each pixel is text. `score_threshold` is the least mean of a box."""

    accepts = frozenset({"score_threshold", "map_threshold", "unclip_ratio"})

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size
        self.recipe = spec.recipe or Recipe((Resize(size) if size else LimitSide(),), ARITHMETIC)
        maps = [name for name, shape in spec.outputs.items() if len(shape) == 4 and shape[1] in (1, None)]
        if len(maps) != 1:
            raise InvalidModel(
                f"a text detector gives one map of (pictures, 1, height, width); this model gives {dict(spec.outputs)}"
            )
        self._output = maps[0]
        usual = Binarization()
        self._how = Binarization(
            threshold=spec.settings.get("map_threshold", usual.threshold),
            unclip_ratio=spec.settings.get("unclip_ratio", usual.unclip_ratio),
        )
        self.defaults = spec.defaults.over(Options(score_threshold=usual.box_threshold))
        self.labels: tuple[str, ...] = ()
        self.class_count: int | None = None

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> OCRResult:
        """Boxes in the order of reading, `rec_scores` their own, no text."""
        least = options.over(self.defaults).score_threshold
        assert least is not None
        how = Binarization(self._how.threshold, least, self._how.unclip_ratio)
        quads, scores = boxes_of(outputs[self._output][0].astype(np.float32, copy=False), how)
        quads = geometry.points_to_original(quads.reshape(-1, 2)).reshape(-1, 4, 2)
        quads, scores = _within(quads, scores, geometry)
        vertical = [is_vertical(quad) for quad in quads]
        order = reading_order(quads, vertical, [False] * len(quads))
        return OCRResult(
            boxes=tuple(map(tuple, quads[order].astype(int).reshape(-1, 8).tolist())),
            rec_scores=tuple(np.round(scores[order].astype(np.float64), 6).tolist()),
        )


def _within(quads: Floats, scores: Floats, geometry: Geometry) -> tuple[Floats, Floats]:
    """Whole pixels within the picture, clockwise from the top left, without those that are too thin."""
    edge = np.array([geometry.width, geometry.height], np.float32)
    quads = np.clip(np.round(quads), 0, edge)
    quads = np.array([_clockwise(quad) for quad in quads], np.float32).reshape(-1, 4, 2)
    quads = np.clip(quads, 0, edge - 1)
    widths = np.linalg.norm(quads[:, 0] - quads[:, 1], axis=1).astype(int)
    heights = np.linalg.norm(quads[:, 0] - quads[:, 3], axis=1).astype(int)
    kept = (widths > _LEAST_SIDE) & (heights > _LEAST_SIDE)
    return quads[kept], scores[kept]


def _clockwise(quad: Floats) -> Floats:
    """The top left corner has the least sum of x and y, the bottom right the largest; of the others the top right has the
    least y - x (PaddleOCR `predict_det.py`, `order_points_clockwise`)."""
    total = quad.sum(axis=1)
    first, third = int(total.argmin()), int(total.argmax())
    if first == third:
        return quad
    others = [i for i in range(4) if i not in (first, third)]
    second, fourth = sorted(others, key=lambda i: float(quad[i, 1] - quad[i, 0]))
    return quad[[first, second, third, fourth]]
