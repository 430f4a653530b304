"""Every ending of a detector's graph, box by box, against a second implementation written here: ONNX Runtime, NumPy, loops.

The models are made by `detector_models`: random weights behind the graph endings of real exports. Sources of the reference:
YOLOX `yolox/utils/demo_utils.py` and `boxes.py`, YOLOv6 `yolov6/utils/nms.py`, PaddleDetection `ppdet/modeling/heads` and
`ppdet/modeling/post_process.py`, RT-DETR `rtdetr_postprocessor.py`, Ultralytics `models/rtdetr/predict.py`.
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
from numpy.typing import NDArray
from onnx import TensorProto
from visionpool.errors import InvalidModel
from visionpool.results import DetectionResult, Result
from visionpool_server.app import offline
from visionpool_server.families import NO_OPTIONS, Options
from visionpool_server.models.loader import Defaults
from visionpool_server.models.model import Model
from visionpool_server.service import Ask, Service

from tests import detector_models, tiny_models
from tests.detector_models import STRIDES
from tests.ort_sessions import reference_session
from tests.test_reference import (
    IMAGENET,
    SIZES,
    Floats,
    Found,
    Pixels,
    candidates,
    in_picture,
    letterboxed,
    planes,
)
from tests.tiny_models import SIZE

BACKENDS = ("openvino", "onnxruntime")
LABELS = ["cat", "dog", "cow"]
ASKED = (
    NO_OPTIONS,
    Options(score_threshold=0.05),
    Options(score_threshold=0.4, iou_threshold=0.2),
    Options(score_threshold=0.1, iou_threshold=0.9, classes=("0", "dog")),
    Options(score_threshold=0.1, max_detections=3),
)


# What visionpool answers


@dataclass(frozen=True, slots=True)
class Running:
    service: Service
    model: Model

    def predict(self, image: Pixels, options: Options = NO_OPTIONS) -> Result:
        return self.predict_many([image], options)[0]

    def predict_many(self, images: list[Pixels], options: Options = NO_OPTIONS) -> list[Result]:
        files = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
        predictions = asyncio.run(self.service.predict_many(self.model, files, Ask(options, timeout=100)))
        return [prediction.result for prediction in predictions]


@contextmanager
def serving(folder: Path, backend: str = "openvino") -> Iterator[Running]:
    with offline([folder], Defaults(backend=backend, precision="f32", workers=1), max_pixels=10_000_000) as service:
        (model,) = service.models
        yield Running(service, model)


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(content))


def assert_same(result: Result, expected: Found) -> None:
    """As many boxes, each where the reference has one of its class and score: 0.005 pixels and 0.0001 apart at most."""
    assert isinstance(result, DetectionResult)
    assert len(result.boxes) == len(expected.boxes)
    free = np.ones(len(result.boxes), bool)
    boxes, scores, label_ids = (np.array(values) for values in (result.boxes, result.scores, result.label_ids))
    for box, score, label_id in zip(expected.boxes, expected.scores, expected.label_ids, strict=True):
        same = free & (label_ids == label_id) & (np.abs(scores - score) < 1e-4)
        match = [index for index in np.flatnonzero(same) if np.abs(boxes[index] - box).max() < 5e-3]
        assert match, f"class {label_id} at {box}, score {score}, is not in {result}"
        free[match[0]] = False
    assert list(result.scores) == sorted(result.scores, reverse=True)


def run(model: Path, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    return [np.asarray(output) for output in reference_session(model).run(None, inputs)]


# The second implementation: from a picture to what is found in it, with a family's own defaults


Reference = Callable[[Path, Pixels, Options], Found]


def finished(found: Found, options: Options, score: float, iou: float, limit: int) -> Found:
    """`found`, with every candidate, after threshold, classes and suppression."""
    threshold = score if options.score_threshold is None else options.score_threshold
    over = found.scores > threshold
    if options.classes:
        over &= np.isin(found.label_ids, [LABELS.index(c) if c in LABELS else int(c) for c in options.classes])
    found = Found(found.boxes[over], found.scores[over], found.label_ids[over])
    iou = iou if options.iou_threshold is None else options.iou_threshold
    return suppressed(found, iou, options.max_detections or limit)


def suppressed(found: Found, iou_threshold: float, limit: int) -> Found:
    """Greedy: the best box stays, and those of its class that overlap it more than so much go."""
    kept: list[int] = []
    left = [int(index) for index in np.argsort(-found.scores, kind="stable")]
    while left and len(kept) < limit:
        best, *others = left
        kept.append(best)
        rival = found.label_ids[others] == found.label_ids[best]
        rival &= overlaps(found.boxes[best], found.boxes[others]) > iou_threshold
        left = [index for index, gone in zip(others, rival, strict=True) if not gone]
    return Found(found.boxes[kept], found.scores[kept], found.label_ids[kept])


def overlaps(box: Floats, others: Floats, border: float = 0.0) -> Floats:
    """Intersections over unions. `border` 1: corners are whole pixels, and both belong to the box."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + border
    shared = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    area = (box[2:] - box[:2] + border).prod()
    unions = area + (others[:, 2:] - others[:, :2] + border).prod(axis=1) - shared
    return np.asarray(shared / np.maximum(unions, 1e-12), np.float64)


