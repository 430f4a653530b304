"""What the tests of masks, oriented boxes, poses and faces hold answers against: ONNX Runtime, and NumPy written here.

Of OpenCV it uses `resize` alone; letterboxing, suppression and sampling are its own. `Answers` is visionpool's side: the whole
flow without a transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from visionpool.results import Box, Result
from visionpool_server.app import offline
from visionpool_server.families import NO_OPTIONS, Options
from visionpool_server.models.loader import Defaults, Model
from visionpool_server.service import Ask, Service

from tests.ort_sessions import reference_session

Pixels = NDArray[np.uint8]
Numbers = NDArray[Any]
R = TypeVar("R", bound=Result)

BACKENDS = ("openvino", "onnxruntime")
SIZES = ((64, 96), (48, 96), (97, 31), (1, 1), (300, 200), (2, 500), (123, 457))  # height, width


# visionpool's side


class Answers:
    """`ask(image, options)`: what visionpool answers, checked to be of the type that is expected."""

    def __init__(self, service: Service, kind: type[Any]) -> None:
        self._service = service
        (self.model,) = service.models
        self._kind = kind

    def __call__(self, image: Pixels, options: Options = NO_OPTIONS) -> Any:
        return self.several([image], options)[0]

    def several(self, images: Sequence[Pixels], options: Options = NO_OPTIONS) -> list[Any]:
        """Of one request with all `images`."""
        asked = self._service.predict_many(self.model, [png(image) for image in images], Ask(options, timeout=100))
        results = [prediction.result for prediction in asyncio.run(asked)]
        assert all(type(result) is self._kind for result in results)
        return results

    @property
    def family(self) -> Any:
        return model_family(self.model)


def model_family(model: Model) -> Any:
    assert model.family is not None
    return model.family


@contextmanager
def served(folder: Path, backend: str, kind: type[Result], **config: Any) -> Iterator[Answers]:
    """The model in `folder`, with what `config` says in its model.yaml."""
    if config:
        (folder / "model.yaml").write_text(yaml.safe_dump(config))
    with offline([folder], Defaults(backend=backend, precision="f32"), max_pixels=50_000_000) as service:
        yield Answers(service, kind)


def png(image: Pixels) -> bytes:
    _, data = cv2.imencode(".png", image[:, :, ::-1])
    return data.tobytes()


# The second implementation


def run(model: Path, **inputs: Numbers) -> list[Numbers]:
    return [np.asarray(output) for output in reference_session(model).run(None, inputs)]


def planes(image: Pixels, mean: float = 0.0, std: float = 255.0) -> Numbers:
    """(H, W, 3) as (1, 3, H, W), each value `(x - mean) / std`."""
    return ((image.astype(np.float64) - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)


@dataclass(frozen=True)
class Placed:
    """A picture in a larger one, `scale` and `corner` x before y, and the way back."""

    image: Pixels
    original: tuple[int, int]  # height, width
    scale: tuple[float, float]
    corner: tuple[int, int]

    def points(self, points: Numbers) -> Numbers:
        """(..., 2) of the larger picture in the original one."""
        return np.asarray((points - np.array(self.corner)) / np.array(self.scale))

    def boxes(self, boxes: Numbers) -> Numbers:
        """(N, 4), clipped to the original."""
        height, width = self.original
        return self.points(boxes.reshape(-1, 2, 2)).reshape(-1, 4).clip(0, [width, height, width, height])


def fitted(
    image: Pixels, size: tuple[int, int], fill: int, *, centred: bool, whole: Callable[[float], int] = round
) -> Placed:
    """In proportion into `size` (height, width). `whole`: what makes whole pixels of the shorter side."""
    height, width = image.shape[:2]
    if height / width > size[0] / size[1]:
        new_height, new_width = size[0], max(1, whole(size[0] / (height / width)))
    else:
        new_height, new_width = max(1, whole(size[1] * (height / width))), size[1]
    spare_x, spare_y = size[1] - new_width, size[0] - new_height
    left, top = (spare_x // 2, spare_y // 2) if centred else (0, 0)
    canvas = np.full((*size, 3), fill, np.uint8)
    canvas[top : top + new_height, left : left + new_width] = cv2.resize(image, (new_width, new_height))
    return Placed(canvas, (height, width), (new_width / width, new_height / height), (left, top))


def xyxy(rows: Numbers) -> Numbers:
    """(N, 4) of centre x, y, width, height."""
    x, y, width, height = rows[:, :4].T
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)


def overlaps(box: Numbers, others: Numbers) -> Numbers:
    """Intersections over unions of a box with others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return np.asarray(shared / ((box[2] - box[0]) * (box[3] - box[1]) + areas - shared))


