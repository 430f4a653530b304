"""How the two demo models are measured: held-out pictures, COCO average precision, digit accuracy.

Free of any training framework, so that the tests, the training script and a check of the served model share
one measure. Pictures are (H, W, 3) uint8 RGB; boxes are (n, 4) float32 x1 y1 x2 y2 in picture pixels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import CLASS_NAMES, Floats, Image, Ints, Scene, draw_scene
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT_SEEDS = range(300)
"""Training draws its scenes from seeds far above these."""

DIGIT_SPLIT_SEED = 0

DetectShapes = Callable[[Image], tuple[Floats, Floats, Ints]]
"""One picture to boxes (n, 4), scores (n,) and label ids (n,)."""

ClassifyDigit = Callable[[Image], int]


@dataclass(frozen=True)
class ShapesScore:
    """COCO average precision at IoU 0.50, and averaged over IoU 0.50..0.95."""

    map50: float
    map50_95: float


def score_shapes(predict: DetectShapes, seeds: range = HELD_OUT_SEEDS) -> ShapesScore:
    """Score a detector on the scenes of `seeds` with pycocotools."""
    drawn = [draw_scene(seed) for seed in seeds]
    found: list[dict[str, Any]] = []
    for image_id, scene in enumerate(drawn, 1):
        for box, score, label_id in zip(*predict(scene.image), strict=True):
            found.append({"image_id": image_id, "score": float(score), **_coco_box(box, int(label_id))})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _coco_truth(drawn)
        if not found:
            return ShapesScore(0.0, 0.0)
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return ShapesScore(map50=float(judge.stats[1]), map50_95=float(judge.stats[0]))


def _coco_box(box: Floats, label_id: int) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return {"category_id": label_id + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _coco_truth(drawn: list[Scene]) -> COCO:
    # COCO's matching takes id 0 for "no match", so every id counts from 1.
    labelled = [
        {"image_id": image_id, "iscrowd": 0, **_coco_box(box, int(label_id))}
        for image_id, scene in enumerate(drawn, 1)
        for box, label_id in zip(scene.boxes, scene.label_ids, strict=True)
    ]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image_id} for image_id in range(1, len(drawn) + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASS_NAMES, 1)],
        "annotations": [{"id": k, **entry} for k, entry in enumerate(labelled, 1)],
    }
    truth.createIndex()
    return truth


# -- running the detector ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letterbox:
    """A picture fitted into a grey square (size, size, 3): its point p lies at p * scale + (left, top)."""

    image: Image
    scale: float
    left: int
    top: int

    def to_input(self, boxes: Floats) -> Floats:
        return np.asarray(boxes * self.scale + self._offset(), np.float32)

    def to_picture(self, boxes: Floats) -> Floats:
        return np.asarray((boxes - self._offset()) / self.scale, np.float32)

    def _offset(self) -> Floats:
        return np.array([self.left, self.top, self.left, self.top], np.float32)


def letterbox(image: Image, size: int, grey: int = 114) -> Letterbox:
    """Scale by one factor until the longer side is `size`, and centre on grey."""
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    new_height, new_width = round(height * scale), round(width * scale)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square = np.full((size, size, 3), grey, np.uint8)
    square[top : top + new_height, left : left + new_width] = cv2.resize(
        image, (new_width, new_height), interpolation=cv2.INTER_LINEAR
    )
    return Letterbox(square, scale, left, top)


def suppress(boxes: Floats, scores: Floats, label_ids: Ints, max_overlap: float = 0.7) -> Ints:
    """Greedy non-maximum suppression within each class: indices kept, best score first."""
    order = np.argsort(-scores, kind="stable")
    # Classes moved far apart cannot suppress one another.
    moved = boxes + (label_ids[:, None] * 10_000).astype(np.float32)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        low = np.maximum(moved[best, :2], moved[rest, :2])
        high = np.minimum(moved[best, 2:], moved[rest, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        order = rest[shared <= max_overlap * (areas[best] + areas[rest] - shared)]
    return np.array(kept, np.int64)


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def onnx_detector(path: Path, size: int = 320, min_score: float = 0.01) -> DetectShapes:
    """The exported detector in onnxruntime, from letterbox to suppression."""
    session = _session(path)

    def predict(image: Image) -> tuple[Floats, Floats, Ints]:
        fitted = letterbox(image, size)
        blob = fitted.image.transpose(2, 0, 1)[None].astype(np.float32) / 255
        rows = session.run(None, {"images": blob})[0][0].T
        rows = rows[rows[:, 4:].max(1) > min_score]
        half = rows[:, 2:4] / 2
        boxes = fitted.to_picture(np.concatenate([rows[:, :2] - half, rows[:, :2] + half], 1))
        boxes = boxes.clip(0, np.tile(image.shape[1::-1], 2)).astype(np.float32)
        scores, label_ids = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
        kept = suppress(boxes, scores, label_ids)[:100]
        return boxes[kept], scores[kept], label_ids[kept]

    return predict


# -- digits --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DigitSplit:
    """scikit-learn's digits: ink (n, 8, 8) float32 0..16 and labels (n,), a stratified fifth held out."""

    train_ink: Floats
    train_labels: Ints
    test_ink: Floats
    test_labels: Ints


def split_digits() -> DigitSplit:
    digits = load_digits()
    train_ink, test_ink, train_labels, test_labels = train_test_split(
        digits.images.astype(np.float32),
        digits.target.astype(np.int64),
        test_size=0.2,
        random_state=DIGIT_SPLIT_SEED,
        stratify=digits.target,
    )
    return DigitSplit(train_ink, train_labels, test_ink, test_labels)


def digit_picture(ink: Floats, size: int = 128, dark_ink: bool = False) -> Image:
    """Ink (8, 8) 0..16 as a grey picture (size, size, 3): light on black, or dark on white."""
    grey = np.round(ink * (255 / 16)).astype(np.uint8)
    grey = cv2.resize(255 - grey if dark_ink else grey, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.merge([grey] * 3), np.uint8)


def score_digits(classify: ClassifyDigit, dark_ink: bool = False) -> float:
    """Accuracy on the held-out fifth, 0..1."""
    split = split_digits()
    said = [classify(digit_picture(ink, dark_ink=dark_ink)) for ink in split.test_ink]
    return float(np.mean(np.array(said) == split.test_labels))


def onnx_classifier(path: Path, size: int = 32) -> ClassifyDigit:
    """The exported classifier in onnxruntime, a picture resized bilinearly to its input."""
    session = _session(path)

    def classify(image: Image) -> int:
        small = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        blob = small.transpose(2, 0, 1)[None].astype(np.float32) / 255
        return int(session.run(None, {"images": blob})[0][0].argmax())

    return classify