def corners(xywh: Floats) -> Floats:
    x, y, width, height = xywh.T
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)


def best_class(boxes: Floats, scores: Floats) -> Found:
    return Found(boxes, scores.max(axis=1), scores.argmax(axis=1))


def every_class(boxes: Floats, scores: Floats) -> Found:
    return candidates(boxes, scores, -1.0, every_class=True)


def yolox(model: Path, image: Pixels, options: Options) -> Found:
    """`preproc` and `demo_postprocess`: what stays of the padding is to the right and below."""
    height, width = image.shape[:2]
    ratio = min(SIZE / height, SIZE / width)
    small_width, small_height = max(1, int(width * ratio)), max(1, int(height * ratio))
    padded = np.full((SIZE, SIZE, 3), 114, np.uint8)
    padded[:small_height, :small_width] = cv2.resize(image, (small_width, small_height))
    (output,) = run(model, images=padded[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32))
    rows = output[0].copy()
    if "raw" in model.parent.name:
        start = 0
        for stride in STRIDES:
            for row in range(SIZE // stride):
                for column in range(SIZE // stride):
                    rows[start, 0] = (rows[start, 0] + column) * stride
                    rows[start, 1] = (rows[start, 1] + row) * stride
                    rows[start, 2:4] = np.exp(rows[start, 2:4]) * stride
                    start += 1
        assert start == len(rows)
    found = best_class(corners(rows[:, :4]), rows[:, 5:] * rows[:, 4:5])
    found = finished(found, options, 0.3, 0.45, 300)
    return in_picture(found, image, (small_width / width, small_height / height), (0, 0))


def yolov6(model: Path, image: Pixels, options: Options) -> Found:
    square, scale, corner = letterboxed(image, SIZE)
    (output,) = run(model, images=planes(square))
    found = best_class(corners(output[0, :, :4]), output[0, :, 5:] * output[0, :, 4:5])
    return in_picture(finished(found, options, 0.25, 0.45, 300), image, scale, corner)


def stretched(image: Pixels, interpolation: int) -> Pixels:
    return np.asarray(cv2.resize(image, (SIZE, SIZE), interpolation=interpolation), np.uint8)


def paddle_tensors(image: Pixels) -> dict[str, Floats]:
    """As PP-YOLOE+ wants them: cubic, no mean, no std; y before x."""
    scale = np.array([[SIZE / image.shape[0], SIZE / image.shape[1]]], np.float32)
    return {"image": planes(stretched(image, cv2.INTER_CUBIC)), "scale_factor": scale}


def ppyoloe(model: Path, image: Pixels, options: Options) -> Found:
    """For all three exports without NMS."""
    tensors = paddle_tensors(image)
    to_prepared = np.array([*tensors["scale_factor"][0, ::-1]] * 2)
    if "exclude_nms" not in model.parent.name:
        del tensors["scale_factor"]
    outputs = run(model, **tensors)
    boxes = outputs[0][0, :, :4]
    scores = outputs[-1][0] if "in rows" in model.parent.name else outputs[-1][0].T
    if len(outputs) == 1:
        scores = outputs[0][0, :, 4:]
    if "scale_factor" not in tensors:
        boxes = boxes / to_prepared
    return in_picture(finished(every_class(boxes, scores), options, 0.5, 0.65, 200), image, (1, 1), (0, 0))


def sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values.astype(np.float64))), np.float32)


