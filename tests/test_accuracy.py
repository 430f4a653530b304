"""Accuracy of real exports, asked over HTTP of a real server and scored with pycocotools; needs the shared test data.

The expected figures come from another evaluator, with plain OpenCV preprocessing (testdata/README.md).
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import visionpool
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from visionpool.results import ClassifyResult, DetectionResult, Result

from tests.real_server import serving

MODELS = (
    "yolov5n",
    "yolov8n",
    "picodet_s_320",
    "picodet_s_320_paddle",
    "squeezenet",
    "squeezenet_paddle",
)
CONCURRENCY = 8
EVALUATION = {"score_threshold": 0.001, "max_detections": 100}


@dataclass(frozen=True, slots=True)
class Asking:
    """A client of a running server."""

    client: visionpool.Client

    def all(self, model: str, pictures: Sequence[Path], **options: Any) -> list[Result]:
        """One result for each picture, asked for several at a time."""
        with ThreadPoolExecutor(CONCURRENCY) as threads:
            return list(threads.map(lambda path: self.client.predict(model, path, **options), pictures))


@pytest.fixture(scope="module")
def asking(testdata: Path) -> Iterator[Asking]:
    with (
        serving(*(testdata / "models" / name for name in MODELS), "--precision", "f32") as server,
        visionpool.Client(server.url) as client,
    ):
        yield Asking(client)


@pytest.fixture(scope="module")
def photos(testdata: Path) -> list[Path]:
    found = sorted((testdata / "images" / "coco64" / "images").glob("*.jpg"))
    assert len(found) == 64
    return found


@pytest.fixture(scope="module")
def truth(photos: list[Path]) -> COCO:
    """The YOLO labels as a COCO data set; only the classes that have a box in it."""
    images, boxes = [], []
    classes: set[int] = set()
    for index, path in enumerate(photos):
        with Image.open(path) as image:
            width, height = image.size
        images.append({"id": index, "width": width, "height": height})
        labels = path.parents[1] / "labels" / f"{path.stem}.txt"
        for line in labels.read_text().splitlines() if labels.exists() else ():
            class_id, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            classes.add(int(class_id))
            boxes.append({"image_id": index, "category_id": int(class_id), "bbox": box, "area": box[2] * box[3]})
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": [{"id": i + 1, "iscrowd": 0, **box} for i, box in enumerate(boxes)],
        "categories": [{"id": i, "name": str(i)} for i in sorted(classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def average_precision(truth: COCO, results: Sequence[DetectionResult]) -> tuple[float, float]:
    """mAP50-95 and mAP50."""
    found = [
        {"image_id": index, "category_id": label_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for index, result in enumerate(results)
        for (x1, y1, x2, y2), score, label_id in zip(result.boxes, result.scores, result.label_ids, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def detections(results: Sequence[Result]) -> list[DetectionResult]:
    assert all(isinstance(result, DetectionResult) for result in results)
    return [result for result in results if isinstance(result, DetectionResult)]


@pytest.mark.parametrize(
    ("model", "iou_threshold", "expected"),
    [
        ("yolov5n", 0.65, (0.344, 0.541)),
        ("yolov8n", 0.65, (0.438, 0.601)),
        ("picodet_s_320", 0.6, (0.333, 0.519)),
    ],
)
def test_a_detector_is_as_accurate_as_its_reference(
    asking: Asking,
    truth: COCO,
    photos: list[Path],
    model: str,
    iou_threshold: float,
    expected: tuple[float, float],
) -> None:
    results = detections(asking.all(model, photos, iou_threshold=iou_threshold, **EVALUATION))
    measured = average_precision(truth, results)
    assert measured == pytest.approx(expected, abs=0.005)


def test_the_paddle_export_with_nms_inside_is_as_accurate(asking: Asking, truth: COCO, photos: list[Path]) -> None:
    measured = average_precision(truth, detections(asking.all("picodet_s_320_paddle", photos, **EVALUATION)))
    assert measured == pytest.approx((0.333, 0.519), abs=0.005)


def test_the_paddle_export_finds_the_boxes_of_its_onnx_twin(asking: Asking, photos: list[Path]) -> None:
    """Every box over .3 of either is in the other, to half a pixel; .28 leaves room for a score at the border.

    This graph's `multiclass_nms3` has `normalized=False`: a box spans its last pixel too, so it is a pixel wider where
    overlaps are measured. The twin is therefore asked for all candidates, and suppressed here in that way.
    """
    paddle = detections(asking.all("picodet_s_320_paddle", photos, score_threshold=0.28))
    options = {"score_threshold": 0.28, "iou_threshold": 1.0, "max_detections": 10_000}
    twin = [suppressed(result, 0.6) for result in detections(asking.all("picodet_s_320", photos, **options))]
    matched = sum(missing(ours, theirs) + missing(theirs, ours) for ours, theirs in zip(paddle, twin, strict=True))
    assert matched > 1000


def suppressed(result: DetectionResult, iou_threshold: float) -> DetectionResult:
    """Greedy suppression in each class, of boxes that are a pixel wider and higher than their corners say."""
    boxes = np.array(result.boxes).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    kept: list[int] = []
    for index, label_id in enumerate(result.label_ids):  # best score first
        rivals = [other for other in kept if result.label_ids[other] == label_id]
        corners = np.minimum(boxes[rivals, 2:], boxes[index, 2:]) - np.maximum(boxes[rivals, :2], boxes[index, :2]) + 1
        shared = corners.clip(0).prod(axis=1)
        if (shared / (areas[rivals] + areas[index] - shared) <= iou_threshold).all():
            kept.append(index)
    return DetectionResult(
        boxes=tuple(result.boxes[i] for i in kept),
        scores=tuple(result.scores[i] for i in kept),
        label_ids=tuple(result.label_ids[i] for i in kept),
    )


def missing(wanted: DetectionResult, given: DetectionResult) -> int:
    """Asserts that every box over .3 of `wanted` is among `given`; how many there were."""
    strong = [item for item in zip(wanted.boxes, wanted.scores, wanted.label_ids, strict=True) if item[1] > 0.3]
    for box, score, label_id in strong:
        same = np.array(given.label_ids) == label_id
        near = np.abs(np.array(given.boxes).reshape(-1, 4) - box).max(axis=1) <= 0.5
        close = np.abs(np.array(given.scores) - score) < 0.01
        assert (same & near & close).any(), f"no twin of {label_id} at {box}, score {score}"
    return len(strong)


@pytest.mark.parametrize("model", ["squeezenet", "squeezenet_paddle"])
def test_a_classifier_is_as_accurate_as_its_reference(asking: Asking, testdata: Path, model: str) -> None:
    folder = testdata / "images" / "imagenet100"
    with (folder / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (folder / row["file"]).exists()]
    assert len(rows) == 100
    results = asking.all(model, [folder / row["file"] for row in rows], top_k=5)
    ranks = [
        result.label_ids.index(int(row["index"])) if int(row["index"]) in result.label_ids else 5
        for row, result in zip(rows, results, strict=True)
        if isinstance(result, ClassifyResult)
    ]
    assert len(ranks) == len(rows)
    measured = (np.mean(np.array(ranks) < 1), np.mean(np.array(ranks) < 5))
    assert measured == pytest.approx((0.66, 0.85), abs=0.01)
