"""Faster R-CNN and Mask R-CNN with their suppression in the graph: torchvision's ONNX exports, the ONNX model zoo's.

One picture, (3, H, W) or (1, 3, H, W), often of any size. Outputs of n objects, in any order, told apart by what they are:
boxes (n, 4) xyxy in the prepared picture, labels (n,) integers, scores (n,) and, of Mask R-CNN, soft masks:

(n, 1, 28, 28)   a grid over each box, pasted as detectron2's `paste_masks_in_image` does: bilinear at the centres of the
                 picture's pixels, nothing around the grid, covered from 0.5 on
(n, 1, H, W)     already pasted into the prepared picture (torchvision), sampled likewise

Without `preprocess` pictures are torchvision's: RGB, /255, any size (its transform is part of the graph). The zoo's models
(maskrcnn-benchmark) want it said: resize_short, pad_to_stride, BGR minus a mean. Label 0 is the background: `labels` that do
not begin with one are those from 1 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed, InvalidModel
from visionpool.results import DetectionResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    PictureFamily,
    Tensors,
    class_ids,
    picture_shape,
)
from visionpool_server.families.boxes import Candidates, Floats, allowed, detection_result
from visionpool_server.families.instance_masks import Pixels, over_box, over_picture, sampled, with_masks
from visionpool_server.families.points import within_reach
from visionpool_server.imaging.recipe import Geometry, Pad, Recipe, Resize

_COVERED = 0.5
_BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class _Roles:
    """What the outputs of one inference are."""

    boxes: Floats  # (n, 4)
    scores: Floats  # (n,)
    label_ids: NDArray[np.int64]  # (n,)
    masks: Floats | None  # (n, rows, columns)


class Rcnn(PictureFamily):
    one_at_a_time = True  # the outputs of several pictures could not be told apart
    fallback = Options(score_threshold=0.5, max_detections=100, compact=False)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = _picture(spec)
        self.recipe = spec.recipe or _recipe(fixed or spec.input_size)
        masks = _check_outputs(spec)
        self._grids = _are_grids(spec, fixed)
        self.accepts = frozenset({"score_threshold", "max_detections", "classes"} | ({"compact"} if masks else set()))
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = _from_background(spec.labels)
        self.class_count = len(self.labels) or None  # the outputs do not say

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> DetectionResult:
        chosen = options.over(self.defaults)
        roles = _roles(outputs)
        found, masks = self._chosen(roles, chosen)
        result = detection_result(geometry.to_original(found.boxes), found.scores, found.label_ids, self.labels)
        if masks is None:
            return result
        placed = geometry.points_to_original(found.boxes.reshape(-1, 2)).reshape(-1, 4)

        def cover(i: int, pixels: Pixels) -> NDArray[Any]:
            if self._grids:
                x, y = over_box(pixels, placed[i], (masks.shape[1], masks.shape[2]))
                x, y, grid = x + 1, y + 1, np.pad(masks[i], 1)
            else:
                (x, y), grid = over_picture(pixels, geometry, 1), masks[i]
            covered: NDArray[Any] = sampled(grid, x, y) >= _COVERED
            return covered

        return with_masks(result, cover, geometry, compact=bool(chosen.compact))

    def _chosen(self, roles: _Roles, chosen: Options) -> tuple[Candidates, Floats | None]:
        """Those that were asked for, best score first, and their masks."""
        assert chosen.score_threshold is not None
        wanted = (roles.scores > chosen.score_threshold) & np.isfinite(roles.scores) & within_reach(roles.boxes)
        if chosen.classes:
            wanted &= allowed(roles.label_ids, class_ids(chosen.classes, self.labels, self.class_count))
        which = np.flatnonzero(wanted)
        which = which[np.argsort(-roles.scores[which], kind="stable")[: chosen.max_detections]]
        found = Candidates(roles.boxes[which], roles.scores[which], roles.label_ids[which])
        return found, None if roles.masks is None else roles.masks[which]


def _roles(outputs: Tensors) -> _Roles:
    """Raises InferenceFailed for outputs that are not those of an R-CNN."""
    flat = {name: np.asarray(value) for name, value in outputs.items()}
    boxes = [value for value in flat.values() if value.ndim == 2 and value.shape[1] == 4]
    masks = [value for value in flat.values() if value.ndim > 2]
    labels = [value for value in flat.values() if value.ndim == 1 and value.dtype.kind in "iu"]
    scores = [value for value in flat.values() if value.ndim == 1 and value.dtype.kind == "f"]
    if (len(boxes), len(labels), len(scores)) != (1, 1, 1) or len(masks) > 1:
        raise InferenceFailed(
            f"these are not an R-CNN's boxes, labels and scores: {[value.shape for value in flat.values()]}",
            hint="the model's operator should check family: in model.yaml",
        )
    count = min(map(len, (*boxes, *labels, *scores, *masks)))
    grids = (
        masks[0].reshape(len(masks[0]), *masks[0].shape[-2:])[:count].astype(np.float32, copy=False) if masks else None
    )
    return _Roles(boxes[0][:count], scores[0][:count], labels[0][:count].astype(np.int64), grids)


def _picture(spec: FamilySpec) -> tuple[str, tuple[int, int] | None]:
    inputs = list(spec.inputs.items())
    if len(inputs) != 1 or len(inputs[0][1]) not in (3, 4):
        raise InvalidModel(
            f"an R-CNN has one input, a picture of 3 or 4 dimensions; this model has {dict(spec.inputs)}",
            hint="export it for one picture",
        )
    return inputs[0][0], picture_shape(inputs[0][1]).size


def _recipe(size: tuple[int, int] | None) -> Recipe:
    return Recipe((Resize(size, keep_ratio=True), Pad(size))) if size else Recipe()


def _check_outputs(spec: FamilySpec) -> bool:
    """Whether there are masks. Ranks that the file leaves open are seen when it runs."""
    ranks = sorted(len(shape) for shape in spec.outputs.values())
    if ranks not in ([1, 1, 2], [1, 1, 2, 3], [1, 1, 2, 4]) and not (len(ranks) in (3, 4) and 0 in ranks):
        raise InvalidModel(
            f"an R-CNN has boxes (n, 4), labels (n,), scores (n,) and perhaps masks; this model has {dict(spec.outputs)}",
            hint="check family: in model.yaml",
        )
    return len(ranks) == 4


def _are_grids(spec: FamilySpec, picture: tuple[int, int] | None) -> bool:
    """Whether masks are grids over their boxes: of a fixed size, and not that of the picture."""
    sizes = [shape[-2:] for shape in spec.outputs.values() if len(shape) > 2]
    return bool(sizes) and None not in sizes[0] and sizes[0] != picture


def _from_background(labels: tuple[str, ...]) -> tuple[str, ...]:
    """By class id, of which 0 is the background."""
    named = labels and (_BACKGROUND in labels[0].lower() or labels[0] in ("0", "BG", "N/A", ""))
    return labels if named or not labels else (_BACKGROUND, *labels)