def rtdetr(model: Path, image: Pixels, options: Options) -> Found:
    height, width = image.shape[:2]
    kind = model.parent.name
    mean, std = IMAGENET if "dets" in kind else (np.zeros(3), np.ones(3))
    tensors: dict[str, NDArray[Any]] = {"images": planes(stretched(image, cv2.INTER_LINEAR), mean, std)}
    if "found" in kind:
        dtype = np.float32 if "float" in kind else np.int32 if "int32" in kind else np.int64
        labels, boxes, scores = run(model, **tensors, orig_target_sizes=np.array([[width, height]], dtype))
        found, threshold = Found(boxes[0], scores[0], labels[0]), 0.6
    elif "rows" in kind:
        (rows,) = run(model, **tensors)
        found, threshold = best_class(corners(rows[0, :, :4]), rows[0, :, 4:]), 0.25
    else:
        logits, shares = run(model, **tensors)
        boxes = corners(shares[0])
        if "softmax" in kind:
            powers = np.exp(logits[0])
            found = best_class(boxes, (powers / powers.sum(axis=1, keepdims=True))[:, :-1])
        else:
            found = every_class(boxes, sigmoid(logits[0]))
        threshold = 0.5
    if "found" not in kind:
        found = Found(found.boxes * [width, height, width, height], found.scores, found.label_ids)
    return in_picture(finished(found, options, threshold, 2.0, 300), image, (1, 1), (0, 0))


