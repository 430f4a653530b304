"""Every box and score against a second implementation, written here from the papers and specifications.

It runs ONNX Runtime, and of OpenCV it uses only `resize`; letterboxing, decoding and suppression are its own NumPy.
Sources: ultralytics/yolov5 tag v7.0 (`letterbox`, `non_max_suppression`), Generalized Focal Loss (arXiv:2006.04388), and
PaddleDetection's and PaddleClas' deployment pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openvino import CompiledModel
from PIL import Image
from visionpool.results import ClassifyResult, DetectionResult, Result
from visionpool_server.app import offline
from visionpool_server.backends.openvino import core
from visionpool_server.families import NO_OPTIONS, Options
from visionpool_server.families.boxes import non_maximum_suppression
from visionpool_server.models.loader import Defaults
from visionpool_server.service import Ask

from tests import tiny_models
from tests.ort_sessions import reference_session

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

BACKENDS = ("openvino", "onnxruntime")
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
SIZES = ((64, 64), (48, 64), (97, 31), (1, 1), (300, 200), (2, 500))  # height, width
PHOTOS = ("bus.jpg", "zidane.jpg", "dog.jpg")


@dataclass(frozen=True, slots=True)
class Found:
    """Boxes (N, 4) xyxy in pixels of the picture, scores (N,), class ids (N,)."""

    boxes: Floats
    scores: Floats
    label_ids: NDArray[np.int64]


# The second implementation


def run(model: Path, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """By ONNX Runtime; an IR, which it does not read, by OpenVINO alone."""
    if model.suffix == ".xml":
        return [np.array(output) for output in compiled_ir(model)(list(inputs.values())).values()]
    return [np.asarray(output) for output in reference_session(model).run(None, inputs)]


@cache
def compiled_ir(model: Path) -> CompiledModel:
    return core().compile_model(core().read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def planes(image: Pixels, mean: NDArray[Any] | float = 0.0, std: NDArray[Any] | float = 1.0) -> Floats:
    """(H, W, C) as (1, C, H, W), each channel `(x / 255 - mean) / std`."""
    return ((image / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)


def letterboxed(image: Pixels, side: int) -> tuple[Pixels, tuple[float, float], tuple[int, int]]:
    """The picture on a grey square, its scale (x, y) and where its top left corner (x, y) lies."""
    height, width = image.shape[:2]
    ratio = min(side / height, side / width)
    new_width, new_height = max(1, round(width * ratio)), max(1, round(height * ratio))
    left, top = round((side - new_width) / 2 - 0.1), round((side - new_height) / 2 - 0.1)
    square = np.full((side, side, 3), 114, np.uint8)
    small = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    square[top : top + new_height, left : left + new_width] = small
    return square, (new_width / width, new_height / height), (left, top)


def suppressed(found: Found, iou_threshold: float, limit: int) -> Found:
    """Greedy: the best box stays, and those of its class that overlap it more than so much go."""
    kept: list[int] = []
    for index in np.argsort(-found.scores, kind="stable"):
        if len(kept) == limit:
            break
        rivals = found.boxes[kept][found.label_ids[kept] == found.label_ids[index]]
        if not (overlaps(found.boxes[index], rivals) > iou_threshold).any():
            kept.append(int(index))
    return Found(found.boxes[kept], found.scores[kept], found.label_ids[kept])


def overlaps(box: Floats, others: Floats) -> Floats:
    """Intersections over unions of a box with others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return np.asarray(shared / ((box[2] - box[0]) * (box[3] - box[1]) + areas - shared))


def candidates(boxes: Floats, scores: Floats, threshold: float, every_class: bool) -> Found:
    """From boxes (N, 4) and class scores (N, classes): each box's best class, or every class over the threshold."""
    pairs = (
        [(i, j) for i, j in np.argwhere(scores > threshold)]
        if every_class
        else [(i, j) for i, j in enumerate(scores.argmax(axis=1)) if scores[i, j] > threshold]
    )
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return Found(boxes[rows], scores[rows, columns], columns)


