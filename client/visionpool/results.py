"""What a model answers: frozen, typed, and free of any knowledge of what produced it.

Field names are FastDeploy's, plus `labels`. All coordinates are pixels of the original picture (after its EXIF
rotation), x to the right and y down, the origin at the outer corner of the top-left pixel; scores are in 0..1.
Each class has `to_json()` and `from_json()`; `result_from_dict` picks the class by the `type` field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

Box = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
Point = tuple[float, float]  # x, y

_SMALL = re.compile(r'"(?:[^"\\]|\\.)*"|(\d)(?:\.(\d+))?e-0(\d)')  # numbers under 1e-4; strings as a whole


@dataclass(frozen=True, slots=True)
class Result:
    """What all results share. `type` is the field that tells them apart in JSON."""

    type: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain JSON values (tuples are lists), led by `type`."""
        return {"type": self.type, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}

    def to_json(self) -> str:
        """The very text that the server writes for this result, whichever way it came."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))
        return _SMALL.sub(_as_served, text) if "e-0" in text else text

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Fields that this version does not know are ignored; missing ones get defaults.

        Raises ValueError where `data` is of another type of result.
        """
        if data.get("type", cls.type) != cls.type:
            raise ValueError(f"this is a {data['type']!r} result, not a {cls.type!r} one")
        known = {f.name for f in fields(cls)}
        return cls(**{name: cls._field(name, value) for name, value in data.items() if name in known})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls.from_dict(json.loads(text))

    @classmethod
    def _field(cls, name: str, value: Any) -> Any:  # noqa: ARG003  subclasses look at it
        return _frozen(value)


@dataclass(frozen=True, slots=True)
class Mask:
    """A part of a picture. `data`: `shape[0] * shape[1]` values of 0 or 1, row by row, cropped to its box: the pixels whose
    centres lie in it, columns round(xmin) to round(xmax) - 1 and rows round(ymin) to round(ymax) - 1, as Python rounds.

    Where `compact` was asked for, `data` is empty, `shape` that of the whole picture, and `rle` has the runs as COCO's tools
    read them: `pycocotools.mask.decode({"size": mask.shape, "counts": mask.rle})`.
    """

    data: tuple[int, ...] = ()
    shape: tuple[int, int] = (0, 0)  # rows, columns
    rle: str = ""


@dataclass(frozen=True, slots=True)
class DetectionResult(Result):
    """Objects found, best score first. All fields are parallel: item i of each is about object i."""

    type: ClassVar[str] = "detection"
    boxes: tuple[Box, ...] = ()
    scores: tuple[float, ...] = ()
    label_ids: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    rotated_boxes: tuple[tuple[float, ...], ...] = ()  # 8 floats each: four corners x, y
    masks: tuple[Mask, ...] = ()
    contain_masks: bool = False

    @classmethod
    def _field(cls, name: str, value: Any) -> Any:
        if name == "masks":
            return tuple(Mask(_frozen(mask["data"]), _frozen(mask["shape"]), mask.get("rle", "")) for mask in value)
        return _frozen(value)


@dataclass(frozen=True, slots=True)
class ClassifyResult(Result):
    """The classes of the whole picture, best first."""

    type: ClassVar[str] = "classification"
    label_ids: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbeddingResult(Result):
    """A picture as a point: pictures that look alike lie close to one another. Of length 1 unless the model says otherwise."""

    type: ClassVar[str] = "embedding"
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SegmentationResult(Result):
    """A class for every pixel. `label_map` and `score_map`: `shape[0] * shape[1]` values, row by row.

    Where `compact` was asked for, both are empty, and the maps are grey PNG files in base64: `label_map_png` with the class
    of each pixel (8 bits, or 16 where there are more than 256 classes), `score_map_png` with its score times 255.
    """

    type: ClassVar[str] = "segmentation"
    label_map: tuple[int, ...] = ()
    score_map: tuple[float, ...] = ()
    shape: tuple[int, int] = (0, 0)  # height, width of the original picture
    contain_score_map: bool = False
    labels: tuple[str, ...] = ()  # the name of class i, not one per pixel
    label_map_png: str = ""
    score_map_png: str = ""

    @classmethod
    def _field(cls, name: str, value: Any) -> Any:
        return tuple(value) if name in ("label_map", "score_map") else _frozen(value)  # a million values take a while


@dataclass(frozen=True, slots=True)
class OCRResult(Result):
    """Lines of text in reading order. `boxes`: 8 integers each, four corners x, y, clockwise from the top left."""

    type: ClassVar[str] = "ocr"
    boxes: tuple[tuple[int, ...], ...] = ()
    text: tuple[str, ...] = ()
    rec_scores: tuple[float, ...] = ()
    cls_scores: tuple[float, ...] = ()
    cls_labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyPointDetectionResult(Result):
    """Joints of all persons found, best person first: `num_joints` points each, which may lie beside the picture.

    `scores`: how sure the model is of each joint; empty where it does not say. `boxes`, `box_scores`: one a person.
    """

    type: ClassVar[str] = "keypoints"
    keypoints: tuple[Point, ...] = ()
    scores: tuple[float, ...] = ()
    num_joints: int = -1
    boxes: tuple[Box, ...] = ()
    box_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class FaceDetectionResult(Result):
    """Faces, best score first, with `landmarks_per_face` points each, face after face."""

    type: ClassVar[str] = "faces"
    boxes: tuple[Box, ...] = ()
    scores: tuple[float, ...] = ()
    landmarks: tuple[Point, ...] = ()
    landmarks_per_face: int = 0


RESULT_TYPES: dict[str, type[Result]] = {
    kind.type: kind
    for kind in (
        DetectionResult,
        ClassifyResult,
        EmbeddingResult,
        SegmentationResult,
        OCRResult,
        KeyPointDetectionResult,
        FaceDetectionResult,
    )
}


def result_from_dict(data: Mapping[str, Any]) -> Result:
    """The result that `Result.to_dict` wrote, as the class its `type` names. Raises ValueError for another type."""
    kind = data.get("type")
    if kind not in RESULT_TYPES:
        raise ValueError(f"unknown type of result {kind!r}; known: {', '.join(RESULT_TYPES)}")
    return RESULT_TYPES[str(kind)].from_dict(data)


def _as_served(found: re.Match[str]) -> str:
    """A small number as the server's JSON has it: 0.000012 and 1.2e-6, where Python writes 1.2e-05 and 1.2e-06."""
    first, rest, exponent = found.groups()
    if first is None:
        return found.group()  # a string
    if exponent == "5":
        return f"0.0000{first}{rest or ''}"
    return f"{first}.{rest}e-{exponent}" if rest else f"{first}e-{exponent}"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mask):
        return {"data": list(value.data), "shape": list(value.shape), "rle": value.rle}
    return value
