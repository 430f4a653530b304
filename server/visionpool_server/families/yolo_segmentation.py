"""YOLO with a mask to each object: YOLOv8/11-seg and YOLOv5-seg.

Two outputs: rows, as the detectors of the same generation have them with mask coefficients behind the classes
(v8: (N, 4 + classes + masks, anchors); v5: (N, anchors, 5 + classes + masks); with NMS in the graph, and of YOLO26,
(N, rows, 6 + masks)), and prototypes (N, masks, H / 4, W / 4), of TensorFlow's exports (N, H / 4, W / 4, masks). An
object's mask is the sum of the prototypes, each times its coefficient (YOLACT, arXiv:1904.02689), over 0: a sigmoid over 0.5.

Ultralytics has two ways from there to a mask. This is `process_mask_native` (`retina_masks=True`): sampled at the original
picture's pixels, then thresholded, then cropped to the box. Where the letterbox's margin is no whole number of prototype
cells, Ultralytics rounds it to one; here it stays exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import Result

from visionpool_server.families import FamilySpec, Options, Tensors, image_input, numbered, picture_shape
from visionpool_server.families.boxes import CandidateDetector, Candidates, corners, detection_result
from visionpool_server.families.instance_masks import Pixels, cells_under, over_picture, sampled, with_masks
from visionpool_server.families.yolo_rows import Layout, read, unit
from visionpool_server.imaging.recipe import Geometry, Letterbox, Recipe

_USUAL_SIZE = (640, 640)
_STRIDE = 4  # pixels of the prepared picture to a cell of a prototype, in all of Ultralytics' models
_FALLBACK: dict[Layout, Options] = {
    "v5": Options(score_threshold=0.25, iou_threshold=0.45, max_detections=300, compact=False),
    "v8": Options(score_threshold=0.25, iou_threshold=0.7, max_detections=300, compact=False),
    "final": Options(score_threshold=0.25, max_detections=300, compact=False),
}


class YoloSegmentation(CandidateDetector):
    accepts = CandidateDetector.accepts | {"compact", "suppressed"}

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size or _USUAL_SIZE
        self.recipe = spec.recipe or Recipe((Letterbox(size),))
        self._rows, self._prototypes = _outputs(spec)
        self._channels_last = any(picture_shape(each).layout == "NHWC" for each in spec.inputs.values())
        coefficients = spec.outputs[self._prototypes][3 if self._channels_last else 1]
        if coefficients is None:
            raise InvalidModel("the export leaves open how many mask prototypes it has", hint="export it again")
        self._layout = _layout(spec, self._rows, coefficients)
        self.class_count = _class_count(spec, self._rows, self._layout, coefficients)
        self.labels = spec.labels or numbered(self.class_count)
        self.defaults = spec.defaults.over(_FALLBACK[self._layout])
        if self._layout == "final":
            self.suppress_nothing()

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        rows = outputs[self._rows]
        four, scores, label_ids, more = read(rows, self._layout, self.class_count or 0, threshold)
        four = four * unit(rows, self._layout, self.recipe.output_size())
        return Candidates(four if self._layout == "final" else corners(four), scores, label_ids, more)

    def result(self, found: Candidates, outputs: Tensors, geometry: Geometry, options: Options) -> Result:
        boxes = detection_result(geometry.to_original(found.boxes), found.scores, found.label_ids, self.labels)
        prototypes, coefficients = outputs[self._prototypes], found.more
        assert coefficients is not None
        prototypes = prototypes.transpose(2, 0, 1) if self._channels_last else prototypes

        def cover(i: int, pixels: Pixels) -> NDArray[Any]:
            x, y = over_picture(pixels, geometry, _STRIDE)
            rows, columns = cells_under(y, prototypes.shape[1]), cells_under(x, prototypes.shape[2])
            logits = np.tensordot(coefficients[i], prototypes[:, rows, columns], axes=1)
            covered: NDArray[Any] = sampled(logits, x - columns.start, y - rows.start) > 0
            return covered

        return with_masks(boxes, cover, geometry, compact=bool(options.compact))


def _outputs(spec: FamilySpec) -> tuple[str, str]:
    """The names of the rows and of the prototypes."""
    rows = [name for name, shape in spec.outputs.items() if len(shape) == 3]
    prototypes = [name for name, shape in spec.outputs.items() if len(shape) == 4]
    if len(rows) != 1 or len(prototypes) != 1 or len(spec.outputs) != 2:
        raise InvalidModel(
            f"a YOLO segmenter has a 3-D output of rows and a 4-D one of prototypes; this model has {dict(spec.outputs)}",
            hint="export it for the task 'segment'",
        )
    return rows[0], prototypes[0]


def _layout(spec: FamilySpec, rows: str, coefficients: int) -> Layout:
    """By what the files say, then by the classes where they are named, else by which side is the longer, the anchors'."""
    if spec.settings.get("suppressed"):
        return "final"
    _, middle, last = spec.outputs[rows]
    if spec.labels:
        v8, v5 = middle == 4 + len(spec.labels) + coefficients, last == 5 + len(spec.labels) + coefficients
        if v5 != v8:
            return "v5" if v5 else "v8"
    if middle is None or last is None:
        return "v5" if middle is None else "v8"
    return "v5" if middle > last else "v8"


def _class_count(spec: FamilySpec, rows: str, layout: Layout, coefficients: int) -> int | None:
    if layout == "final":
        return len(spec.labels) or None  # the rows do not say
    columns = spec.outputs[rows][2 if layout == "v5" else 1]
    count = 0 if columns is None else columns - (5 if layout == "v5" else 4) - coefficients
    if count < 1:
        raise InvalidModel(f"output {rows!r} has no room for classes beside {coefficients} mask coefficients")
    return count