def greedy(boxes: Numbers, scores: Numbers, label_ids: Numbers, iou_threshold: float, limit: int = 300) -> list[int]:
    """The best box stays, and those of its class that overlap it more than so much go."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if len(kept) == limit:
            break
        rivals = boxes[kept][label_ids[kept] == label_ids[i]]
        if not (overlaps(boxes[i], rivals) > iou_threshold).any():
            kept.append(i)
    return kept


def best_class(scores: Numbers, threshold: float) -> tuple[list[int], Numbers, Numbers]:
    """`scores` (anchors, classes): those over the threshold, each with its best class."""
    chosen = [i for i, row in enumerate(scores) if row.max() > threshold]
    return chosen, scores[chosen].max(axis=1), scores[chosen].argmax(axis=1)


@dataclass
class Objects:
    """What a reference found. `more`: whatever else there is of each, compared by `also`."""

    boxes: Numbers  # (N, 4)
    scores: Numbers  # (N,)
    label_ids: Numbers | None = None  # (N,)
    more: list[Any] = field(default_factory=list)


def assert_same(
    boxes: Sequence[Box],
    scores: Sequence[float],
    label_ids: Sequence[int] | None,
    expected: Objects,
    also: Callable[[int, Any], None] | None = None,
) -> None:
    """Object by object: boxes within a thousandth of a pixel (and its rounding), scores within 1e-4, best score first.

    `also(i, more)` compares object i of the answer with what else is expected of it.
    """
    assert len(boxes) == len(expected.boxes)
    assert list(scores) == sorted(scores, reverse=True)
    free = np.ones(len(boxes), bool)
    found_boxes, found_scores, found_ids = np.array(boxes), np.array(scores), np.array(label_ids)
    for k, box in enumerate(expected.boxes):
        near = np.abs(found_boxes - box).max(axis=1) <= 1.6e-3
        near &= np.abs(found_scores - expected.scores[k]) <= 1e-4
        if expected.label_ids is not None:
            assert label_ids is not None
            near &= found_ids == expected.label_ids[k]
        found = np.flatnonzero(free & near)
        assert len(found), f"no object at {box} with score {expected.scores[k]}"
        free[found[0]] = False
        if also:
            also(int(found[0]), expected.more[k])


def sampled(grid: Numbers, x: Numbers, y: Numbers, *, around: float | None = None) -> Numbers:
    """Bilinear, at each y (rows) and x (columns): 0 is the centre of the first cell. Beyond the cells the outermost go on, or
    there is the value `around`. Written as weights of all cells: a hat of width 2 over each."""
    if around is None:
        x, y = x.clip(0, grid.shape[1] - 1), y.clip(0, grid.shape[0] - 1)
    across = np.maximum(0, 1 - np.abs(x[:, None] - np.arange(grid.shape[1])))
    down = np.maximum(0, 1 - np.abs(y[:, None] - np.arange(grid.shape[0])))
    inside = down @ grid.astype(np.float64) @ across.T
    return np.asarray(inside + (around or 0.0) * (1 - np.outer(down.sum(axis=1), across.sum(axis=1))))


def assert_mask(covered: Numbers, soft: Numbers, threshold: float, near: float = 1e-4) -> None:
    """Pixel by pixel; only what lies on the threshold itself, to rounding, may go either way."""
    assert covered.shape == soft.shape
    wrong = (covered != (soft > threshold)) & (np.abs(soft - threshold) > near)
    assert not wrong.any()
