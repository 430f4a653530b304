"""Detectors that PaddleDetection exports with NMS in the graph (PicoDet, PP-YOLOE ...).

Inputs: `image`, and where the graph wants them `scale_factor` (N, 2) and `im_shape` (N, 2), both y before x. Outputs: rows
`[class, score, xmin, ymin, xmax, ymax]` in original pixels for all pictures, and the count of rows of each picture
(PaddleDetection `deploy/README`). Mask R-CNN has a third one, (rows, H, W) of 0 and 1 in the original's size; of several pictures
in the largest's, the rest -1 (`ppdet/modeling/post_process.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import DetectionResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    PictureFamily,
    Tensors,
    class_ids,
    image_input,
)
from visionpool_server.families.boxes import allowed, detection_result
from visionpool_server.families.instance_masks import Pixels, cut_out, with_masks
from visionpool_server.families.paddle_inputs import recipe_said, side_inputs, side_tensors, without_offset
from visionpool_server.imaging.recipe import Geometry


class PaddleDetection(PictureFamily):
    fallback = Options(score_threshold=0.5, max_detections=300, compact=False)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, _ = image_input(spec)
        self.recipe = recipe_said(spec)
        self._side_inputs = side_inputs(spec, self.image_input)
        self._rows, self._counts, self._masks = _outputs(spec)
        masks = {"compact"} if self._masks else set()
        self.accepts = frozenset({"score_threshold", "max_detections", "classes"} | masks)
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = spec.labels
        self.class_count = len(spec.labels) or None  # the rows do not say

    def beside(self, geometry: Geometry) -> Tensors:
        return side_tensors(self._side_inputs, geometry)

    def split(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        """Rows of picture i follow those of picture i - 1; a runtime that pads gives each picture an equal share.

        The batch itself may be padded: it then holds more than `count` pictures.
        """
        rows, counts = outputs[self._rows], outputs[self._counts].reshape(-1)
        packed = int(counts.sum()) == len(rows)
        share = len(rows) // len(counts)
        starts = np.cumsum(counts) - counts if packed else np.arange(len(counts)) * share
        by_row = [self._rows, self._masks] if self._masks else [self._rows]
        return [
            {self._counts: np.asarray(n), **{name: outputs[name][start : start + n] for name in by_row}}
            for start, n in zip(starts[:count], counts[:count], strict=True)
        ]

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        joined: dict[str, Any] = {self._rows: np.concatenate, self._masks: np.concatenate, self._counts: np.stack}
        return {name: joined[name]([part[name] for part in parts]) for name in parts[0]}

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> DetectionResult:
        chosen = options.over(self.defaults)
        which = self._chosen(outputs[self._rows], chosen)
        rows = outputs[self._rows][which]
        boxes = without_offset(rows[:, 2:6], geometry)
        found = detection_result(boxes, rows[:, 1], rows[:, 0].astype(np.int64), self.labels)
        if not self._masks:
            return found
        masks = outputs[self._masks]

        def cover(i: int, pixels: Pixels) -> NDArray[Any]:
            return cut_out(masks[which[i]], pixels)

        return with_masks(found, cover, geometry, compact=bool(chosen.compact))

    def _chosen(self, rows: NDArray[Any], chosen: Options) -> NDArray[np.intp]:
        """The indices of the rows that were asked for, best score first."""
        wanted = (rows[:, 0] >= 0) & (rows[:, 1] > chosen.score_threshold) & np.isfinite(rows).all(axis=1)
        if chosen.classes:
            ids = np.where(wanted, rows[:, 0], -1).astype(np.int64)
            wanted &= allowed(ids, class_ids(chosen.classes, self.labels, self.class_count))
        which = np.flatnonzero(wanted)
        return which[np.argsort(-rows[which, 1], kind="stable")[: chosen.max_detections]]


def _outputs(spec: FamilySpec) -> tuple[str, str, str]:
    """The names of the rows, the counts and the masks, "" where there are none."""
    rows = [name for name, shape in spec.outputs.items() if len(shape) == 2 and shape[1] == 6]
    counts = [name for name, shape in spec.outputs.items() if len(shape) == 1]
    masks = [name for name, shape in spec.outputs.items() if len(shape) == 3]
    if len(rows) != 1 or len(counts) != 1 or len(masks) > 1:
        raise InvalidModel(
            f"a PaddleDetection export with NMS has outputs (rows, 6) and (pictures,); this one {dict(spec.outputs)}",
            hint="for raw PicoDet heads say family: picodet",
        )
    return rows[0], counts[0], masks[0] if masks else ""
