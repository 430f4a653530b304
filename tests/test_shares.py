"""YOLO as TensorFlow's exporters leave it: boxes and joints as shares of the picture, prototypes with their channels last.

The same numbers in pixels, as PyTorch's exporters leave them, have to give the same result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool_server.families import Family, FamilySpec, Options, build_family

WIDE, HIGH = 96, 64  # of the prepared picture
SIDES = np.array([WIDE, HIGH, WIDE, HIGH], np.float32)
ANCHORS = 126
LOW = Options(score_threshold=0.02, max_detections=1000)
Rows = NDArray[np.float32]


def built(family: str, outputs: dict[str, tuple[int | None, ...]], *, nhwc: bool = False, **settings: Any) -> Family:
    shape = (1, HIGH, WIDE, 3) if nhwc else (1, 3, HIGH, WIDE)
    return build_family(family, FamilySpec({"images": shape}, outputs, settings=settings))


def rows(width: int, *, count: int = ANCHORS) -> Rows:
    """(count, width): boxes all over the picture, then numbers of 0 to 1."""
    random = np.random.default_rng(width)
    found = random.random((count, width)).astype(np.float32)
    found[:, :4] *= SIDES * np.array([1, 1, 0.4, 0.4], np.float32)
    return found


def found_in(family: Family, outputs: dict[str, NDArray[Any]], options: Options = LOW) -> Any:
    geometry = family.prepare(np.zeros((77, 133, 3), np.uint8)).geometry
    return family.finish(outputs, geometry, options)


def close(one: Any, other: Any) -> None:
    assert len(one) == len(other) > 3
    assert np.abs(np.array(one) - np.array(other)).max() < 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("family", ["yolov5", "yolov8", "yolo_obb"])
def test_boxes_that_are_shares_are_where_those_in_pixels_are(family: str, dtype: type[np.floating[Any]]) -> None:
    pixels = rows(9)
    shares = pixels.copy()
    shares[:, :4] /= SIDES
    turned = family != "yolov5"
    model = built(family, {"o": (1, 9, ANCHORS) if turned else (1, ANCHORS, 9)})
    one, other = (found_in(model, {"o": each.T if turned else each}) for each in (pixels, shares.astype(dtype)))
    if dtype is np.float32:
        close(one.boxes, other.boxes)
        assert one.label_ids == other.label_ids
    assert max(box[2] for box in other.boxes) > 100


def test_rows_of_a_graph_that_suppresses_itself_may_be_shares() -> None:
    pixels = rows(6, count=20)
    pixels[:, 2:4] += pixels[:, :2]
    pixels[:, 5] = 2
    shares = pixels.copy()
    shares[:, :4] /= SIDES
    model = built("yolo_end2end", {"o": (1, 20, 6)})
    close(found_in(model, {"o": pixels}).boxes, found_in(model, {"o": shares}).boxes)


@pytest.mark.parametrize("numbers", [2, 3])
def test_joints_that_are_shares_are_where_those_in_pixels_are(numbers: int) -> None:
    width = 5 + 4 * numbers
    pixels = rows(width)
    shares = pixels.copy()
    shares[:, :4] /= SIDES
    for axis, side in enumerate((WIDE, HIGH)):
        pixels[:, 5 + axis :: numbers] *= side
    model = built("yolo_pose", {"o": (1, width, ANCHORS)}, kpt_shape=(4, numbers))
    one, other = found_in(model, {"o": pixels.T}), found_in(model, {"o": shares.T})
    close(one.boxes, other.boxes)
    close(one.keypoints, other.keypoints)
    close(one.box_scores, other.box_scores)
    assert one.scores == other.scores


def test_masks_of_prototypes_whose_channels_are_last() -> None:
    pixels = rows(4 + 2 + 8)
    pixels[:, 6:] -= 0.5
    shares = pixels.copy()
    shares[:, :4] /= SIDES
    prototypes = np.random.default_rng(1).normal(0, 1, (8, HIGH // 4, WIDE // 4)).astype(np.float32)
    torch = built("yolo_segmentation", {"o": (1, 14, ANCHORS), "p": (1, 8, HIGH // 4, WIDE // 4)})
    tensorflow = built("yolo_segmentation", {"p": (1, HIGH // 4, WIDE // 4, 8), "o": (1, 14, ANCHORS)}, nhwc=True)
    one = found_in(torch, {"o": pixels.T, "p": prototypes})
    other = found_in(tensorflow, {"o": shares.T, "p": prototypes.transpose(1, 2, 0)})
    close(one.boxes, other.boxes)
    assert tensorflow.class_count == 2
    pairs = [(a, b) for a, b in zip(one.masks, other.masks, strict=True) if a.shape == b.shape and a.data]
    assert len(pairs) > 3
    assert min(np.mean(np.array(a.data) == b.data) for a, b in pairs) > 0.99


def test_raw_heads_beside_the_rows_are_left_alone() -> None:
    """YOLOv7's `export.py --grid` leaves them there."""
    heads = {str(n): (1, 3, n, n, 9) for n in (8, 4, 2)}
    plain, beside = (built("yolov5", {**more, "o": (1, ANCHORS, 9)}) for more in ({}, heads))
    outputs: dict[str, NDArray[Any]] = {name: np.zeros(shape[1:], np.float32) for name, shape in heads.items()}
    assert found_in(plain, {"o": rows(9)}) == found_in(beside, {**outputs, "o": rows(9)})