def end2end(model: Path, image: Pixels, options: Options) -> Found:
    square, scale, corner = letterboxed(image, SIZE)
    outputs = run(model, images=planes(square))
    if "packed" in model.parent.name:
        found = Found(outputs[0][:, 1:5], outputs[0][:, 6], outputs[0][:, 5].astype(np.int64))
    elif len(outputs) == 1:
        rows = outputs[0][0]
        rows = rows[rows[:, 4] > 0]
        found = Found(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
    else:
        count, boxes, scores, labels = outputs
        kept = int(count[0, 0])
        found = Found(boxes[0, :kept], scores[0, :kept], labels[0, :kept])
    return in_picture(finished(found, options, 0.25, 2.0, 300), image, scale, corner)


def picodet(model: Path, image: Pixels, options: Options) -> Found:
    """Outputs named a_STRIDE (scores) and b_STRIDE (sides), in whatever order."""
    names = [output.name for output in reference_session(model).get_outputs()]
    outputs = dict(zip(names, run(model, image=planes(stretched(image, cv2.INTER_CUBIC), *IMAGENET)), strict=True))
    boxes, scores = [], []
    for stride in tiny_models.PICODET_STRIDES:
        values = outputs[f"a_{stride}"][0]
        scores.append(sigmoid(values) if "logits" in model.parent.name else values)
        powers = np.exp(outputs[f"b_{stride}"][0].reshape(-1, 4, tiny_models.BINS))
        means = stride * np.dot(powers / powers.sum(axis=2, keepdims=True), range(tiny_models.BINS))
        for anchor, (left, top, right, bottom) in enumerate(means):
            x, y = (anchor % (SIZE // stride) + 0.5) * stride, (anchor // (SIZE // stride) + 0.5) * stride
            boxes.append((x - left, y - top, x + right, y + bottom))
    found = every_class(np.array(boxes), np.concatenate(scores))
    found = finished(found, options, 0.5, 0.6, 100)
    return in_picture(found, image, (SIZE / image.shape[1], SIZE / image.shape[0]), (0, 0))


# One line a kind of export: how it is made, what stands beside it, the family that is found, the reference

PADDLE = {
    "arch": "PPYOLOE",
    "Preprocess": [
        {"type": "Resize", "target_size": [SIZE, SIZE], "keep_ratio": False, "interp": 2},
        {"type": "NormalizeImage", "mean": [0.0] * 3, "std": [1.0] * 3, "is_scale": True, "norm_type": "none"},
        {"type": "Permute"},
    ],
    "label_list": LABELS,
    "draw_threshold": 0.5,
    "NMS": {
        "name": "MultiClassNMS",
        "nms_threshold": 0.65,
        "keep_top_k": 200,
        "nms_top_k": 1000,
        "score_threshold": 0.01,
    },
}
ULTRALYTICS = {"names": str(dict(enumerate(LABELS))), "task": "detect", "imgsz": f"[{SIZE}, {SIZE}]"}
DETR_LABELS = {"labels": LABELS}


@dataclass(frozen=True, slots=True)
class Kind:
    build: Callable[[Path], Path]
    family: str
    reference: Reference
    beside: dict[str, Any] | None = None  # what model.yaml says, or infer_cfg.yml where there is a `Preprocess`


def said(family: str, **more: Any) -> dict[str, Any]:
    return {"family": family, "labels": LABELS, **more}


M = detector_models
KINDS = {
    "yolox raw": Kind(M.yolox, "yolox", yolox, DETR_LABELS),
    "yolox decoded": Kind(lambda p: M.yolox(p, decoded=True), "yolox", yolox, DETR_LABELS),
    "yolox raw told": Kind(M.yolox, "yolox", yolox, said("yolox", postprocess={"decoded": False})),
    "yolox decoded told": Kind(
        lambda p: M.yolox(p, decoded=True), "yolox", yolox, said("yolox", postprocess={"decoded": True})
    ),
    "yolov6": Kind(M.yolov6, "yolov5", yolov6, DETR_LABELS),
    "exclude_nms": Kind(lambda p: M.ppyoloe(p, "exclude_nms"), "ppyoloe", ppyoloe, PADDLE),
    "exclude_nms in rows": Kind(
        lambda p: M.ppyoloe(p, "exclude_nms", rows_of_scores=True),
        "ppyoloe",
        ppyoloe,
        said(
            "ppyoloe",
            preprocess=[{"resize": {"size": SIZE, "interpolation": "cubic"}}, "normalize"],
            postprocess={"iou_threshold": 0.65, "max_detections": 200},
        ),
    ),
    "exclude_post_process": Kind(lambda p: M.ppyoloe(p, "exclude_post_process"), "ppyoloe", ppyoloe, PADDLE),
    "picodet export_nms": Kind(lambda p: M.ppyoloe(p, "export_nms"), "ppyoloe", ppyoloe, {**PADDLE, "arch": "PicoDet"}),
    "rtdetr rows of ultralytics": Kind(
        lambda p: M.rtdetr(p, "rows", metadata={**ULTRALYTICS, "description": "Ultralytics rtdetr-l model"}),
        "rtdetr",
        rtdetr,
    ),
    "rtdetr rows": Kind(lambda p: M.rtdetr(p, "rows"), "rtdetr", rtdetr, said("rtdetr")),
    "rtdetr found": Kind(lambda p: M.rtdetr(p, "found"), "rtdetr", rtdetr, DETR_LABELS),
    "rtdetr found float": Kind(
        lambda p: M.rtdetr(p, "found", size_type=TensorProto.FLOAT), "rtdetr", rtdetr, DETR_LABELS
    ),
    "rtdetr found int32": Kind(
        lambda p: M.rtdetr(p, "found", size_type=TensorProto.INT32), "rtdetr", rtdetr, DETR_LABELS
    ),
    "rtdetr pred_logits": Kind(lambda p: M.rtdetr(p, "raw"), "rtdetr", rtdetr, DETR_LABELS),
    "rtdetr logits": Kind(lambda p: M.rtdetr(p, "raw", names=("logits", "pred_boxes")), "rtdetr", rtdetr, DETR_LABELS),
    "rf-detr dets": Kind(lambda p: M.rtdetr(p, "raw", names=("labels", "dets")), "rtdetr", rtdetr, DETR_LABELS),
    "detr softmax": Kind(
        lambda p: M.rtdetr(p, "raw"),
        "rtdetr",
        rtdetr,
        {"labels": LABELS[:2], "family": "rtdetr", "postprocess": {"activation": "softmax"}},
    ),
    "yolov10": Kind(lambda p: M.yolo_end2end(p, metadata=ULTRALYTICS), "yolo_end2end", end2end),
    "rows alone": Kind(M.yolo_end2end, "yolo_end2end", end2end, DETR_LABELS),
    "yolov7 packed": Kind(lambda p: M.yolo_end2end(p, "packed"), "yolo_end2end", end2end, said("yolo_end2end")),
    "num_dets": Kind(lambda p: M.yolo_end2end(p, "four"), "yolo_end2end", end2end, DETR_LABELS),
    "picodet sides first": Kind(lambda p: M.picodet_heads(p, order="sides first"), "picodet", picodet, said("picodet")),
    "picodet in pairs": Kind(lambda p: M.picodet_heads(p, order="in pairs"), "picodet", picodet, said("picodet")),
    "picodet coarsest first": Kind(
        lambda p: M.picodet_heads(p, order="coarsest first"), "picodet", picodet, said("picodet")
    ),
    "picodet logits": Kind(lambda p: M.picodet_heads(p, logits=True), "picodet", picodet, said("picodet")),
    "picodet logits by value": Kind(
        lambda p: M.picodet_heads(p, logits=True, shifted=True), "picodet", picodet, said("picodet")
    ),
    "picodet logits told": Kind(
        lambda p: M.picodet_heads(p, logits=True, shifted=True),
        "picodet",
        picodet,
        said("picodet", postprocess={"activation": "sigmoid"}),
    ),
}


def make(folder: Path, kind: str, **more: Any) -> Path:
    """The model of a kind in a folder named as it, with what stands beside it; `more` for its model.yaml."""
    model = KINDS[kind].build(folder / kind / "m.onnx")
    beside = dict(KINDS[kind].beside or {})
    if "Preprocess" in beside:
        write(model.parent, "infer_cfg.yml", beside)
        beside = {}
    if beside or more:
        write(model.parent, "model.yaml", {**beside, **more})
    return model


def asked_of(model: Model) -> Iterator[Options]:
    """What of ASKED means something to a model's family."""
    assert model.family
    for options in ASKED:
        given = {name: value for name, value in options.given().items() if name in model.family.accepts}
        if "classes" in given and "dog" not in model.labels:
            given["classes"] = ("0", "1")
        yield Options(**given)


Expect = Callable[[str, int, Options], Found]


@pytest.fixture(scope="module")
def expect(tmp_path_factory: pytest.TempPathFactory) -> Expect:
    """What the second implementation finds with a kind of model in the picture of SIZES[seed]: the same for each backend."""
    folder = tmp_path_factory.mktemp("second")

    @cache
    def model(kind: str) -> Path:
        return make(folder, kind)

    @cache
    def found(kind: str, seed: int, options: Options) -> Found:
        return KINDS[kind].reference(model(kind), tiny_models.picture(*SIZES[seed], seed=seed), options)

    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_export_gives_the_boxes_of_the_reference(kind: str, backend: str, expect: Expect, tmp_path: Path) -> None:
    model = make(tmp_path, kind)
    total = 0
    with serving(model.parent, backend) as running:
        assert running.model.family_name == KINDS[kind].family
        assert running.model.labels[:2] == ("cat", "dog")
        for seed, size in enumerate(SIZES):
            image = tiny_models.picture(*size, seed=seed)
            for options in asked_of(running.model):
                expected = expect(kind, seed, options)
                assert_same(running.predict(image, options), expected)
                total += len(expected.boxes)
    assert total > 100


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_one_batch_each_get_their_own(kind: str, backend: str, tmp_path: Path) -> None:
    model = make(tmp_path, kind, batching={"max_batch_size": 4, "max_queue_delay_us": 50_000})
    images = [tiny_models.picture(*size, seed=seed) for seed, size in enumerate([(64, 64), (97, 31), (300, 200)])]
    with serving(model.parent, backend) as running:
        expected = [KINDS[kind].reference(model, image, NO_OPTIONS) for image in images]
        for result, found in zip(running.predict_many(images * 3), expected * 3, strict=True):
            assert_same(result, found)
        assert running.model.pool.statistics.snapshot().execution_count < 9


# Outputs that are no numbers


NAN, INF = float("nan"), float("inf")
BROKEN = {  # family -> columns of a row that is good, in which each number is broken in turn
    "yolov5": [20, 20, 10, 10, 0.9, 0.9, 0.1, 0.1],
    "yolox": [20, 20, 10, 10, 0.9, 0.9, 0.1, 0.1],
    "rtdetr": [0.3, 0.3, 0.2, 0.2, 0.9, 0.1, 0.1],
    "yolo_end2end": [10, 10, 20, 20, 0.9, 1],
    "ppyoloe": [10, 10, 20, 20, 0.9, 0.1, 0.1],
}


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 3e38, -3e38])
@pytest.mark.parametrize("family", BROKEN)
def test_what_is_no_number_is_no_object_and_the_others_stay(family: str, bad: float, tmp_path: Path) -> None:
    good = np.array(BROKEN[family], np.float32)
    count = 84 if family == "yolox" else 40
    rows = np.zeros((1, count, len(good)), np.float32)
    rows[0, 0] = good
    for column in range(len(good)):
        rows[0, 1 + column] = good + np.array([30, 30, *(0,) * (len(good) - 2)]) * (family != "rtdetr")
        rows[0, 1 + column, column] = bad
    M.constant_output(tmp_path / "m.onnx", rows)
    finishing = {"decoded": True} if family == "yolox" else {}
    preparing = {"preprocess": [{"resize": SIZE}, "normalize"]} if family == "ppyoloe" else {}
    write(tmp_path, "model.yaml", {"family": family, "postprocess": finishing, **preparing})
    for backend in BACKENDS:
        with serving(tmp_path, backend) as running:
            for options in (NO_OPTIONS, Options(score_threshold=0.0), Options(score_threshold=0.3, max_detections=1)):
                result = running.predict(tiny_models.picture(SIZE, SIZE), options)
                assert isinstance(result, DetectionResult)
                assert result.boxes
                assert np.isfinite(result.boxes).all() and np.isfinite(result.scores).all()
                assert all(0 <= side <= SIZE for box in result.boxes for side in box)
                assert all(0 <= label_id < 4 for label_id in result.label_ids)


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 3e38])
def test_numbers_that_are_none_in_raw_heads_do_no_harm(bad: float) -> None:
    from visionpool_server.families import FamilySpec, build_family
    from visionpool_server.imaging.recipe import Geometry

    outputs = {"a": (1, 64, 3), "b": (1, 64, 32)}
    family = build_family("picodet", FamilySpec({"image": (1, 3, 64, 64)}, outputs))
    arrays = {"a": np.full((64, 3), 0.1, np.float32), "b": np.zeros((64, 32), np.float32)}
    arrays["a"][5, 1] = arrays["a"][6, 2] = 0.9
    arrays["b"][6, 3] = bad
    arrays["a"][7, 0] = bad if np.isnan(bad) else 0.1
    result: Any = family.finish(arrays, Geometry(64, 64), NO_OPTIONS)
    assert result.label_ids in ((1,), (1, 2))
    assert np.isfinite(result.boxes).all()


