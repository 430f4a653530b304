"""YOLOv8/11-obb: boxes at any angle.

Output (N, 4 + classes + 1, anchors): centre x, y, width, height, class scores, and last the angle in radians, clockwise on the
screen; with NMS in the graph, and of YOLO26, (N, rows, 7): centre x, y, width, height, score, class, angle.

`rotated_boxes` are the corners in the order of Ultralytics' `xywhr2xyxyxyxy`, of the box as its `regularize_rboxes` states it
(angle in [0, pi/2)); `boxes` are what encloses them, cut at the picture's borders.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import Result

from visionpool_server.families import FamilySpec, Options, Tensors, image_input, numbered
from visionpool_server.families.boxes import CandidateDetector, Candidates, detection_result
from visionpool_server.families.rotated import corners_of, enclosing, non_maximum_suppression
from visionpool_server.families.yolo_rows import Layout, only_output, read, unit
from visionpool_server.imaging.recipe import Geometry, Letterbox, Recipe

_USUAL_SIZE = (1024, 1024)  # what Ultralytics trains on DOTA
_FALLBACK = Options(score_threshold=0.25, iou_threshold=0.7, max_detections=300)


class YoloObb(CandidateDetector):
    accepts = CandidateDetector.accepts | {"suppressed"}

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size or _USUAL_SIZE
        self.recipe = spec.recipe or Recipe((Letterbox(size),))
        self._output = only_output(spec, "a YOLO model of oriented boxes", "obb")
        self._layout: Layout = "final" if spec.settings.get("suppressed") else "v8"
        self.class_count = self._class_count(spec)
        self.labels = spec.labels or numbered(self.class_count)
        self.defaults = spec.defaults.over(_FALLBACK)
        if self._layout == "final":
            self.suppress_nothing()

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        output = outputs[self._output]
        classes = output.shape[0] - 5 if self._layout == "v8" else 0
        four, scores, label_ids, angle = read(output, self._layout, classes, threshold)
        four = four * unit(output, self._layout, self.recipe.output_size())
        rotated = np.concatenate([four, angle[:, :1]], axis=1)
        return Candidates(enclosing(corners_of(rotated)), scores, label_ids, rotated)

    def suppressed(self, found: Candidates, iou_threshold: float, limit: int) -> NDArray[np.intp]:
        assert found.more is not None
        return non_maximum_suppression(found.more, found.scores, found.label_ids, iou_threshold, limit)

    def result(
        self,
        found: Candidates,
        outputs: Tensors,  # noqa: ARG002
        geometry: Geometry,
        options: Options,  # noqa: ARG002  a seam's signature
    ) -> Result:
        assert found.more is not None
        corners = geometry.points_to_original(corners_of(found.more).reshape(-1, 2)).reshape(-1, 4, 2)
        boxes = geometry.clip(enclosing(corners))
        upright = detection_result(boxes, found.scores, found.label_ids, self.labels)
        rotated = np.round(corners.reshape(-1, 8).astype(np.float64), 3).tolist()
        return replace(upright, rotated_boxes=tuple(map(tuple, rotated)))

    def _class_count(self, spec: FamilySpec) -> int | None:
        _, middle, last = spec.outputs[self._output]
        if self._layout == "final":
            if last not in (None, 7):
                raise InvalidModel(f"rows of oriented boxes have 7 numbers, not {last}", hint="leave out suppressed")
            return len(spec.labels) or None  # the rows do not say
        if middle is not None and middle < 6:
            raise InvalidModel(f"{middle} values an anchor have no room for classes", hint="check the family")
        return None if middle is None else middle - 5