def yolo(layout: str) -> Callable[[Path, Pixels, Options], Found]:
    def find(model: Path, image: Pixels, options: Options) -> Found:
        side = 64 if "tiny" in model.name else 640
        square, scale, corner = letterboxed(image, side)
        (output,) = run(model, images=planes(square))
        rows = output[0] if layout == "v5" else output[0].T
        scores = rows[:, 5:] * rows[:, 4:5] if layout == "v5" else rows[:, 4:]
        x, y, width, height = rows[:, :4].T
        boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
        threshold = 0.25 if options.score_threshold is None else options.score_threshold
        found = candidates(boxes, scores, threshold, threshold < 0.01)
        found = suppressed(found, options.iou_threshold or (0.45 if layout == "v5" else 0.7), 300)
        return in_picture(found, image, scale, corner)

    return find


def in_picture(found: Found, image: Pixels, scale: tuple[float, float], corner: tuple[int, int]) -> Found:
    boxes = (found.boxes - [*corner, *corner]) / [*scale, *scale]
    height, width = image.shape[:2]
    return Found(boxes.clip(0, [width, height, width, height]), found.scores, found.label_ids)


def picodet(model: Path, image: Pixels, options: Options) -> Found:
    """Each side of a box is the expected value of a softmax over steps of the stride."""
    side = 64 if "tiny" in model.name else 320
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    session_input = reference_session(model).get_inputs()[0].name
    outputs = run(model, **{session_input: planes(small, *IMAGENET)})
    parts = []
    for stride, scores, sides in zip((8, 16, 32, 64), outputs[:4], outputs[4:], strict=True):
        cells = -(-side // stride)
        steps = sides.reshape(len(scores[0]), 4, -1)
        share = np.exp(steps) / np.exp(steps).sum(axis=2, keepdims=True)
        distance = (share * np.arange(steps.shape[2])).sum(axis=2) * stride
        centre = np.array(
            [[(column + 0.5) * stride, (row + 0.5) * stride] for row in range(cells) for column in range(cells)]
        )
        boxes = np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], axis=1)
        parts.append(candidates(boxes, scores[0], options.score_threshold or 0.5, every_class=True))
    every = Found(*(np.concatenate([getattr(part, name) for part in parts]) for name in Found.__slots__))
    found = suppressed(every, options.iou_threshold or 0.6, 100)
    return in_picture(found, image, (side / image.shape[1], side / image.shape[0]), (0, 0))


# What visionpool answers


Predict = Callable[[Pixels, Options], Result]


@contextmanager
def served(model: Path, backend: str, *, precision: Any = "f32") -> Iterator[Predict]:
    """The whole flow without HTTP: `predict(image, options)`."""
    with offline([model], Defaults(backend=backend, precision=precision), max_pixels=50_000_000) as service:
        (running,) = service.models

        def predict(image: Pixels, options: Options) -> Result:
            _, data = cv2.imencode(".png", image[:, :, ::-1])
            return asyncio.run(service.predict(running, data.tobytes(), Ask(options, timeout=100))).result

        yield predict


def assert_same(result: Result, expected: Found) -> None:
    """The same number of boxes, each within half a pixel and a thousandth of score of one of its class."""
    assert isinstance(result, DetectionResult)
    assert len(result.boxes) == len(expected.boxes)
    boxes, scores, label_ids = (np.array(values) for values in (result.boxes, result.scores, result.label_ids))
    free = np.ones(len(boxes), bool)
    for box, score, label_id in zip(expected.boxes, expected.scores, expected.label_ids, strict=True):
        near = np.abs(boxes - box).max(axis=1) <= 0.5
        match = np.flatnonzero(free & near & (np.abs(scores - score) <= 1e-3) & (label_ids == label_id))
        assert len(match), f"class {label_id} at {box}, score {score}, is not in the result"
        free[match[0]] = False
    assert list(scores) == sorted(scores, reverse=True)


corner = st.integers(-400, 400).map(lambda value: value / 4)
side = st.integers(1, 400).map(lambda value: value / 4)


@given(
    items=st.lists(st.tuples(corner, corner, side, side, st.integers(0, 3), st.integers(1, 20)), max_size=40),
    iou_threshold=st.sampled_from([0.012345, 0.234567, 0.456789, 0.654321, 0.987654]),
    limit=st.integers(1, 50),
)
@settings(max_examples=300, deadline=None)
def test_suppression_is_the_greedy_one_in_each_class(
    items: list[tuple[float, ...]], iou_threshold: float, limit: int
) -> None:
    """Also for boxes that reach out of the picture to the left and top."""
    values = np.array(items, np.float32).reshape(-1, 6)
    boxes = np.hstack([values[:, :2], values[:, :2] + values[:, 2:4]])
    scores, label_ids = values[:, 5] / np.float32(20), values[:, 4].astype(np.int64)
    kept = non_maximum_suppression(boxes, scores, label_ids, iou_threshold, limit)
    expected = suppressed(Found(boxes, scores, label_ids), iou_threshold, limit)
    assert boxes[kept].tolist() == expected.boxes.tolist()
    assert label_ids[kept].tolist() == expected.label_ids.tolist()


