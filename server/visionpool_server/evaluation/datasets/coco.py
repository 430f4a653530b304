"""COCO's annotations: one JSON file with `images`, `annotations` and `categories` (cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.datasets.files import present
from visionpool_server.evaluation.truth import Dataset, Objects, Sample

EXPECTED = "an annotations .json of COCO, or a folder with annotations/*.json and the pictures"
_KEYS = ("images", "annotations", "categories")


def recognise(path: Path) -> bool:
    return path.suffix.lower() == ".json" or bool(_annotations(path))


def read(path: Path, images: Path | None) -> Dataset:
    """Raises InvalidSetting."""
    file = path if path.is_file() else _chosen(path)
    data = _load(file)
    try:
        annotations = _by_picture(data["annotations"])
        names = {int(entry["id"]): str(entry["name"]) for entry in data["categories"]}
        listed = [(str(image["file_name"]), _objects(image, annotations)) for image in data["images"]]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise InvalidSetting(
            f"{file} is not as COCO's annotations are: {reason}", hint=f"expected: {EXPECTED}"
        ) from error
    places = [images] if images else _places(file)
    samples, notes = present((Sample(name, _located(name, places), truth) for name, truth in listed), file)
    return Dataset(path, "coco", "boxes", samples, names, notes)


def _annotations(folder: Path) -> list[Path]:
    """The JSON files that can be annotations: in annotations/, or beside the pictures."""
    if not folder.is_dir():
        return []
    found = sorted((folder / "annotations").glob("*.json")) or sorted(folder.glob("*annotations*.json"))
    detections = [
        path for path in found if path.name.startswith("instances_")
    ]  # beside captions_ and person_keypoints_
    return detections or found


def _chosen(folder: Path) -> Path:
    found = _annotations(folder)
    validation = [path for path in found if "val" in path.stem]
    if len(found) != 1 and len(validation) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InvalidSetting(f"which annotations of {folder}? There: {names}", hint="give the .json file itself")
    return found[0] if len(found) == 1 else validation[0]


def _load(file: Path) -> dict[str, Any]:
    try:
        data = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InvalidSetting(f"{file} cannot be read as JSON: {error}", hint=f"expected: {EXPECTED}") from error
    absent = [key for key in _KEYS if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if absent:
        raise InvalidSetting(f"{file} has no {' and no '.join(absent)}", hint=f"expected: {EXPECTED}")
    checked: dict[str, Any] = data
    return checked


def _by_picture(annotations: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in annotations:
        if "bbox" in entry:  # captions have none
            found.setdefault(entry["image_id"], []).append(entry)
    return found


def _objects(image: Mapping[str, Any], annotations: Mapping[Any, list[Mapping[str, Any]]]) -> Objects:
    entries = annotations.get(image["id"], [])
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    areas = [float(entry.get("area", entry["bbox"][2] * entry["bbox"][3])) for entry in entries]
    return Objects(
        boxes,
        class_ids=tuple(int(entry["category_id"]) for entry in entries),
        crowds=tuple(bool(entry.get("iscrowd", 0)) for entry in entries),
        areas=tuple(areas),
        size=(int(image.get("height", 0)), int(image.get("width", 0))),
        segments=tuple(entry.get("segmentation") or None for entry in entries),
    )


def _places(file: Path) -> list[Path]:
    """Where the pictures of an annotations file usually lie, likeliest first."""
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = file.stem.removeprefix("instances_")
    folders = [root / "images" / split, root / split, root / "images", root, file.parent]
    return [folder for folder in folders if folder.is_dir()]


def _located(name: str, places: list[Path]) -> Path:
    """Where a picture is; where it would be first of all, if it is nowhere."""
    candidates = [place / name for place in places] + [place / Path(name).name for place in places]
    return next((path for path in candidates if path.is_file()), candidates[0])
