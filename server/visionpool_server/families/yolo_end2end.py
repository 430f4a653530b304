"""YOLO detectors that suppress inside the graph, or need not: their rows are the boxes found, in the prepared picture.

rows     (N, rows, 6): x1, y1, x2, y2, score, class, filled up with zeros. Ultralytics' exports with `nms=True`, YOLOv10, YOLO26
four     `num_dets` (N, 1), `det_boxes` (N, rows, 4), `det_scores` and `det_classes` (N, rows), as TensorRT's EfficientNMS
         names them: `--end2end` of YOLOv6 and YOLOv7
packed   (rows, 7): picture, x1, y1, x2, y2, class, score, of all pictures: YOLOv7's `--end2end --max-wh`

Preprocessing: letterbox with grey 114, RGB, /255.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from visionpool.errors import InvalidModel

from visionpool_server.families import FamilySpec, Options, Tensors, image_input, join_rows, split_by_row
from visionpool_server.families.boxes import CandidateDetector, Candidates
from visionpool_server.families.yolo_rows import unit
from visionpool_server.imaging.recipe import Letterbox, Recipe

_USUAL_SIZE = (640, 640)
_FOUR = ("num_dets", "det_boxes", "det_scores", "det_classes")
_MOST = 1e6  # no class has a higher number


class YoloEnd2End(CandidateDetector):
    accepts = frozenset({"score_threshold", "max_detections", "classes"})
    fallback = Options(score_threshold=0.25, max_detections=300)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        self.recipe = spec.recipe or Recipe((Letterbox(fixed or spec.input_size or _USUAL_SIZE),))
        self._rows = _rows_output(spec)
        self._packed = self._rows is not None and len(spec.outputs[self._rows]) == 2
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = spec.labels
        self.class_count = len(spec.labels) or None  # the rows do not say

    def split(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        if not self._packed or self._rows is None:
            return split_by_row(outputs, count)
        rows = outputs[self._rows]
        return [{self._rows: rows[rows[:, 0] == picture]} for picture in range(count)]

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        if not self._packed or self._rows is None:
            return join_rows(parts)
        joined = np.concatenate([part[self._rows] for part in parts])
        joined[:, 0] = np.repeat(np.arange(len(parts)), [len(part[self._rows]) for part in parts])
        return {self._rows: joined}

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        if self._rows is None:
            count = max(0, int(outputs["num_dets"].reshape(-1)[0]))
            boxes, scores, classes = (outputs[name][:count] for name in _FOUR[1:])
        elif self._packed:
            rows = outputs[self._rows]
            boxes, scores, classes = rows[:, 1:5], rows[:, 6], rows[:, 5]
        else:
            rows = outputs[self._rows]
            boxes = rows[:, :4] * unit(rows, "final", self.recipe.output_size())
            scores, classes = rows[:, 4], rows[:, 5]
        over = (scores > threshold) & (classes >= 0) & (classes < _MOST)
        return Candidates(boxes[over], scores[over], classes[over].astype(np.int64))


def _rows_output(spec: FamilySpec) -> str | None:
    """The name of the output with rows, or None where there are the four."""
    if set(_FOUR) <= spec.outputs.keys():
        return None
    name, shape = next(iter(spec.outputs.items()), ("", ()))
    if len(spec.outputs) != 1 or (len(shape), *shape[-1:]) not in ((3, 6), (3, None), (2, 7)):
        raise InvalidModel(
            f"a YOLO with NMS inside has one output (pictures, rows, 6) or (rows, 7), or {', '.join(_FOUR)}; this model has "
            f"{dict(spec.outputs)}",
            hint="for one without NMS say family: yolov8 (or yolov5)",
        )
    return name