DETECTORS: dict[str, tuple[Callable[..., Path], Callable[[Path, Pixels, Options], Found]]] = {
    "yolov5": (tiny_models.yolov5, yolo("v5")),
    "yolov8": (tiny_models.yolov8, yolo("v8")),
    "picodet": (tiny_models.picodet, picodet),
}
ASKED = (
    NO_OPTIONS,
    Options(score_threshold=0.001),
    Options(score_threshold=0.4, iou_threshold=0.2),
    Options(score_threshold=0.1, iou_threshold=0.9),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", DETECTORS)
def test_a_small_detector_finds_the_boxes_of_the_reference(family: str, backend: str, tmp_path: Path) -> None:
    build, reference = DETECTORS[family]
    model = build(tmp_path / "tiny.onnx")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"family": family}))
    total = 0
    with served(tmp_path, backend) as predict:
        for seed, size in enumerate(SIZES):
            image = tiny_models.picture(*size, seed=seed)
            for options in ASKED:
                expected = reference(model, image, options)
                assert_same(predict(image, options), expected)
                total += len(expected.boxes)
    assert total > 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_classes_asked_for_are_found(backend: str, tmp_path: Path) -> None:
    model = tiny_models.yolov8(tmp_path / "tiny.onnx")
    image = tiny_models.picture(50, 70)
    everything = yolo("v8")(model, image, Options())
    with served(model, backend) as predict:
        for wanted in (0, 1, 2):
            mask = everything.label_ids == wanted
            expected = Found(everything.boxes[mask], everything.scores[mask], everything.label_ids[mask])
            assert_same(predict(image, Options(classes=(str(wanted),))), expected)


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest, testdata: Path) -> Iterator[Predict]:
    """A real model on a backend, loaded once for the tests that ask it."""
    name, backend = request.param
    with served(testdata / "models" / name, backend) as predict:
        yield predict


@cache
def real_boxes(model: Path, photo: Path, options: Options) -> Found:
    """The reference's."""
    find = picodet if "picodet" in model.stem else yolo("v8" if "v8" in model.stem else "v5")
    return find(model, np.array(Image.open(photo)), options)


@pytest.mark.parametrize("threshold", [None, 0.001, 0.3])
@pytest.mark.parametrize(
    ("name", "real"),
    [
        (name, (name, backend))
        for name in ("yolov5n", "yolov8n", "picodet_s_320", "yolov5n_dyn")
        for backend in BACKENDS
    ],
    indirect=["real"],
    ids=lambda value: value if isinstance(value, str) else value[1],
    scope="module",
)
def test_a_real_detector_finds_the_boxes_of_the_reference(
    testdata: Path, name: str, threshold: float | None, real: Predict
) -> None:
    for photo in PHOTOS if threshold is None else PHOTOS[:1]:
        path = testdata / "images" / "photos" / photo
        options = NO_OPTIONS if threshold is None else Options(score_threshold=threshold)
        expected = real_boxes(testdata / "models" / name / f"{name}.onnx", path, options)
        assert len(expected.boxes) > 1
        assert_same(real(np.array(Image.open(path)), options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_paddle_detector_with_nms_inside_answers_its_own_rows_for_each_picture(backend: str, tmp_path: Path) -> None:
    model = tiny_models.paddle_detector(tmp_path / "tiny.onnx")
    normalize = {"type": "NormalizeImage", "mean": IMAGENET[0].tolist(), "std": IMAGENET[1].tolist(), "is_scale": True}
    resize = {"type": "Resize", "target_size": [64, 64], "keep_ratio": False, "interp": 2}
    labels = ["one", "two", "three"]
    config = {"Preprocess": [resize, normalize, {"type": "Permute"}], "label_list": labels, "draw_threshold": 0.6}
    (tmp_path / "infer_cfg.yml").write_text(yaml.safe_dump(config))
    with served(tmp_path, backend) as predict:
        for seed, size in enumerate(SIZES):
            image = tiny_models.picture(*size, seed=seed)
            small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC)
            scale = np.array([[64 / size[0], 64 / size[1]]], np.float32)
            rows, counts = run(model, image=planes(small, *IMAGENET), scale_factor=scale)
            assert counts.tolist() == [len(rows)]
            rows = rows[rows[:, 1] > 0.6]
            boxes = rows[:, 2:].clip(0, [size[1], size[0], size[1], size[0]])
            assert_same(predict(image, NO_OPTIONS), Found(boxes, rows[:, 1], rows[:, 0].astype(np.int64)))


# Classifiers


def cropped(image: Pixels, short: int, size: int) -> Pixels:
    """The shorter side resized to `short`, then the middle `size` x `size`."""
    height, width = image.shape[:2]
    ratio = short / min(height, width)
    small = cv2.resize(image, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_LINEAR)
    top, left = (small.shape[0] - size) // 2, (small.shape[1] - size) // 2
    return np.array(small[top : top + size, left : left + size])


def softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max())
    shares: Floats = powers / powers.sum()
    return shares