# YOLOX: in pixels, or in cells


@pytest.mark.parametrize(("strides", "anchors"), [((8, 16, 32), 84), ((8, 16, 32, 64), 85)])
def test_a_yolox_may_have_a_fourth_level(strides: tuple[int, ...], anchors: int, tmp_path: Path) -> None:
    M.yolox(tmp_path / "m.onnx", strides=strides)
    with serving(tmp_path) as running:
        assert running.model.family_name == "yolox"
        assert running.model.signature.outputs[0].shape == (None, anchors, 8)
        result = running.predict(tiny_models.picture(SIZE, SIZE))
    assert isinstance(result, DetectionResult) and result.boxes


def test_a_yolox_of_another_size_than_its_anchors_is_refused(tmp_path: Path) -> None:
    M.yolox(tmp_path / "m.onnx", strides=(8, 16))
    write(tmp_path, "model.yaml", {"family": "yolox"})
    with (
        pytest.raises(InvalidModel, match=r"64x64 pixels give another count than the 80 of this model") as caught,
        serving(tmp_path),
    ):
        pass
    assert "yolov5" in (caught.value.hint or "")


@pytest.mark.parametrize("side", [320, 416, 640])
def test_the_grids_of_picodet_are_rounded_up(side: int) -> None:
    """At 416 pixels stride 64 has 7 by 7 cells: an object in the last one is found where that cell is."""
    from visionpool_server.families import FamilySpec, build_family
    from visionpool_server.imaging.recipe import Geometry

    grids = {stride: -(-side // stride) for stride in (8, 16, 32, 64)}
    outputs = {
        f"{name}{stride}": (1, n * n, width) for name, width in (("s", 80), ("b", 32)) for stride, n in grids.items()
    }
    family = build_family("picodet", FamilySpec({"image": (1, 3, side, side)}, outputs))
    for stride, n in grids.items():
        arrays = {name: np.zeros(shape[1:], np.float32) for name, shape in outputs.items()}
        arrays[f"s{stride}"][(n - 1) * n + 1, 7] = 0.9  # last row, second column
        arrays[f"b{stride}"][:, [1, 9, 17, 25]] = 100  # each side 1 stride away
        result: Any = family.finish(arrays, Geometry(9999, 9999), NO_OPTIONS)
        left, top = 0.5 * stride, (n - 1.5) * stride
        assert result.label_ids == (7,)
        assert result.boxes[0] == pytest.approx((left, top, left + 2 * stride, top + 2 * stride), abs=1e-3)


def test_packed_rows_are_parted_by_picture_and_joined_again() -> None:
    from visionpool_server.families import FamilySpec, build_family

    family = build_family("yolo_end2end", FamilySpec({"images": (None, 3, 64, 64)}, {"output": (None, 7)}))
    rows = np.array([[2, 1, 1, 5, 5, 0, 0.9], [0, 2, 2, 6, 6, 1, 0.8], [2, 3, 3, 7, 7, 1, 0.7]], np.float32)
    parts = family.split({"output": rows}, 3)
    assert [len(part["output"]) for part in parts] == [1, 0, 2]
    assert parts[2]["output"][:, 1].tolist() == [1, 3]
    joined = family.join([parts[2], parts[1], parts[0]])["output"]
    assert joined[:, :2].tolist() == [[0, 1], [0, 3], [2, 2]]
