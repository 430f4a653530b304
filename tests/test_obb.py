"""Oriented boxes: corners, suppression by ProbIoU and what encloses them, against a second implementation."""

from __future__ import annotations

import json
from math import cos, exp, log, pi, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from visionpool.errors import InvalidOption, SetupError
from visionpool.results import DetectionResult
from visionpool_server.families import FamilySpec, Options, build_family
from visionpool_server.families.rotated import corners_of, non_maximum_suppression, probabilistic_iou
from visionpool_server.imaging.recipe import Geometry

from tests import instance_models
from tests.instance_reference import (
    BACKENDS,
    SIZES,
    Numbers,
    Objects,
    Pixels,
    assert_same,
    best_class,
    fitted,
    planes,
    run,
    served,
)
from tests.tiny_models import picture

SIZE = instance_models.SIZE
METADATA = {"names": "{0: 'plane', 1: 'ship', 2: 'tank'}", "task": "obb", "imgsz": str(list(SIZE)), "stride": "32"}


def covariance(row: Numbers) -> Numbers:
    """Of the uniform distribution over a box: a twelfth of each side's square, turned."""
    _, _, width, height, angle = (float(value) for value in row)
    turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    return np.asarray(turn @ np.diag([width**2 / 12, height**2 / 12]) @ turn.T)


def likeness(one: Numbers, other: Numbers) -> float:
    """1 - the Hellinger distance of two normal distributions, by the Bhattacharyya distance (arXiv:2106.06072)."""
    a, b = covariance(one), covariance(other)
    middle, apart = (a + b) / 2, (one[:2] - other[:2]).astype(np.float64)
    far = apart @ np.linalg.inv(middle) @ apart / 8
    unlike = log(np.linalg.det(middle) / sqrt(np.linalg.det(a) * np.linalg.det(b))) / 2
    return 1 - sqrt(max(0.0, 1 - exp(-(far + unlike))))


