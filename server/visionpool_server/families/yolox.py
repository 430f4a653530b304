"""YOLOX (Megvii, arXiv:2107.08430): one anchor for each cell of three grids, objectness and class scores after sigmoid.

`tools/export_onnx.py` leaves the boxes relative to their cells, `--decode_in_inference` has them in pixels: the shapes are
the same. `postprocess: {decoded: true}` (or false) in model.yaml says which; where nothing does, each picture's own numbers
do, see `_in_pixels`. Preprocessing (`yolox/data/data_augment.py`, `preproc`, since v0.1.1): resized in proportion with sides
rounded down, grey 114 to the right and below, BGR from 0 to 255.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.families import FamilySpec, Options, Tensors, image_input, numbered
from visionpool_server.families.boxes import CandidateDetector, Candidates, Floats, cells, corners
from visionpool_server.imaging.recipe import Arithmetic, Pad, Recipe, Resize

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))  # the second of models with a P6 level
_USUAL_SIZE = (640, 640)
_RAW_PIXELS = Arithmetic(1.0, channels="bgr")


class YoloX(CandidateDetector):
    """Output (N, anchors, 5 + classes): centre x, y, width, height, objectness, class scores."""

    accepts = CandidateDetector.accepts | {"decoded"}
    fallback = Options(score_threshold=0.3, iou_threshold=0.45, max_detections=300)  # `demo/ONNXRuntime`

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        size = fixed or spec.input_size or _USUAL_SIZE
        steps = (Resize(size, keep_ratio=True, rounding="down"), Pad(size, 114))
        self.recipe = spec.recipe or Recipe(steps, _RAW_PIXELS)
        self._output, anchors = _output(spec)
        self._corners, self._strides = _grid(size, anchors)  # (anchors, 2) x, y and (anchors, 1), both in pixels
        self._right = self._corners[:, 0] >= size[1] / 2  # the cells of the picture's right half
        self._quarter = size[1] / 4
        self._decoded: bool | None = spec.settings.get("decoded")
        self.defaults = spec.defaults.over(self.fallback)
        last = spec.outputs[self._output][2]
        self.class_count = None if last is None else last - 5
        self.labels = spec.labels or numbered(self.class_count)

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        output = outputs[self._output]
        decoded = self._in_pixels(output) if self._decoded is None else self._decoded
        which = np.flatnonzero(output[:, 4] > threshold)  # a score cannot exceed its objectness
        rows = output[which]
        label_ids = rows[:, 5:].argmax(axis=1)
        scores = rows[:, 4] * rows[np.arange(len(rows)), 5 + label_ids]
        over = scores > threshold
        xywh = rows[over, :4] if decoded else self._to_pixels(rows[over, :4], which[over])
        return Candidates(corners(xywh), scores[over], label_ids[over])

    def _in_pixels(self, output: Floats) -> bool:
        """Whether the boxes are decoded: those of the right half's cells then lie to the right, most of them past the first
        quarter of the picture, where undecoded ones are a few cells wide at most, wherever their cell is."""
        past = int(np.count_nonzero(output[self._right, 0] > self._quarter))
        return 2 * past > int(np.count_nonzero(self._right))

    def _to_pixels(self, raw: Floats, which: NDArray[np.intp]) -> Floats:
        strides = self._strides[which]
        xywh: Floats = np.hstack([raw[:, :2] * strides + self._corners[which], np.exp(raw[:, 2:]) * strides])
        return xywh


def _output(spec: FamilySpec) -> tuple[str, int | None]:
    """Its name, and its count of anchors where the file fixes it."""
    name, shape = next(iter(spec.outputs.items()), ("", ()))
    if len(spec.outputs) != 1 or len(shape) != 3:
        raise InvalidModel(
            f"a YOLOX has one output (pictures, anchors, 5 + classes); this model has {dict(spec.outputs)}",
            hint="export it with tools/export_onnx.py of YOLOX, without NMS",
        )
    return name, shape[1]


def _grid(size: tuple[int, int], anchors: int | None) -> tuple[Floats, Floats]:
    """The cells' corners (anchors, 2) x, y and strides (anchors, 1): the finest grid first, each row by row."""
    for strides in _STRIDES:
        grids = [cells(size[0] // stride, size[1] // stride) * stride for stride in strides]
        if anchors in (None, sum(map(len, grids))):
            steps = [np.full((len(grid), 1), stride, np.float32) for grid, stride in zip(grids, strides, strict=True)]
            return np.concatenate(grids), np.concatenate(steps)
    raise InvalidModel(
        f"a YOLOX has one anchor for each cell of strides {_STRIDES[0]}; {size[0]}x{size[1]} pixels give another count than "
        f"the {anchors} of this model",
        hint="say family: yolov5 for three anchors a cell, or the input_size that it was exported for",
    )
