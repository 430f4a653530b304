"""SOLOv2 as PaddleDetection exports it: masks without boxes (arXiv:2003.10152), one picture at a time.

Inputs as PaddleDetection's others have. Outputs in this order (`deploy/python/infer.py`, `DetectorSOLOv2`): the number of objects
(1,), labels (n,), scores (n,), and masks (n, H, W) of 0 and 1 in the original's size; -1 where nothing is found. A box is what
encloses its mask.
"""

from __future__ import annotations

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
from visionpool_server.families.paddle_inputs import recipe_said, side_inputs, side_tensors
from visionpool_server.imaging.recipe import Geometry


class SoloV2(PictureFamily):
    one_at_a_time = True  # the outputs of several pictures could not be told apart
    accepts = frozenset({"score_threshold", "max_detections", "classes", "compact"})
    fallback = Options(score_threshold=0.5, max_detections=100, compact=False)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, _ = image_input(spec)
        self.recipe = recipe_said(spec)
        self._side_inputs = side_inputs(spec, self.image_input)
        self._labels, self._scores, self._masks = _outputs(spec)
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = spec.labels
        self.class_count = len(spec.labels) or None  # the outputs do not say

    def beside(self, geometry: Geometry) -> Tensors:
        return side_tensors(self._side_inputs, geometry)

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> DetectionResult:
        chosen = options.over(self.defaults)
        assert chosen.score_threshold is not None
        scores = outputs[self._scores].reshape(-1).astype(np.float32)
        label_ids = outputs[self._labels].reshape(-1).astype(np.int64)
        wanted = (scores > chosen.score_threshold) & np.isfinite(scores) & (label_ids >= 0)
        if chosen.classes:
            wanted &= allowed(label_ids, class_ids(chosen.classes, self.labels, self.class_count))
        which = np.flatnonzero(wanted)
        which = which[np.argsort(-scores[which], kind="stable")[: chosen.max_detections]]
        masks = [outputs[self._masks][i, : geometry.height, : geometry.width] for i in which]
        boxes = np.array([_around(mask) for mask in masks], np.float32).reshape(-1, 4)
        found = detection_result(boxes, scores[which], label_ids[which], self.labels)

        def cover(i: int, pixels: Pixels) -> NDArray[Any]:
            return cut_out(masks[i], pixels)

        return with_masks(found, cover, geometry, compact=bool(chosen.compact))


def _around(mask: NDArray[Any]) -> tuple[int, int, int, int]:
    """xyxy of the box around what a mask covers; without an area where that is nothing."""
    covered = mask > 0
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else (0, 0, 0, 0)


def _outputs(spec: FamilySpec) -> tuple[str, str, str]:
    """The names of the labels, the scores and the masks."""
    names = list(spec.outputs)
    ranks = [len(spec.outputs[name]) for name in names]
    if ranks != [1, 1, 1, 3]:
        raise InvalidModel(
            f"SOLOv2 has the outputs count (1,), labels (n,), scores (n,), masks (n, H, W); this model has {dict(spec.outputs)}",
            hint="check family: in model.yaml",
        )
    return names[1], names[2], names[3]
