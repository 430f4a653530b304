"""YOLO pose: persons and their joints, against a second implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visionpool.errors import SetupError
from visionpool.results import KeyPointDetectionResult
from visionpool_server.families import FamilySpec, Options, build_family
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
    greedy,
    planes,
    run,
    served,
    xyxy,
)
from tests.tiny_models import picture

SIZE = instance_models.SIZE
JOINTS = {"coco": ((17, 3), 1), "five of x and y": ((5, 2), 1), "one": ((1, 3), 1), "21 of two classes": ((21, 3), 2)}


def metadata(joints: tuple[int, int], classes: int) -> dict[str, str]:
    names = {i: f"thing {i}" for i in range(classes)}
    return {"names": str(names), "task": "pose", "imgsz": str(list(SIZE)), "kpt_shape": str(list(joints))}


def reference(model: Path, image: Pixels, joints: tuple[int, int], classes: int, options: Options) -> Objects:
    placed = fitted(image, SIZE, 114, centred=True)
    (output,) = run(model, images=planes(placed.image))
    rows = output[0].T
    chosen, best, label_ids = best_class(rows[:, 4 : 4 + classes], options.score_threshold or 0.25)
    kept = greedy(xyxy(rows[chosen]), best, label_ids, options.iou_threshold or 0.7)
    persons = rows[chosen][kept]
    each = persons[:, 4 + classes :].reshape(-1, *joints)
    more: list[Any] = [(placed.points(person[:, :2]), person[:, 2:]) for person in each]
    return Objects(placed.boxes(xyxy(persons)), best[kept], None, more)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", JOINTS)
def test_persons_and_joints_are_those_of_the_reference(kind: str, backend: str, tmp_path: Path) -> None:
    joints, classes = JOINTS[kind]
    model = instance_models.yolo_pose(
        tmp_path / "m.onnx", joints=joints, classes=classes, metadata=metadata(joints, classes)
    )
    total = 0
    with served(tmp_path, backend, KeyPointDetectionResult) as ask:
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            for options in (Options(), Options(score_threshold=0.6, iou_threshold=0.3)):
                expected, result = reference(model, image, joints, classes, options), ask(image, options)
                assert result.num_joints == joints[0]
                assert len(result.keypoints) == joints[0] * len(result.boxes)
                assert len(result.scores) == (len(result.keypoints) if joints[1] == 3 else 0)

                def same_joints(
                    i: int, more: tuple[Numbers, Numbers], result: Any = result, count: int = joints[0]
                ) -> None:
                    mine = slice(i * count, (i + 1) * count)
                    assert np.allclose(result.keypoints[mine], more[0], atol=1.6e-3)
                    if result.scores:
                        assert np.allclose(result.scores[mine], more[1][:, 0], atol=1e-4)

                assert_same(result.boxes, result.box_scores, None, expected, same_joints)
                total += len(result.boxes)
    assert total > 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_export_with_its_suppression_inside_has_a_row_for_each_person(backend: str, tmp_path: Path) -> None:
    told = {**metadata((3, 3), 3), "args": "{'nms': True}"}
    model = instance_models.suppressed(tmp_path / "m.onnx", "pose", metadata=told)
    image = picture(97, 131)
    placed = fitted(image, SIZE, 114, centred=True)
    (output,) = run(model, images=planes(placed.image))
    rows = output[0][output[0][:, 4] > 0.25]
    points = [placed.points(row[6:].reshape(3, 3)[:, :2]) for row in rows]
    with served(tmp_path, backend, KeyPointDetectionResult) as ask:
        result = ask(image)

    def same_joints(i: int, more: Numbers) -> None:
        assert np.allclose(result.keypoints[3 * i : 3 * i + 3], more, atol=1.6e-3)

    assert_same(
        result.boxes, result.box_scores, None, Objects(placed.boxes(rows[:, :4]), rows[:, 4], None, points), same_joints
    )
    assert len(result.boxes) > 10


def test_joints_may_lie_beside_the_picture(tmp_path: Path) -> None:
    instance_models.yolo_pose(tmp_path / "m.onnx", metadata=metadata((17, 3), 1))
    image = picture(64, 96)
    with served(tmp_path, "onnxruntime", KeyPointDetectionResult) as ask:
        points = np.array(ask(image).keypoints)
    assert (points < 0).any()
    assert (points > [96, 64]).any()


def test_how_many_joints_can_be_said_where_the_file_does_not(tmp_path: Path) -> None:
    instance_models.yolo_pose(tmp_path / "m.onnx", joints=(7, 2))
    config = {"family": "yolo_pose", "postprocess": {"kpt_shape": [7, 2]}}
    with served(tmp_path, "onnxruntime", KeyPointDetectionResult, **config) as ask:
        assert ask(picture(64, 96)).num_joints == 7
        assert ask.family.class_count == 1


def test_without_a_word_joints_are_cocos(tmp_path: Path) -> None:
    instance_models.yolo_pose(tmp_path / "m.onnx")
    with served(tmp_path, "onnxruntime", KeyPointDetectionResult, family="yolo_pose") as ask:
        assert ask(picture(64, 96)).num_joints == 17


def test_too_many_joints_for_the_output_are_refused(tmp_path: Path) -> None:
    instance_models.yolo_pose(tmp_path / "m.onnx", joints=(5, 3))
    with (
        pytest.raises(SetupError, match="no room for 17 joints") as refused,
        served(tmp_path, "onnxruntime", KeyPointDetectionResult, family="yolo_pose"),
    ):
        pass
    assert "kpt_shape" in str(refused.value.hint)


def test_only_the_best_persons_and_the_classes_asked_for(tmp_path: Path) -> None:
    instance_models.yolo_pose(tmp_path / "m.onnx", classes=2, metadata=metadata((17, 3), 2))
    image = picture(64, 96)
    with served(tmp_path, "onnxruntime", KeyPointDetectionResult) as ask:
        everyone, two = ask(image), ask(image, Options(max_detections=2))
        first, second = (ask(image, Options(classes=(name,))) for name in ("thing 0", "1"))
    assert two.boxes == everyone.boxes[:2]
    assert two.keypoints == everyone.keypoints[:34]
    assert sorted(first.boxes + second.boxes) == sorted(everyone.boxes)
    assert first.boxes
    assert second.boxes


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_of_one_batch_get_their_own_persons(backend: str, tmp_path: Path) -> None:
    instance_models.yolo_pose(tmp_path / "m.onnx", metadata=metadata((17, 3), 1))
    images = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    batching = {"max_batch_size": 3}
    with served(tmp_path, backend, KeyPointDetectionResult, batching=batching, workers=1) as ask:
        together, alone = ask.several(images), [ask(image) for image in images]
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.keypoints, other.keypoints, atol=2e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_outputs_that_are_no_numbers_never_break_an_answer(value: float) -> None:
    family = build_family("yolo_pose", FamilySpec({"images": (1, 3, *SIZE)}, {"output0": (1, 56, 96)}))
    random = np.random.default_rng(0)
    for _ in range(20):
        output = random.random((56, 96)).astype(np.float32)
        output[random.random(output.shape) < 0.02] = value
        result = family.finish({"output0": output}, Geometry(50, 70, 1.2, 1.2, 3, 4), Options(score_threshold=0.1))
        assert isinstance(result, KeyPointDetectionResult)
        assert len(result.keypoints) == 17 * len(result.boxes)
        json.dumps(result.to_dict(), allow_nan=False)
