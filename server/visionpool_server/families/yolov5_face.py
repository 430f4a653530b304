"""YOLOv5-face, exported with its boxes and landmarks decoded and without NMS (deepcam-cn/yolov5-face, FastDeploy's YOLOv5Face).

Output (N, anchors, 16): centre x, y, width, height, objectness, x and y of five landmarks (eyes, nose, corners of the mouth),
the score of the class; all in pixels of the prepared picture. A face's score is objectness times class.
"""

from __future__ import annotations

import numpy as np
from visionpool.errors import InvalidModel

from visionpool_server.families import FamilySpec, Options, Tensors, image_input
from visionpool_server.families.boxes import Candidates, Floats, corners
from visionpool_server.families.face_detector import FaceDetector
from visionpool_server.families.points import within_reach
from visionpool_server.imaging.recipe import Letterbox, Recipe

_USUAL_SIZE = (640, 640)
_COLUMNS = 16


class YoloV5Face(FaceDetector):
    fallback = Options(score_threshold=0.25, iou_threshold=0.5, max_detections=300)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size or _USUAL_SIZE
        self.recipe = spec.recipe or Recipe((Letterbox(size),))
        shapes = list(spec.outputs.values())
        if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] not in (None, _COLUMNS):
            raise InvalidModel(
                f"a YOLOv5-face model has one output (N, anchors, {_COLUMNS}); this one has {dict(spec.outputs)}",
                hint="export it with its boxes decoded",
            )
        (self._output,) = spec.outputs
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = spec.labels or ("face",)
        self.class_count = 1

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        output: Floats = outputs[self._output]
        rows = output[output[:, 4] > threshold]  # a score cannot exceed its objectness
        scores = rows[:, 4] * rows[:, 15]
        rows, scores = rows[scores > threshold], scores[scores > threshold]
        found = Candidates(corners(rows[:, :4]), scores, np.zeros(len(rows), np.int64), rows[:, 5:15])
        return found.take(within_reach(rows[:, 5:15]))
