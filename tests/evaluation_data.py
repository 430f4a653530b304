"""Labelled pictures in all formats that `visionpool evaluate` reads, drawn by the tests, and a model that answers by a script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from demo_scoring import digit_picture, split_digits
from numpy.typing import NDArray
from PIL import Image
from scenes import CLASS_NAMES, Scene, draw_scene
from visionpool.errors import InvalidImage
from visionpool.results import Result
from visionpool_server.families import Options

SCENES = range(16)
COCO_IDS = (1, 2, 3, 5, 8, 13, 21, 34)  # with gaps, as COCO's own 80 of 1..90 have


def write_png(path: Path, pixels: NDArray[Any]) -> Path:
    """Grey or RGB pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return path


def write_scenes(folder: Path, seeds: range = SCENES) -> list[Scene]:
    """The demo detector's held-out scenes as 00.png, ..."""
    scenes = [draw_scene(seed) for seed in seeds]
    for index, scene in enumerate(scenes):
        write_png(folder / f"{index:02d}.png", scene.image)
    return scenes


def write_coco(
    root: Path, seeds: range = SCENES, ids: Sequence[int] = COCO_IDS, names: Sequence[str] = CLASS_NAMES
) -> Path:
    """annotations/instances_val.json and images/."""
    scenes = write_scenes(root / "images", seeds)
    annotations = [
        {"image_id": index + 100, "category_id": ids[label], **_box(box), "iscrowd": 0}
        for index, scene in enumerate(scenes)
        for box, label in zip(scene.boxes, scene.label_ids, strict=True)
    ]
    sizes = [scene.image.shape[:2] for scene in scenes]
    data = {
        "images": [
            {"id": i + 100, "file_name": f"{i:02d}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)
        ],
        "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations)],
        "categories": [{"id": class_id, "name": name} for class_id, name in zip(ids, names, strict=True)],
    }
    file = root / "annotations" / "instances_val.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(data))
    return root


def _box(box: NDArray[np.float32]) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def write_yolo(root: Path, seeds: range = SCENES, names: Sequence[str] | None = CLASS_NAMES) -> Path:
    """images/, labels/, and a data.yaml where there are names."""
    for index, scene in enumerate(write_scenes(root / "images", seeds)):
        height, width = scene.image.shape[:2]
        lines = [
            f"{label} {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} {(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}"
            for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.label_ids, strict=True)
        ]
        label_file = root / "labels" / f"{index:02d}.txt"
        label_file.parent.mkdir(exist_ok=True)
        label_file.write_text("\n".join(lines) + "\n")
    if names:
        (root / "data.yaml").write_text(json.dumps({"names": dict(enumerate(names))}))
    return root


def write_digits(root: Path, count: int = 60) -> tuple[Path, list[int]]:
    """A folder for each digit, of the held-out ones; and what each picture shows, in the order of their names."""
    split = split_digits()
    shown = []
    for index in range(count):
        label = int(split.test_labels[index])
        write_png(root / str(label) / f"{index:03d}.png", digit_picture(split.test_ink[index]))
        shown.append(label)
    return root, shown


def write_masks(root: Path, masks: Mapping[str, NDArray[Any]], *, palette: bool = False) -> Path:
    """images/NAME.png, black, and masks/NAME.png of class ids."""
    for name, mask in masks.items():
        write_png(root / "images" / f"{name}.png", np.zeros((*mask.shape[:2], 3), np.uint8))
        (root / "masks").mkdir(exist_ok=True)
        picture = Image.fromarray(mask)
        if palette:
            picture.putpalette([value for i in range(256) for value in (i * 7 % 256, i * 13 % 256, 255 - i)])
        picture.save(root / "masks" / f"{name}.png")
    return root


def write_lines(root: Path, lines: Mapping[str, str]) -> Path:
    """PaddleOCR's rec_gt.txt and its pictures."""
    for name in lines:
        write_png(root / name, np.zeros((32, 100, 3), np.uint8))
    (root / "rec_gt.txt").write_text("".join(f"{name}\t{text}\n" for name, text in lines.items()), encoding="utf-8")
    return root


class Scripted:
    """A subject that answers each picture, known by its bytes, with what the script says; None: it cannot be read."""

    where = "a script"
    in_flight = 3

    def __init__(
        self,
        task: str,
        answers: Mapping[Path, Result | None],
        labels: Sequence[str] = (),
        class_count: int | None = None,
        name: str = "scripted",
    ) -> None:
        self.name = name
        self.task = task
        self.labels = tuple(labels)
        self.class_count = class_count
        self.accepts = frozenset({"score_threshold", "max_detections", "top_k", "compact"})
        self.asked: list[Options] = []
        self._answers = {path.read_bytes(): result for path, result in answers.items()}
        assert len(self._answers) == len(answers), "the pictures must differ"

    async def predict(self, picture: bytes, options: Options) -> Result:
        self.asked.append(options)
        answer = self._answers[picture]
        if answer is None:
            raise InvalidImage("it is broken")
        return answer


def distinct(path: Path, index: int, size: tuple[int, int] = (40, 60)) -> Path:
    """A picture that no other index gives; `size`: (height, width)."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[0, 0] = (index % 256, index // 256, 7)
    return write_png(path, pixels)
