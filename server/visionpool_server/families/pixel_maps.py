"""Maps of a number a pixel, from the model's size back to the original picture's. A leaf: it imports no family.

The steps of the recipe are undone one by one, last first, as PaddleSeg does (`paddleseg/core/infer.py`, reverse_transform):
what was padded is cut off, what was resized is resized back, scores linearly (OpenCV's INTER_LINEAR, which is Paddle's and
torch's bilinear without aligned corners) and classes by the nearest pixel. A map smaller than the prepared picture goes to
the size before the first resizing at once. Scores are interpolated before anything is decided: the class of a pixel is the
one that is then highest.

All is done plane by plane, so that 150 classes of 12 megapixels take the memory of a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.results import SegmentationResult

from visionpool_server.families import PictureFamily, Prepared
from visionpool_server.families.boxes import Floats
from visionpool_server.families.scores import finite
from visionpool_server.imaging.masks import png_of
from visionpool_server.imaging.recipe import Decoded, Geometry, Undo
from visionpool_server.imaging.unprepared import size_of

_NOTHING = 20.0  # e to the power of minus that adds nothing to a share
Classes = NDArray[np.unsignedinteger[Any]]  # (H, W) of class ids


@dataclass(frozen=True, slots=True)
class ClassMap:
    """`scores`: (H, W) of what the classes score, where that is known."""

    classes: Classes
    scores: Floats | None = None


class MapFamily(PictureFamily):
    """A family whose outputs are maps of the picture."""

    def prepare(self, image: Decoded, geometry: Geometry | None = None) -> Prepared:
        """The geometry knows how large the prepared picture is: the map of a model may be smaller."""
        prepared, geometry = self.recipe.prepare(image, geometry)
        undo = Undo(size_of(prepared))
        return Prepared({self.image_input: prepared}, replace(geometry, undo=(undo, *geometry.undo)))


def restored(plane: NDArray[Any], geometry: Geometry, interpolation: int = cv2.INTER_LINEAR) -> NDArray[Any]:
    """`plane` (h, w) as (H, W) of the original. What a crop has cut off is 0. `geometry`: as `MapFamily` prepares."""
    for step in _steps_back(geometry):
        plane = _resized(plane, step.size, interpolation) if step.at is None else _window(plane, step.size, step.at)
    return plane


def _steps_back(geometry: Geometry) -> tuple[Undo, ...]:
    """The last one is for a picture that was decoded smaller than it is."""
    steps = geometry.undo
    if len(steps) > 1 and steps[1].at is None:
        steps = steps[1:]
    return (*steps, Undo((geometry.height, geometry.width)))


def _resizings(shape: tuple[int, ...], geometry: Geometry) -> int:
    """How often a plane of this shape is resized on its way back."""
    count = 0
    for step in _steps_back(geometry):
        count += step.at is None and step.size != shape
        shape = step.size
    return count


def seen(geometry: Geometry) -> NDArray[np.bool_] | None:
    """Which pixels (H, W) of the original the model saw; None for all."""
    if not any(step.at and min(step.at) < 0 for step in geometry.undo):
        return None
    return restored(np.ones(geometry.undo[0].size, np.uint8), geometry, cv2.INTER_NEAREST) > 0


def highest_classes(planes: Floats, geometry: Geometry, *, scored: bool = False, softmax: bool = False) -> ClassMap:
    """The class of each pixel from the scores `planes` (C, h, w): of equal ones the first.

    `scored`: its score too; with `softmax` that is its share of the exponentials of all. Raises InferenceFailed for NaN.
    """
    prune = len(planes) > 2 and _resizings(planes.shape[1:], geometry) <= 1
    first, *others = contenders(planes) if prune else range(len(planes))
    best: Floats = restored(planes[first], geometry).copy()
    classes: Classes = np.full(best.shape, first, np.uint8 if len(planes) <= 256 else np.uint16)
    for index in others:
        plane = restored(planes[index], geometry)
        np.putmask(classes, plane > best, index)
        np.maximum(best, plane, out=best)
    finite(best)
    if not scored:
        return ClassMap(classes)
    if not softmax:
        return ClassMap(classes, best)
    total, power = np.zeros_like(best), np.empty_like(best)
    for index in contenders(planes, _NOTHING) if prune else range(len(planes)):
        np.subtract(restored(planes[index], geometry), best, out=power)
        total += np.exp(power, out=power)
    return ClassMap(classes, np.reciprocal(total))


def contenders(planes: Floats, margin: float = 0.0) -> Sequence[int]:
    """The classes that can be the highest somewhere between the pixels of `planes`: of 150 a picture shows a few.

    Between four neighbours a plane stays under the highest and over the lowest of them: a class whose highest is everywhere
    under the lowest of some other class cannot win. `margin`: those too that are not so much under it. Holds for planes
    that are resized once.
    """
    around = np.ones((3, 3), np.uint8)
    floor = np.asarray(cv2.erode(planes[0], around))
    for plane in planes[1:]:
        np.maximum(floor, cv2.erode(plane, around), out=floor)
    return [i for i, plane in enumerate(planes) if not bool((cv2.dilate(plane, around) < floor - margin).all())]


def result_of(
    found: ClassMap, labels: Sequence[str], *, scored: bool, compact: bool, geometry: Geometry
) -> SegmentationResult:
    """With the scores where `scored`. Pixels that the model did not see are of class 0, with a score of 0."""
    if found.scores is not None:
        finite(found.scores)
    classes, scores = found.classes, found.scores if scored else None
    there = seen(geometry)
    if there is not None:
        classes = np.where(there, classes, 0).astype(classes.dtype)
        scores = None if scores is None else np.where(there, scores, 0)
    result = SegmentationResult(
        shape=(geometry.height, geometry.width), contain_score_map=scores is not None, labels=tuple(labels)
    )
    if compact:
        grey = "" if scores is None else png_of(np.rint(np.clip(scores, 0, 1) * 255))
        return replace(result, label_map_png=png_of(classes), score_map_png=grey)
    exact = () if scores is None else tuple(np.round(scores.ravel().astype(np.float64), 4).tolist())
    # Bytes are a sequence of whole numbers already: four times as fast as a list of them.
    ids = tuple(classes.tobytes() if classes.dtype == np.uint8 else classes.ravel().tolist())
    return replace(result, label_map=ids, score_map=exact)


def _resized(plane: NDArray[Any], size: tuple[int, int], interpolation: int) -> NDArray[Any]:
    if plane.shape == size:
        return plane
    return cast(NDArray[Any], cv2.resize(plane, (size[1], size[0]), interpolation=interpolation))


def _window(plane: NDArray[Any], size: tuple[int, int], at: tuple[int, int]) -> NDArray[Any]:
    """What of `plane` lies in the picture of `size` that starts `at` this row and column of it."""
    (top, left), (height, width) = at, size
    if top >= 0 and left >= 0:
        return plane[top : top + height, left : left + width]
    whole = np.zeros(size, plane.dtype)
    part = plane[max(top, 0) : top + height, max(left, 0) : left + width]
    rows, columns = part.shape
    whole[max(-top, 0) :, max(-left, 0) :][:rows, :columns] = part
    return whole
