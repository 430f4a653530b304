"""The reference of benchmarks.http: what an engineer writes by hand, without any server around it.

Two threads, each with its own stream: `cv2.imdecode`, letterbox or resize and crop, `cv2.dnn.blobFromImage`, OpenVINO, then
thresholding and `cv2.dnn.NMSBoxes`, or top-5. Nothing of visionpool is imported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
from numpy.typing import NDArray

Prepare = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], Any]]
Finish = Callable[[NDArray[np.float32], Any], object]


def yolov5_prepare(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Any]:
    rows, columns = image.shape[:2]
    ratio = min(640 / rows, 640 / columns)
    height, width = round(rows * ratio), round(columns * ratio)
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    top, left = (640 - height) // 2, (640 - width) // 2
    boxed = cv2.copyMakeBorder(
        resized, top, 640 - height - top, left, 640 - width - left, cv2.BORDER_CONSTANT, value=(114, 114, 114)
    )
    blob: Any = cv2.dnn.blobFromImage(boxed, 1 / 255, swapRB=True)
    return blob, (ratio, left, top)


def yolov5_finish(output: NDArray[np.float32], geometry: Any) -> object:
    ratio, left, top = geometry
    rows = output[0][output[0][:, 4] > 0.25]
    classes = rows[:, 5:].argmax(axis=1)
    scores = rows[:, 4] * rows[np.arange(len(rows)), 5 + classes]
    keep = scores > 0.25
    boxes, scores, classes = rows[keep, :4].copy(), scores[keep], classes[keep]
    boxes[:, :2] -= boxes[:, 2:] / 2
    moved = boxes + classes[:, None] * 4096.0 * np.array([1, 1, 0, 0])
    kept: Any = cv2.dnn.NMSBoxes(moved.tolist(), scores.tolist(), 0.25, 0.45)
    boxes[:, :2] -= (left, top)
    boxes /= ratio
    return [(boxes[i].tolist(), float(scores[i]), int(classes[i])) for i in np.asarray(kept).reshape(-1)]


def squeezenet_prepare(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Any]:
    rows, columns = image.shape[:2]
    ratio = 256 / min(rows, columns)
    resized = cv2.resize(image, (round(columns * ratio), round(rows * ratio)), interpolation=cv2.INTER_LINEAR)
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    crop = resized[top : top + 224, left : left + 224]
    blob: Any = cv2.dnn.blobFromImage(crop, 1 / 255, mean=(123.675, 116.28, 103.53), swapRB=True)
    blob /= np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
    return blob, None


def squeezenet_finish(output: NDArray[np.float32], _: Any) -> object:
    best = np.argsort(-output[0])[:5]
    return [(int(i), float(output[0][i])) for i in best]


STAGES: dict[str, tuple[Prepare, Finish]] = {
    "yolov5n": (yolov5_prepare, yolov5_finish),
    "squeezenet": (squeezenet_prepare, squeezenet_finish),
}


class Loop:
    """The hand-written loop on `threads` threads; `measure` gives pictures a second."""

    def __init__(self, name: str, weights: Path, picture: bytes, threads: int = 2) -> None:
        self._prepare, self._finish = STAGES[name]
        self._picture = np.frombuffer(picture, np.uint8)
        model = ov.Core().compile_model(
            weights, "CPU", {"NUM_STREAMS": str(threads), "INFERENCE_PRECISION_HINT": "f32"}
        )
        self._requests = [model.create_infer_request() for _ in range(threads)]
        for request in self._requests:
            self._one(request)  # the first use of the binding, on one thread

    def _one(self, request: Any) -> object:
        image: Any = cv2.imdecode(self._picture, cv2.IMREAD_COLOR)
        blob, geometry = self._prepare(image)
        return self._finish(request.infer([blob])[0], geometry)

    def measure(self, seconds: float) -> float:
        counts = [0] * len(self._requests)
        until = time.perf_counter() + seconds

        def run(index: int) -> None:
            while time.perf_counter() < until:
                self._one(self._requests[index])
                counts[index] += 1

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(counts))]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - started)
