"""YOLOv8/11-pose: a person and the joints, or any other thing of points.

Output (N, 4 + classes + joints * numbers, anchors): centre x, y, width, height, class scores, and for each joint x, y and
(where there are three numbers) how visible it is, after sigmoid; with NMS in the graph, and of YOLO26, (N, rows, 6 + joints *
numbers): corners, score, class, joints. The export's `kpt_shape` says [joints, numbers]; model.yaml may
say it as `postprocess.kpt_shape`. Without, it is the 17 joints of COCO with three numbers, where the output has as many.

`score_threshold` and the order of the result are about the person (`box_scores`); a joint's own score is how visible it is, and
there is none where the model gives two numbers. A joint may lie beside the picture.
"""

from __future__ import annotations

import numpy as np
from visionpool.errors import InvalidModel
from visionpool.results import KeyPointDetectionResult

from visionpool_server.families import FamilySpec, Options, Tensors, image_input, numbered
from visionpool_server.families.boxes import CandidateDetector, Candidates, Floats, corners, detection_result
from visionpool_server.families.points import rounded_points, within_reach
from visionpool_server.families.yolo_rows import Layout, only_output, read, unit
from visionpool_server.imaging.recipe import Geometry, Letterbox, Recipe

_USUAL_SIZE = (640, 640)
_COCO = (17, 3)
_FALLBACK = Options(score_threshold=0.25, iou_threshold=0.7, max_detections=300)


class YoloPose(CandidateDetector):
    accepts = CandidateDetector.accepts | {"kpt_shape", "suppressed"}

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size or _USUAL_SIZE
        self.recipe = spec.recipe or Recipe((Letterbox(size),))
        self._output = only_output(spec, "a YOLO pose model", "pose")
        self._joints, self._numbers = _joints(spec)
        self._layout: Layout = "final" if spec.settings.get("suppressed") else "v8"
        self.class_count = self._class_count(spec)
        self.labels = spec.labels or numbered(self.class_count)
        self.defaults = spec.defaults.over(_FALLBACK)
        if self._layout == "final":
            self.suppress_nothing()

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        output = outputs[self._output]
        four, scores, label_ids, more = read(output, self._layout, self.class_count or 0, threshold)
        pixels = unit(output, self._layout, self.recipe.output_size())
        four = four * pixels
        boxes = four if self._layout == "final" else corners(four)
        more = more * np.tile(np.append(pixels[:2], np.float32(1))[: self._numbers], self._joints)
        return Candidates(boxes, scores, label_ids, more).take(within_reach(more))

    def result(
        self,
        found: Candidates,
        outputs: Tensors,  # noqa: ARG002
        geometry: Geometry,
        options: Options,  # noqa: ARG002  a seam's signature
    ) -> KeyPointDetectionResult:
        assert found.more is not None
        joints: Floats = found.more.reshape(-1, self._numbers)
        persons = detection_result(geometry.to_original(found.boxes), found.scores, found.label_ids, self.labels)
        visible = np.round(joints[:, 2].astype(np.float64), 6).tolist() if self._numbers == 3 else []
        return KeyPointDetectionResult(
            keypoints=rounded_points(geometry.points_to_original(joints[:, :2])),
            scores=tuple(visible),
            num_joints=self._joints,
            boxes=persons.boxes,
            box_scores=persons.scores,
        )

    def _class_count(self, spec: FamilySpec) -> int | None:
        if self._layout == "final":
            width, around = spec.outputs[self._output][2], 5
        else:
            width, around = spec.outputs[self._output][1], 4
        if width is None:
            return len(spec.labels) or 1
        count = width - around - self._joints * self._numbers
        if count < 1 or (self._layout == "final" and count != 1):
            raise InvalidModel(
                f"{width} values a row have no room for {self._joints} joints of {self._numbers} numbers",
                hint="say postprocess.kpt_shape: [JOINTS, NUMBERS] in model.yaml",
            )
        return len(spec.labels) or None if self._layout == "final" else count


def _joints(spec: FamilySpec) -> tuple[int, int]:
    """How many joints, and how many numbers each has: 2 or 3."""
    joints, numbers = spec.settings.get("kpt_shape") or _COCO
    if joints < 1 or numbers not in (2, 3):
        raise InvalidModel(
            f"kpt_shape: [{joints}, {numbers}] makes no sense",
            hint="it is [joints, 2] (x, y) or [joints, 3] (visibility)",
        )
    return int(joints), int(numbers)