def assert_ranked(result: Result, probabilities: Floats, top_k: int) -> None:
    assert isinstance(result, ClassifyResult)
    best = np.sort(probabilities)[::-1][:top_k]
    assert result.scores == pytest.approx(best, abs=1e-3)
    for label_id, score in zip(result.label_ids, result.scores, strict=True):
        assert probabilities[label_id] == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softmax_inside", [False, True])
@pytest.mark.parametrize(("layout", "channels"), [("NCHW", 3), ("NHWC", 3), ("NCHW", 1), ("NHWC", 1)])
def test_a_small_classifier_ranks_as_the_reference(
    layout: str, channels: int, softmax_inside: bool, backend: str, tmp_path: Path
) -> None:
    model = tiny_models.classifier(tmp_path / "c.onnx", layout=layout, channels=channels, softmax=softmax_inside)
    normalize = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    mean, std = (np.array(values[:channels]) for values in normalize.values())
    config = {
        "task": "classification",
        "labels": ["a", "b", "c", "d", "e"],
        "preprocess": [{"resize_short": 40}, {"center_crop": 32}, {"normalize": normalize}],
    }
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    with served(tmp_path, backend) as predict:
        for seed, size in enumerate(SIZES[:5]):
            image = tiny_models.picture(*size, seed=seed)
            crop = cropped(image, 40, 32)
            if channels == 1:
                crop = (crop @ [0.299, 0.587, 0.114]).round().astype(np.uint8)[:, :, None]
            tensor = planes(crop, mean, std)
            (logits,) = run(model, x=tensor if layout == "NCHW" else tensor.transpose(0, 2, 3, 1))
            expected = logits[0] if softmax_inside else softmax(logits[0])
            assert_ranked(predict(image, NO_OPTIONS), expected, 5)
            assert_ranked(predict(image, Options(top_k=2)), expected, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_real_classifier_ranks_as_the_reference(testdata: Path, backend: str) -> None:
    folder = testdata / "models" / "squeezenet"
    with served(folder, backend) as predict:
        for photo in PHOTOS:
            image = np.array(Image.open(testdata / "images" / "photos" / photo))
            model = folder / "squeezenet1_1.onnx"
            name = reference_session(model).get_inputs()[0].name
            (probabilities,) = run(model, **{name: planes(cropped(image, 256, 224), *IMAGENET)})
            assert_ranked(predict(image, NO_OPTIONS), probabilities[0].ravel(), 5)  # this export ends in a softmax


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("real", [("yolov8n_int8_ir/yolov8n.xml", "openvino")], indirect=True, ids=["yolov8n"])
def test_an_int8_ir_against_openvino_alone(testdata: Path, real: Predict, photo: str) -> None:
    """ONNX Runtime does not read it: the runtime is the same here, all around it is the second implementation's."""
    model = testdata / "models" / "yolov8n_int8_ir" / "yolov8n.xml"
    image = np.asarray(Image.open(testdata / "images" / "photos" / photo).convert("RGB"))
    result = real(image, NO_OPTIONS)
    expected = yolo("v8")(model, image, NO_OPTIONS)
    assert len(expected.boxes) >= 3
    assert_same(result, expected)
