"""Faces and their landmarks, of YOLOv5-face and SCRFD, against a second implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visionpool.errors import InvalidOption, SetupError
from visionpool.results import FaceDetectionResult
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
    fitted,
    greedy,
    planes,
    run,
    served,
    xyxy,
)
from tests.tiny_models import picture

SIDE = (128, 128)  # of the SCRFD models
ASKED = (Options(), Options(score_threshold=0.7, iou_threshold=0.2))
# What each model is built with, what its model.yaml says, and whether it has landmarks.
SCRFDS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "as InsightFace exports it": ({}, {}, True),
    "of any size": ({"open_size": True}, {"input_size": list(SIDE)}, True),
    "of several pictures": ({"batched": True}, {}, True),
    "five strides": ({"five": True}, {}, True),
    "without landmarks": ({"landmarks": False}, {"family": "scrfd"}, False),
}


def scrfd(model: Path, image: Pixels, options: Options) -> Objects:
    """Anchor by anchor: sides and landmarks count in strides from the top left corner of the anchor's cell."""
    placed = fitted(image, SIDE, 0, centred=False, whole=int)
    outputs = [
        output[0] if output.ndim == 3 else output
        for output in run(model, **{"input.1": planes(placed.image, 127.5, 128)})
    ]
    strides = (8, 16, 32, 64, 128) if len(outputs) == 15 else (8, 16, 32)
    anchors = 1 if len(outputs) == 15 else 2
    boxes, scores, points = [], [], []
    for level, stride in enumerate(strides):
        columns = -(-SIDE[1] // stride)
        for i, (score,) in enumerate(outputs[level]):
            if score <= (options.score_threshold or 0.5):
                continue
            y, x = (value * stride for value in divmod(i // anchors, columns))
            left, top, right, bottom = outputs[len(strides) + level][i] * stride
            boxes.append((x - left, y - top, x + right, y + bottom))
            scores.append(score)
            if len(outputs) == 3 * len(strides):
                points.append(outputs[2 * len(strides) + level][i].reshape(5, 2) * stride + [x, y])
    found, best = np.array(boxes).reshape(-1, 4), np.array(scores)
    kept = greedy(found, best, np.zeros(len(found)), options.iou_threshold or 0.4, 1000)
    more: list[Any] = [placed.points(points[i]) for i in kept] if points else [None] * len(kept)
    return Objects(placed.boxes(found[kept]), best[kept], None, more)


def yolov5_face(model: Path, image: Pixels, options: Options) -> Objects:
    placed = fitted(image, instance_models.SIZE, 114, centred=True)
    (output,) = run(model, input=planes(placed.image))
    scores = output[0][:, 4] * output[0][:, 15]
    over = scores > (options.score_threshold or 0.25)
    rows, scores = output[0][over], scores[over]
    kept = greedy(xyxy(rows), scores, np.zeros(len(rows)), options.iou_threshold or 0.5)
    more: list[Any] = [placed.points(row[5:15].reshape(5, 2)) for row in rows[kept]]
    return Objects(placed.boxes(xyxy(rows[kept])), scores[kept], None, more)


def assert_same_faces(result: FaceDetectionResult, expected: Objects, landmarks: int = 5) -> None:
    assert result.landmarks_per_face == landmarks
    assert len(result.landmarks) == landmarks * len(result.boxes)

    def same_landmarks(i: int, more: Numbers) -> None:
        if landmarks:
            assert np.allclose(result.landmarks[i * landmarks : (i + 1) * landmarks], more, atol=1.6e-3)

    assert_same(result.boxes, result.scores, None, expected, same_landmarks)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCRFDS)
def test_scrfd_finds_the_faces_of_the_reference(kind: str, backend: str, tmp_path: Path) -> None:
    building, config, landmarks = SCRFDS[kind]
    model = instance_models.scrfd(tmp_path / "m.onnx", **building)
    total = 0
    with served(tmp_path, backend, FaceDetectionResult, **config) as ask:
        assert ask.model.family_name == "scrfd"
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            for options in ASKED:
                expected, result = scrfd(model, image, options), ask(image, options)
                assert_same_faces(result, expected, 5 if landmarks else 0)
                total += len(result.boxes)
    assert total > 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_yolov5_face_finds_the_faces_of_the_reference(backend: str, tmp_path: Path) -> None:
    model = instance_models.yolov5_face(tmp_path / "m.onnx")
    total = 0
    with served(tmp_path, backend, FaceDetectionResult, family="yolov5_face") as ask:
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            for options in (Options(), Options(score_threshold=0.05, iou_threshold=0.2)):
                expected = yolov5_face(model, image, options)
                assert_same_faces(ask(image, options), expected)
                total += len(expected.boxes)
    assert total > 100


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["yolov5_face", "scrfd"])
def test_pictures_of_one_request_get_their_own_faces(family: str, backend: str, tmp_path: Path) -> None:
    """In batches where the model takes some; else one after the other."""
    if family == "scrfd":
        instance_models.scrfd(tmp_path / "m.onnx", batched=True)
    else:
        instance_models.yolov5_face(tmp_path / "m.onnx")
    images = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    batching = {"max_batch_size": 3}
    with served(tmp_path, backend, FaceDetectionResult, family=family, batching=batching, workers=1) as ask:
        together, alone = ask.several(images), [ask(image) for image in images]
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.landmarks, other.landmarks, atol=2e-3)
        assert np.allclose(one.boxes, other.boxes, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_without_a_batch_dimension_are_of_one_picture(backend: str, tmp_path: Path) -> None:
    instance_models.scrfd(tmp_path / "m.onnx")
    with (
        pytest.raises(SetupError, match="one picture at a time"),
        served(tmp_path, backend, FaceDetectionResult, family="scrfd", batching={"max_batch_size": 4}),
    ):
        pass
    with served(tmp_path, backend, FaceDetectionResult, family="scrfd") as ask:
        assert [len(result.boxes) > 0 for result in ask.several([picture(90, 90), picture(40, 50)])] == [True, True]


def test_faces_have_no_classes_to_choose_from(tmp_path: Path) -> None:
    instance_models.scrfd(tmp_path / "m.onnx")
    with served(tmp_path, "onnxruntime", FaceDetectionResult) as ask:
        with pytest.raises(InvalidOption, match="classes means nothing"):
            ask(picture(50, 50), Options(classes=("face",)))
        assert len(ask(picture(50, 50), Options(max_detections=3)).boxes) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_outputs_that_are_no_numbers_never_break_an_answer(value: float) -> None:
    random = np.random.default_rng(0)
    shapes = {
        f"{kind}{stride}": ((128 // stride) ** 2 * 2, k)
        for kind, k in (("s", 1), ("b", 4), ("k", 10))
        for stride in (8, 16, 32)
    }
    families = {
        "scrfd": FamilySpec({"x": (1, 3, *SIDE)}, shapes),
        "yolov5_face": FamilySpec({"x": (1, 3, 64, 96)}, {"output": (1, 96, 16)}),
    }
    for name, spec in families.items():
        family = build_family(name, spec)
        for _ in range(10):
            sizes = {key: [size or 1 for size in shape[-2:]] for key, shape in spec.outputs.items()}
            outputs = {key: random.random(size).astype(np.float32) for key, size in sizes.items()}
            for values in outputs.values():
                values[random.random(values.shape) < 0.05] = value
            result = family.finish(outputs, Geometry(50, 70, 1.2, 1.2, 3, 4), Options(score_threshold=0.1))
            assert isinstance(result, FaceDetectionResult)
            assert len(result.landmarks) == 5 * len(result.boxes)
            json.dumps(result.to_dict(), allow_nan=False)


def test_a_size_that_is_not_the_exports_is_explained(tmp_path: Path) -> None:
    spec = FamilySpec({"x": (1, 3, None, None)}, {f"{k}{s}": (None, k) for k in (1, 4, 10) for s in (8, 16, 32)})
    family = build_family("scrfd", spec)
    outputs = {name: np.ones((8, shape[1] or 1), np.float32) for name, shape in spec.outputs.items()}
    with pytest.raises(Exception, match="8 anchors, and the picture 12800"):
        family.finish(outputs, Geometry(50, 70), Options())


@pytest.mark.parametrize("family", ["yolov5_face", "scrfd"])
def test_outputs_of_another_model_are_refused(family: str, tmp_path: Path) -> None:
    instance_models.yolo_segmentation(tmp_path / "m.onnx")
    with (
        pytest.raises(SetupError, match=r"YOLOv5-face model has|SCRFD has"),
        served(tmp_path, "onnxruntime", FaceDetectionResult, family=family),
    ):
        pass