def fast(rows: Numbers, scores: Numbers, label_ids: Numbers, threshold: float) -> list[int]:
    """A box stays where no better one of its class is so like it, whether that one stays or not."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [
        i
        for place, i in enumerate(order)
        if all(label_ids[j] != label_ids[i] or likeness(rows[j], rows[i]) < threshold for j in order[:place])
    ]


def turned_corners(row: Numbers) -> Numbers:
    """(4, 2): the corner at (+, +) of the box before it is turned, then against the clock on the screen."""
    x, y, width, height, angle = (float(value) for value in row)
    if angle % pi >= pi / 2:
        width, height = height, width
    angle %= pi / 2
    turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
    return np.asarray((signs * [width / 2, height / 2]) @ turn.T + [x, y])


def reference(model: Path, image: Pixels, options: Options) -> Objects:
    placed = fitted(image, SIZE, 114, centred=True)
    (output,) = run(model, images=planes(placed.image))
    rows = output[0].T
    chosen, best, label_ids = best_class(rows[:, 4:7], options.score_threshold or 0.25)
    turned = rows[chosen][:, [0, 1, 2, 3, 7]]
    kept = fast(turned, best, label_ids, options.iou_threshold or 0.7)
    corners = [placed.points(turned_corners(row)) for row in turned[kept]]
    height, width = image.shape[:2]
    around = [np.concatenate([points.min(axis=0), points.max(axis=0)]) for points in corners]
    boxes = np.array(around).reshape(-1, 4).clip(0, [width, height, width, height])
    return Objects(boxes, best[kept], label_ids[kept], corners)


@pytest.mark.parametrize("backend", BACKENDS)
def test_oriented_boxes_are_those_of_the_reference(backend: str, tmp_path: Path) -> None:
    model = instance_models.yolo_obb(tmp_path / "m.onnx", metadata=METADATA)
    total = 0
    with served(tmp_path, backend, DetectionResult) as ask:
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            for options in (Options(), Options(iou_threshold=0.3), Options(score_threshold=0.6, iou_threshold=0.9)):
                expected, result = reference(model, image, options), ask(image, options)

                def same_corners(i: int, corners: Numbers, result: DetectionResult = result) -> None:
                    assert np.allclose(np.reshape(result.rotated_boxes[i], (4, 2)), corners, atol=1.6e-3)

                assert_same(result.boxes, result.scores, result.label_ids, expected, same_corners)
                assert len(result.rotated_boxes) == len(result.boxes)
                total += len(result.boxes)
    assert total > 200


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_export_with_its_suppression_inside_has_a_row_for_each_object(backend: str, tmp_path: Path) -> None:
    model = instance_models.suppressed(tmp_path / "m.onnx", "obb", metadata={**METADATA, "end2end": "True"})
    image = picture(97, 131)
    placed = fitted(image, SIZE, 114, centred=True)
    (output,) = run(model, images=planes(placed.image))
    rows = output[0][output[0][:, 4] > 0.25]
    corners = [placed.points(turned_corners(row[[0, 1, 2, 3, 6]])) for row in rows]
    around = np.array([np.concatenate([points.min(axis=0), points.max(axis=0)]) for points in corners])
    expected = Objects(around.clip(0, [131, 97, 131, 97]), rows[:, 4], rows[:, 5], corners)
    with served(tmp_path, backend, DetectionResult) as ask:
        result = ask(image)
        with pytest.raises(InvalidOption, match="iou_threshold means nothing"):
            ask(image, Options(iou_threshold=0.5))

    def same_corners(i: int, corners: Numbers) -> None:
        assert np.allclose(np.reshape(result.rotated_boxes[i], (4, 2)), corners, atol=1.6e-3)

    assert_same(result.boxes, result.scores, result.label_ids, expected, same_corners)
    assert len(result.boxes) > 10


side = st.floats(0.5, 200, width=32)
rows = st.lists(
    st.tuples(st.floats(-50, 200, width=32), st.floats(-50, 200, width=32), side, side, st.floats(-4, 4, width=32)),
    min_size=1,
    max_size=12,
)


@given(rows=rows)
@settings(max_examples=200, deadline=None)
def test_likeness_is_that_of_the_paper(rows: list[tuple[float, ...]]) -> None:
    boxes = np.array(rows, np.float32)
    found = probabilistic_iou(boxes, boxes)
    expected = [[likeness(one, other) for other in boxes] for one in boxes]
    assert np.allclose(found, expected, atol=1e-3)  # Ultralytics' 1e-7 under the root is 3e-4 for equal boxes


@given(rows=rows)
@settings(max_examples=200, deadline=None)
def test_corners_are_those_of_the_turned_box(rows: list[tuple[float, ...]]) -> None:
    boxes = np.array(rows, np.float32)
    corners = corners_of(boxes)
    for row, found in zip(boxes, corners, strict=True):
        sides = np.linalg.norm(found - np.roll(found, 1, axis=0), axis=1)
        assert sorted(sides) == pytest.approx(sorted([row[2], row[3]] * 2), rel=1e-3, abs=1e-3)
        assert found.mean(axis=0) == pytest.approx(row[:2], abs=1e-3)
        ring = turned_corners(row)  # near a right angle the first corner may be another
        assert min(np.abs(np.roll(ring, k, axis=0) - found).max() for k in range(4)) < 1e-2


def test_more_boxes_than_are_compared_at_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    boxes = np.stack(
        [*random.uniform(0, 300, (2, 700)), *random.uniform(5, 60, (2, 700)), random.uniform(0, 3, 700)], axis=1
    )
    scores, label_ids = random.random(700), random.integers(0, 2, 700)
    expected = fast(boxes, scores, label_ids, 0.3)
    assert 100 < len(expected) < 600
    for limit in (5, 300, 1000):
        kept = non_maximum_suppression(boxes.astype(np.float32), scores.astype(np.float32), label_ids, 0.3, limit)
        assert kept.tolist() == expected[:limit]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_outputs_that_are_no_numbers_never_break_an_answer(value: float) -> None:
    family = build_family("yolo_obb", FamilySpec({"images": (1, 3, *SIZE)}, {"output0": (1, 8, 96)}))
    random = np.random.default_rng(0)
    for _ in range(20):
        output = random.random((8, 96)).astype(np.float32)
        output[random.random(output.shape) < 0.1] = value
        result = family.finish({"output0": output}, Geometry(50, 70, 1.2, 1.2, 3, 4), Options(score_threshold=0.1))
        json.dumps(result.to_dict(), allow_nan=False)


def test_boxes_without_an_area_are_no_failure() -> None:
    boxes = np.array([[5, 5, 0, 0, 0], [5, 5, 0, 0, 1], [5, 5, 1e6, 0, 1], [9, 9, 3, 3, 0]], np.float32)
    kept = non_maximum_suppression(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.zeros(4, np.int64), 0.5, 10)
    assert 0 in kept
    assert 3 in kept


def test_outputs_that_are_no_oriented_boxes_are_refused(tmp_path: Path) -> None:
    instance_models.yolo_segmentation(tmp_path / "m.onnx")
    with (
        pytest.raises(SetupError, match="oriented boxes has one 3-D output"),
        served(tmp_path, "onnxruntime", DetectionResult, family="yolo_obb"),
    ):
        pass
