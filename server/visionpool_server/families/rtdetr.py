"""Detection transformers: RT-DETR and its kin (D-FINE, DEIM, RF-DETR, DETR). Each query finds one object: no suppression.

Four layouts, known by the outputs' names and shapes:

rows    (N, queries, 4 + classes): Ultralytics. Boxes as shares of the picture, scores after sigmoid; a query counts for its
        best class (`ultralytics/models/rtdetr/predict.py`)
found   `labels` (N, k), `boxes` (N, k, 4) in pixels, `scores` (N, k), beside an input `orig_target_sizes` (N, 2) of width and
        height: `tools/export_onnx.py` of RT-DETR, D-FINE and DEIM
raw     class logits (N, queries, classes) and boxes (N, queries, 4) as shares: `pred_logits` and `pred_boxes` of
        transformers and DETR, `labels` and `dets` of RF-DETR, PaddleDetection's `exclude_post_process`. A query counts for
        each of its classes, sigmoid (`RTDETRPostProcessor`); with `activation: softmax` for its best, the last being none
        (DETR)

Preprocessing: resized without keeping the ratio, RGB, /255; RF-DETR with ImageNet's mean and std.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import Result

from visionpool_server.families import FamilySpec, Options, Prepared, Tensors, image_input, numbered
from visionpool_server.families.boxes import CandidateDetector, Candidates, Floats, corners, detection_result
from visionpool_server.families.scores import Activation, activation_of, as_scores, still_to_do
from visionpool_server.imaging.recipe import Arithmetic, Decoded, Geometry, Recipe, Resize
from visionpool_server.imaging.unprepared import size_of

_USUAL_SIZE = (640, 640)
_SIZES = "orig_target_sizes"
_FOUND = ("labels", "boxes", "scores")
_RAW = (("logits", "pred_boxes"), ("pred_logits", "pred_boxes"), ("labels", "dets"))
_RF_DETR = Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_QUERIES = 300  # RT-DETR's `num_top_queries`
_MOST = 1e6  # no class has a higher number


@dataclass(frozen=True, slots=True)
class _Layout:
    """`names`: of the outputs, as the module says; `activation` None: not known of this layout."""

    kind: Literal["rows", "found", "raw"]
    names: tuple[str, ...]
    fallback: Options
    activation: Activation | None = None


class RtDetr(CandidateDetector):
    activation: Activation | None
    accepts = frozenset({"score_threshold", "max_detections", "classes", "activation"})

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        self._size_input = _size_input(spec, self.image_input)
        self._layout = _layout(spec)
        names, ending = self._layout.names, spec.endings.get(self._layout.names[0], "")
        said: Activation | None = spec.settings.get("activation")
        self._exclusive = self._layout.kind == "raw" and "softmax" in (
            said,
            ending,
        )  # a query is of one class, and the last class is none
        self.activation = self._layout.activation or still_to_do(said, ending, "sigmoid")
        arithmetic = _RF_DETR if names == ("labels", "dets") else Arithmetic()
        self.recipe = spec.recipe or Recipe((Resize(fixed or spec.input_size or _USUAL_SIZE),), arithmetic)
        self._dtype = np.dtype(spec.dtypes.get(_SIZES, "int64"))
        self.defaults = spec.defaults.over(self._layout.fallback)
        self.class_count = self._classes(spec)
        self.labels = spec.labels or numbered(self.class_count)

    def _classes(self, spec: FamilySpec) -> int | None:
        if self._layout.kind == "found":
            return len(spec.labels) or None
        width = spec.outputs[self._layout.names[0]][2]
        extra = 4 if self._layout.kind == "rows" else int(self._exclusive)
        return None if width is None else width - extra

    def prepare(self, image: Decoded, geometry: Geometry | None = None) -> Prepared:
        prepared, geometry = self.recipe.prepare(image, geometry)
        tensors: dict[str, NDArray[Any]] = {self.image_input: prepared}
        if self._size_input:  # of the prepared picture: its geometry leads back to the original, whatever the steps are
            height, width = size_of(prepared)
            tensors[_SIZES] = np.array([width, height], self._dtype)
        return Prepared(tensors, geometry)

    def candidates(self, outputs: Tensors, threshold: float) -> Candidates:
        names = self._layout.names
        if self._layout.kind == "found":
            label_ids, boxes, scores = (outputs[name] for name in names)
            over = (scores > threshold) & (label_ids >= 0) & (label_ids < _MOST)
            return Candidates(boxes[over], scores[over], label_ids[over].astype(np.int64))
        if self._layout.kind == "rows":
            rows = outputs[names[0]]
            return _best_classes(rows[:, :4], rows[:, 4:], threshold)
        values = outputs[names[0]]
        activation = self.activation or activation_of(values)
        scores, shares = as_scores(values, activation), outputs[names[1]]
        if self._exclusive:
            return _best_classes(shares, scores[:, :-1], threshold)
        queries, label_ids = np.nonzero(scores > threshold)
        return Candidates(corners(shares[queries]), scores[queries, label_ids], label_ids)

    def result(self, found: Candidates, outputs: Tensors, geometry: Geometry, options: Options) -> Result:  # noqa: ARG002  overrides
        boxes = found.boxes
        if self._layout.kind != "found":
            boxes = boxes * np.array(self._size(geometry) * 2, np.float32)
        return detection_result(geometry.to_original(boxes), found.scores, found.label_ids, self.labels)

    def _size(self, geometry: Geometry) -> tuple[float, float]:
        """(width, height) of the prepared picture, which the boxes are shares of."""
        if size := self.recipe.output_size():
            return size[1], size[0]
        return geometry.width * geometry.scale_x, geometry.height * geometry.scale_y


def _best_classes(shares: Floats, scores: Floats, threshold: float) -> Candidates:
    """Each query's best class, where it scores over `threshold`. shares (N, 4) centre x, y, width, height."""
    label_ids = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), label_ids]
    over = best > threshold
    return Candidates(corners(shares[over]), best[over], label_ids[over])


def _layout(spec: FamilySpec) -> _Layout:
    names = spec.outputs.keys()
    if names >= set(_FOUND):
        return _Layout("found", _FOUND, Options(score_threshold=0.6, max_detections=_QUERIES), "none")
    usual = Options(score_threshold=0.5, max_detections=_QUERIES)
    for pair in _RAW:
        if names >= set(pair):
            return _Layout("raw", pair, usual)
    ranked = {name: shape for name, shape in spec.outputs.items() if len(shape) == 3}
    if len(ranked) == len(spec.outputs) == 1:
        return _Layout("rows", tuple(ranked), Options(score_threshold=0.25, max_detections=_QUERIES), "none")
    boxes = [name for name, shape in ranked.items() if shape[2] == 4]
    if len(ranked) == len(spec.outputs) == 2 and boxes:
        return _Layout("raw", (*(name for name in ranked if name != boxes[0]), boxes[0]), usual)
    raise InvalidModel(
        f"an RT-DETR has outputs of rows (4 + classes), of labels, boxes and scores, or of logits and boxes; this model has "
        f"{dict(spec.outputs)}",
        hint="export it with tools/export_onnx.py of RT-DETR, or with Ultralytics",
    )


def _size_input(spec: FamilySpec, picture: str) -> bool:
    """Whether the graph wants the size that its boxes shall be for."""
    others = sorted(set(spec.inputs) - {picture})
    if others not in ([], [_SIZES]):
        raise InvalidModel(
            f"inputs that no RT-DETR export has: {', '.join(name for name in others if name != _SIZES)}",
            hint="export it so that a picture (and orig_target_sizes) is all that it takes",
        )
    return bool(others)
