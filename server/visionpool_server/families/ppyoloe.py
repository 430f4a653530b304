"""PaddleDetection's detectors exported without NMS: PP-YOLOE and PP-YOLOE+, and PicoDet with `export_nms: False`.

`exclude_nms=True` gives boxes (N, anchors, 4) xyxy and scores (N, classes, anchors): PP-YOLOE has divided its boxes by
`scale_factor`, which then is an input; PicoDet has not. `exclude_post_process=True` gives one output (N, anchors, 4 + classes) in
the prepared picture (`ppdet/modeling/heads/ppyoloe_head.py` and `pico_head.py`, `post_process`).
"""

from __future__ import annotations

import numpy as np
from visionpool.errors import InvalidModel
from visionpool.results import Result

from visionpool_server.families import FamilySpec, Options, Tensors, image_input, numbered
from visionpool_server.families.boxes import CandidateDetector, Candidates, Floats, detection_result
from visionpool_server.families.paddle_inputs import SCALE, recipe_said, side_inputs, side_tensors, without_offset
from visionpool_server.imaging.recipe import Geometry


class PpYoloe(CandidateDetector):
    """Every class of an anchor over the threshold counts, as in PaddleDetection's `MultiClassNMS`."""

    fallback = Options(score_threshold=0.5, iou_threshold=0.7, max_detections=300)  # `configs/ppyoloe/_base_`

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, _ = image_input(spec)
        self.recipe = recipe_said(spec)
        self._side_inputs = side_inputs(spec, self.image_input)
        self._boxes, self._scores = _outputs(spec)
        self.defaults = spec.defaults.over(self.fallback)
        self.class_count = _class_count(spec, self._boxes, self._scores)
        self.labels = spec.labels or numbered(self.class_count)

    def beside(self, geometry: Geometry) -> Tensors:
        return side_tensors(self._side_inputs, geometry)

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        boxes, scores = self._parts(outputs)
        anchors, label_ids = np.nonzero(scores > threshold)
        return Candidates(boxes[anchors], scores[anchors, label_ids], label_ids)

    def _parts(self, outputs: Tensors) -> tuple[Floats, Floats]:
        """Boxes (anchors, 4) and scores (anchors, classes)."""
        boxes = outputs[self._boxes]
        if self._scores is None:
            return boxes[:, :4], boxes[:, 4:]
        scores = outputs[self._scores]
        return boxes[:, :4], scores.T if scores.shape[1] == len(boxes) else scores

    def result(self, found: Candidates, outputs: Tensors, geometry: Geometry, options: Options) -> Result:  # noqa: ARG002  overrides
        original = without_offset if SCALE in self._side_inputs else _to_original
        return detection_result(original(found.boxes, geometry), found.scores, found.label_ids, self.labels)


def _to_original(boxes: Floats, geometry: Geometry) -> Floats:
    return geometry.to_original(boxes)


def _outputs(spec: FamilySpec) -> tuple[str, str | None]:
    """The names of the boxes and of the scores; None where one output has both."""
    names = list(spec.outputs)
    boxes = [name for name, shape in spec.outputs.items() if len(shape) == 3 and shape[2] in (4, None)]
    ranked = all(len(shape) == 3 for shape in spec.outputs.values())
    if ranked and len(names) == 1:
        return names[0], None
    if ranked and len(names) == 2 and boxes:
        return boxes[0], next(name for name in names if name != boxes[0])
    raise InvalidModel(
        f"a PP-YOLOE without NMS has outputs (pictures, anchors, 4) and (pictures, classes, anchors), or one of 4 + classes; "
        f"this model has {dict(spec.outputs)}",
        hint="for an export that ends in NMS say family: paddle_detection; for raw PicoDet heads, family: picodet",
    )


def _class_count(spec: FamilySpec, boxes: str, scores: str | None) -> int | None:
    anchors, width = spec.outputs[boxes][1:]
    if scores is None:
        return None if width is None else width - 4
    first, second = spec.outputs[scores][1:]
    if anchors is None or second == anchors:
        return first
    return second if first == anchors else None
