"""YOLO detectors: YOLOv5 (also v6 and v7, which export alike) and YOLOv8/11. Boxes only, no suppression in the graph.

Preprocessing: letterbox with grey 114, RGB, /255 (ultralytics/yolov5 `utils/augmentations.py`, tag v7.0).
"""

from __future__ import annotations

from visionpool.errors import InvalidModel

from visionpool_server.families import (
    FamilySpec,
    Options,
    Tensors,
    image_input,
    numbered,
)
from visionpool_server.families.boxes import CandidateDetector, Candidates, Floats, Ints, corners
from visionpool_server.families.yolo_rows import Layout, over, over_with_objectness, unit
from visionpool_server.imaging.recipe import Letterbox, Recipe

_USUAL_SIZE = (640, 640)


class _Yolo(CandidateDetector):
    """What both layouts share."""

    fallback: Options
    layout: Layout

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size or _USUAL_SIZE
        self.recipe = spec.recipe or Recipe((Letterbox(size),))
        self._output = _only_output(spec)
        self.defaults = spec.defaults.over(self.fallback)
        self.class_count = self._class_count(spec.outputs[self._output])
        self.labels = spec.labels or numbered(self.class_count)

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        output = outputs[self._output]
        xywh, scores, label_ids = self._over(output, threshold)
        xywh = xywh * unit(output, self.layout, self.recipe.output_size())
        return Candidates(corners(xywh), scores, label_ids)

    def _over(self, output: Floats, threshold: float) -> tuple[Floats, Floats, Ints]:
        """Boxes (N, 4) centre x, y, width, height as the graph counts them, scores (N,) over `threshold`, ids (N,)."""
        raise NotImplementedError

    def _class_count(self, shape: tuple[int | None, ...]) -> int | None:
        raise NotImplementedError


class YoloV5(_Yolo):
    """Output (N, anchors, 5 + classes): centre x, y, width, height, objectness, class scores; all after sigmoid."""

    fallback = Options(score_threshold=0.25, iou_threshold=0.45, max_detections=300)
    layout = "v5"

    def _over(self, output: Floats, threshold: float) -> tuple[Floats, Floats, Ints]:
        anchors, scores, label_ids = over_with_objectness(output, output.shape[1] - 5, threshold)
        return output[anchors, :4], scores, label_ids

    def _class_count(self, shape: tuple[int | None, ...]) -> int | None:
        return None if shape[2] is None else shape[2] - 5


class YoloV8(_Yolo):
    """Output (N, 4 + classes, anchors): centre x, y, width, height, class scores after sigmoid; no objectness."""

    fallback = Options(score_threshold=0.25, iou_threshold=0.7, max_detections=300)
    layout = "v8"

    def _over(self, output: Floats, threshold: float) -> tuple[Floats, Floats, Ints]:
        anchors, scores, label_ids = over(output[4:], threshold)
        return output[:4, anchors].T, scores, label_ids

    def _class_count(self, shape: tuple[int | None, ...]) -> int | None:
        return None if shape[1] is None else shape[1] - 4


def _only_output(spec: FamilySpec) -> str:
    """The rows. YOLOv7's `--grid`, and YOLOv5 before 6.1, leave the raw heads beside them."""
    ranked = [name for name, shape in spec.outputs.items() if len(shape) == 3]
    heads = [name for name, shape in spec.outputs.items() if len(shape) == 5]
    if len(ranked) != 1 or len(heads) + 1 != len(spec.outputs):
        raw = len(heads) == len(spec.outputs)
        raise InvalidModel(
            f"a YOLO detector has one 3-D output; this model has {dict(spec.outputs)}",
            hint="these are raw heads: export it with its grid (export.py --grid)"
            if raw
            else "export it without NMS, for the task 'detect'",
        )
    return ranked[0]
