"""What PaddleOCR would answer, told by a second implementation: ONNX Runtime, NumPy, OpenCV and pyclipper, nothing of ours.

It follows PaddleOCR's `tools/infer` step by step (predict_system, predict_det, predict_cls, predict_rec and their post-
processing). `python -m tests.ocr_reference TESTDATA` writes tests/golden/ocr.json anew.

One thing has two answers: PaddleOCR pads the lines of a picture to the widest of their batch, we to the next of a few fixed
widths. Both are written down: `text` and `score` with the latter, `paddle_text` and `paddle_score` as PaddleOCR does it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pyclipper
from numpy.typing import NDArray

Array = NDArray[Any]
GOLDEN = Path(__file__).parent / "golden" / "ocr.json"
WIDTHS = (320, 480, 640, 800, 960, 1280, 1600, 1920, 2560, 3200)
BOX_THRESHOLD = 0.5  # PaddleOCR's usual .6 leaves the number of the chapter in en.jpg out: it scores .535
DROP_SCORE = 0.5
DETECTOR = "ppocr_det/ch_PP-OCRv3_det.onnx"
CLASSIFIER = "ppocr_cls/ch_ppocr_mobile_v2.0_cls.onnx"
RECOGNISER = "ppocr_rec_en/en_number_mobile_v2.0_rec.onnx"
DICTIONARY = "ppocr_rec_en/en_dict.txt"


def variants(images: Path) -> dict[str, Array]:
    """The pictures that are read, (H, W, 3) BGR: as they lie, and turned."""
    page = opened(images / "en.jpg")
    return {
        "en": page,
        "latin": opened(images / "latin.jpg"),
        "line": opened(images / "en_rec.jpg"),
        "no text for it": opened(images / "fastdeploy_ocrdet.jpg"),
        "en in colours": coloured(page),
        "numbers": opened(images / "ch_en_num.jpg"),
        "vertical": opened(images / "text_vertical_words.png"),
        "en turned by 180": cv2.rotate(page, cv2.ROTATE_180),
        "en turned by 90": cv2.rotate(page, cv2.ROTATE_90_CLOCKWISE),
        "en turned by 270": cv2.rotate(page, cv2.ROTATE_90_COUNTERCLOCKWISE),
        "en tilted by 4": tilted(page, 4),
        "en tilted by -7": tilted(page, -7),
    }


def opened(path: Path) -> Array:
    return np.asarray(cv2.imread(str(path)))


def coloured(image: Array) -> Array:
    """Black on white as dark red on light blue: what takes BGR for RGB sees another picture."""
    share = np.array([0.45, 0.7, 0.3])
    return np.asarray(np.round(image * share + np.array([120, 10, 150]) * (1 - share)), np.uint8)


def floats(values: Any) -> Array:
    return np.array(values, np.float32)


def tilted(image: Array, degrees: float) -> Array:
    """Turned by a small angle on a larger white page."""
    height, width = image.shape[:2]
    side = int(math.hypot(height, width)) + 1
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    matrix[:, 2] += (side - width) / 2, (side - height) / 2
    turned = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderValue=(255, 255, 255))
    return np.asarray(turned)


class Reference:
    def __init__(self, models: Path, box_threshold: float = BOX_THRESHOLD) -> None:
        self.box_threshold = box_threshold
        self.detector, self.classifier, self.recogniser = (
            ort.InferenceSession(str(models / name), providers=["CPUExecutionProvider"])
            for name in (DETECTOR, CLASSIFIER, RECOGNISER)
        )
        lines = (models / DICTIONARY).read_text(encoding="utf-8").split("\n")
        self.characters = ["blank", *lines[: -1 if lines[-1] == "" else None], " "]

    def read(self, image: Array) -> list[dict[str, Any]]:
        """The lines in PaddleOCR's own order, those dropped left out."""
        boxes = paddle_order(self.detect(image))
        crops = [cut(image, box) for box in boxes] or [image]
        boxes = boxes or [whole(image)]
        upright, seen = self.classify(crops)
        texts = [self.recognise([crop], widths=WIDTHS)[0] for crop in upright]
        paddles = self.recognise_like_paddle(upright)
        found = []
        for i, (text, score) in enumerate(texts):
            if score < DROP_SCORE:
                continue
            (label, certain), (theirs, their_score) = seen[i], paddles[i]
            line = {"box": boxes[i].astype(int).ravel().tolist(), "text": text, "score": score, "label": label}
            found.append({**line, "label_score": certain, "paddle_text": theirs, "paddle_score": their_score})
        return found

    # --- detection

    def detect(self, image: Array) -> list[Array]:
        height, width = image.shape[:2]
        ratio = 960 / max(height, width) if max(height, width) > 960 else 1.0
        rows, columns = (max(int(round(int(side * ratio) / 32) * 32), 32) for side in (height, width))
        scaled = cv2.resize(image, (columns, rows)).astype(np.float32) / np.float32(255)
        normal = (scaled - floats([0.485, 0.456, 0.406])) / floats([0.229, 0.224, 0.225])
        (likely,) = self.detector.run(None, {"x": normal.transpose(2, 0, 1)[None].astype(np.float32)})
        return self._boxes(likely[0, 0], width, height)

    def _boxes(self, likely: Array, width: int, height: int) -> list[Array]:
        rows, columns = likely.shape
        found = []
        contours, _ = cv2.findContours((likely > 0.3).astype(np.uint8) * 255, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours[:1000]:
            corners, side = smallest_box(contour)
            if side < 3 or mean_in(likely, corners) < self.box_threshold:
                continue
            corners, side = smallest_box(grown(corners, 1.5).reshape(-1, 1, 2))
            if side < 5:
                continue
            corners[:, 0] = np.clip(np.round(corners[:, 0] / columns * width), 0, width)
            corners[:, 1] = np.clip(np.round(corners[:, 1] / rows * height), 0, height)
            corners = clockwise(corners)
            corners[:, 0] = np.clip(corners[:, 0], 0, width - 1).astype(int)
            corners[:, 1] = np.clip(corners[:, 1], 0, height - 1).astype(int)
            if min(int(np.linalg.norm(corners[0] - corners[i])) for i in (1, 3)) > 3:
                found.append(corners)
        return found

    # --- direction

    def classify(self, crops: Sequence[Array]) -> tuple[list[Array], list[tuple[int, float]]]:
        """The crops, turned where they are surely upside down; and what was said of each."""
        upright, seen = [], []
        for crop in crops:
            (scores,) = self.classifier.run(None, {"x": line(crop, 48, 192)[None]})
            label = int(scores[0].argmax())
            seen.append((label, float(scores[0, label])))
            turn = label == 1 and scores[0, 1] > 0.9
            upright.append(cv2.rotate(crop, cv2.ROTATE_180) if turn else crop)
        return upright, seen

    # --- text

    def recognise(self, crops: Sequence[Array], widths: Sequence[int]) -> list[tuple[str, float]]:
        natural = max(math.ceil(32 * (crop.shape[1] / crop.shape[0])) for crop in crops)
        width = next((width for width in widths if width >= natural), widths[-1])
        (scores,) = self.recogniser.run(None, {"x": np.stack([line(crop, 32, width) for crop in crops])})
        return [self._text(steps) for steps in scores]

    def recognise_like_paddle(self, crops: Sequence[Array], at_once: int = 6) -> list[tuple[str, float]]:
        """Six by six from the narrowest on, each six padded to its widest."""
        order = np.argsort([crop.shape[1] / crop.shape[0] for crop in crops])
        texts: dict[int, tuple[str, float]] = {}
        for start in range(0, len(crops), at_once):
            some = order[start : start + at_once]
            ratio = max([320 / 32, *(crops[i].shape[1] / crops[i].shape[0] for i in some)])
            (scores,) = self.recogniser.run(None, {"x": np.stack([line(crops[i], 32, int(32 * ratio)) for i in some])})
            texts |= {int(i): self._text(steps) for i, steps in zip(some, scores, strict=True)}
        return [texts[i] for i in range(len(crops))]

    def _text(self, steps: Array) -> tuple[str, float]:
        text, kept, last = "", [], 0
        for row in steps:
            best = int(row.argmax())
            if best not in (0, last):
                text += self.characters[best]
                kept.append(float(row[best]))
            last = best
        return text, float(np.mean(kept)) if kept else 0.0


def line(crop: Array, height: int, width: int) -> Array:
    """(3, height, width): in proportion, normalised, then zeros."""
    own = min(width, math.ceil(height * (crop.shape[1] / crop.shape[0])))
    scaled = cv2.resize(crop, (own, height)).astype(np.float32).transpose(2, 0, 1) / 255
    out = np.zeros((3, height, width), np.float32)
    out[:, :, :own] = (scaled - 0.5) / 0.5
    return out


def smallest_box(points: Array) -> tuple[Array, float]:
    rectangle = cv2.minAreaRect(points)
    a, b, c, d = sorted(cv2.boxPoints(rectangle), key=lambda point: float(point[0]))
    top_left, bottom_left = (a, b) if b[1] > a[1] else (b, a)
    top_right, bottom_right = (c, d) if d[1] > c[1] else (d, c)
    return np.array([top_left, top_right, bottom_right, bottom_left]), min(rectangle[1])


def mean_in(likely: Array, corners: Array) -> float:
    mask = np.zeros(likely.shape, np.uint8)
    left = int(np.clip(math.floor(corners[:, 0].min()), 0, likely.shape[1] - 1))
    top = int(np.clip(math.floor(corners[:, 1].min()), 0, likely.shape[0] - 1))
    start = np.array([left, top], np.int32)
    inside = (corners - start.astype(np.float32)).astype(np.int32) + start
    cv2.fillPoly(mask, [inside], 1)
    return float(likely[mask > 0].mean())


def grown(corners: Array, ratio: float) -> Array:
    area = abs(sum(corners[i - 1][0] * corners[i][1] - corners[i][0] * corners[i - 1][1] for i in range(4))) / 2
    length = sum(math.dist(corners[i - 1], corners[i]) for i in range(4))
    clipper = pyclipper.PyclipperOffset()
    clipper.AddPath([tuple(point) for point in corners], pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    return np.array(clipper.Execute(float(area) * ratio / length)[0])


def clockwise(corners: Array) -> Array:
    total, slope = corners.sum(axis=1), corners[:, 1] - corners[:, 0]
    first, third = int(total.argmin()), int(total.argmax())
    rest = [i for i in range(4) if i not in (first, third)]
    second, fourth = sorted(rest, key=lambda i: float(slope[i]))
    return np.array([corners[i] for i in (first, second, third, fourth)], np.float32)


def paddle_order(boxes: Sequence[Array]) -> list[Array]:
    """Downwards, and from left to right where the top left corners are less than 10 pixels apart."""
    ordered = sorted(boxes, key=lambda box: (box[0][1], box[0][0]))
    for i in range(len(ordered) - 1):
        for j in range(i, -1, -1):
            this, following = ordered[j], ordered[j + 1]
            if abs(following[0][1] - this[0][1]) < 10 and following[0][0] < this[0][0]:
                ordered[j], ordered[j + 1] = following, this
            else:
                break
    return ordered


def cut(image: Array, box: Array) -> Array:
    width = int(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3])))
    height = int(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2])))
    matrix = cv2.getPerspectiveTransform(box, floats([[0, 0], [width, 0], [width, height], [0, height]]))
    flat = cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.rot90(flat) if height / width >= 1.5 else flat


def whole(image: Array) -> Array:
    right, bottom = image.shape[1] - 1, image.shape[0] - 1
    return floats([[0, 0], [right, 0], [right, bottom], [0, bottom]])


def rounded(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()} for line in found
    ]


def main(testdata: Path) -> None:
    reference = Reference(testdata / "models")
    pictures = variants(testdata / "images" / "ocr")
    golden = {name: rounded(reference.read(image)) for name, image in pictures.items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
