"""Results drawn into a picture, for people to look at: the last step where a caller asks for `image/*`.

`draw` never fails for what a model may answer: boxes outside of the picture, names in any script, a picture
of one pixel. Sizes follow the picture's own (`Style`); a label has one colour in all pictures (`color_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidOption
from visionpool.results import (
    ClassifyResult,
    DetectionResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    OCRResult,
    Result,
    SegmentationResult,
)

from visionpool_server.imaging.lettering import Picture, Style, color_of
from visionpool_server.imaging.masks import map_of
from visionpool_server.imaging.outlines import around, outline_of, pixel_of, put_dot, put_lines, put_mask, tips
from visionpool_server.imaging.regions import classes_in, put_cut_out, put_regions
from visionpool_server.imaging.tags import Row, Tag, put_panel, put_tags, tag_for

T = TypeVar("T")
D = TypeVar("D")
_JPEG_SIDE = 65_500  # libjpeg's limit, in pixels
_SEEN = 0.3  # the score from which a joint is shown: below it models guess what is hidden
_LEGEND = 12  # rows of the panel of a map of classes, at most
_ONE_KIND = 5  # the number whose colour lines of text, faces and landmarks take
# Pairs of joints of a person, in the order of the 17 keypoints of the COCO data set.
_SKELETON = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)


def draw(image: Picture, result: Result) -> Picture:
    """A copy of `image`, (H, W, 3) uint8 RGB, with `result` drawn into it. The original stays as it is."""
    canvas = np.array(image, np.uint8, order="C")
    drawer = _DRAWERS.get(type(result))
    if drawer is not None and canvas.size:
        drawer(canvas, Style.of(canvas), result)
    return canvas


def encode(image: Picture, format: Literal["jpeg", "png"]) -> bytes:  # noqa: A002 - Pillow's save() calls it so
    """The bytes of a file with `image`, (H, W, 3) uint8 RGB. Raises InvalidOption for too long a JPEG."""
    if format == "jpeg" and max(image.shape[:2]) > _JPEG_SIDE:
        raise InvalidOption(f"a JPEG has no side above {_JPEG_SIDE} pixels", hint="ask for image/png")
    options = {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, 90], "png": [cv2.IMWRITE_PNG_COMPRESSION, 3]}[format]
    _, data = cv2.imencode(f".{format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return bytes(data)


def _detection(image: Picture, style: Style, result: DetectionResult) -> None:
    """The best object is drawn last, so that it lies on top; its tag is placed first, for the best place."""
    tags = []
    for i, shape in reversed(list(enumerate(result.rotated_boxes or result.boxes))):
        outline = outline_of(image, shape)
        if outline is None:
            continue
        label_id = _item(result.label_ids, i, 0)
        color = color_of(label_id)
        if i < min(len(result.masks), len(result.boxes)):
            put_mask(image, style, result.masks[i], result.boxes[i], color)
        put_lines(image, style, outline, color, smooth=len(shape) > 4)
        text = _scored(_item(result.labels, i, f"#{label_id}"), _item(result.scores, i, None))
        place = tips(style, outline) if len(shape) > 4 else around(style, outline)
        tags.append(tag_for(image, style, text, color, place))
    put_tags(image, style, _there(reversed(tags)))


def _classification(image: Picture, style: Style, result: ClassifyResult) -> None:
    names = [_item(result.labels, i, f"#{label_id}") for i, label_id in enumerate(result.label_ids)]
    known = zip(names, result.scores, result.label_ids, strict=False)
    put_panel(image, style, [Row(name, score, color_of(i)) for name, score, i in known])


def _segmentation(image: Picture, style: Style, result: SegmentationResult) -> None:
    """Each class but a background in its colour, with an outline, and a panel of the classes with their shares of the area.

    One class with the share that each pixel has in it is cut out instead.
    """
    labels = _label_map(result)
    if labels is None:
        return
    shares = _foreground(result, labels)
    if shares is not None:
        put_cut_out(image, style, shares)
        put_panel(image, style, [Row(result.labels[1], float(shares.mean()), color_of(1))])
        return
    ids, places = classes_in(cv2.resize(labels, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST))
    names = [_item(result.labels, label_id, f"#{label_id}") for label_id in ids]
    shown = np.array(["background" not in name.lower() for name in names])
    put_regions(image, style, places, [color_of(label_id) for label_id in ids], shown)
    counts = np.bincount(places.ravel(), minlength=len(ids))
    best = sorted(np.flatnonzero(shown).tolist(), key=lambda i: -int(counts[i]))
    rows = [Row(names[i], counts[i] / places.size, color_of(ids[i]), keyed=True) for i in best]
    put_panel(image, style, rows, _LEGEND)


def _foreground(result: SegmentationResult, labels: NDArray[np.int32]) -> NDArray[np.float32] | None:
    """(H, W) of how much of each pixel is the one class beside a background; None for other results."""
    if len(result.labels) != 2 or "background" not in result.labels[0].lower():
        return None
    if result.score_map_png:
        scores = np.asarray(map_of(result.score_map_png) / 255, np.float32)
    elif len(result.score_map) == labels.size:
        scores = np.array(result.score_map, np.float32).reshape(labels.shape)
    else:
        return None
    return np.where(labels == 1, scores, np.minimum(scores, 1 - scores)) if scores.shape == labels.shape else None


def _label_map(result: SegmentationResult) -> NDArray[np.int32] | None:
    if result.label_map_png:
        return map_of(result.label_map_png)
    if not result.label_map or len(result.label_map) != result.shape[0] * result.shape[1]:
        return None
    return np.array(result.label_map, np.int32).reshape(result.shape)


def _ocr(image: Picture, style: Style, result: OCRResult) -> None:
    tags = []
    color = color_of(_ONE_KIND)
    for i, shape in enumerate(result.boxes):
        outline = outline_of(image, shape)
        if outline is not None:
            put_lines(image, style, outline, color, smooth=True)
            tags.append(tag_for(image, style, _item(result.text, i, ""), color, around(style, outline)))
    put_tags(image, style, _there(tags))


def _keypoints(image: Picture, style: Style, result: KeyPointDetectionResult) -> None:
    """Joints in the colour of their person, connected where they are the 17 of COCO, in a thin box with the person's score."""
    joints = max(result.num_joints, 1)
    tags = [_person(image, style, result, i) for i in range(len(result.boxes))]
    for first in range(0, len(result.keypoints), joints):
        person = [pixel_of(point) for point in result.keypoints[first : first + joints]]
        seen = [p if _item(result.scores, first + i, 1.0) >= _SEEN else None for i, p in enumerate(person)]
        color = color_of(first // joints)
        for start, end in ((seen[a], seen[b]) for a, b in _SKELETON) if len(seen) == 17 else ():
            if start and end:
                cv2.line(image, start, end, color, style.line, cv2.LINE_AA)
        for point in _there(seen):
            put_dot(image, style, point, color)
    put_tags(image, style, _there(tags))


def _person(image: Picture, style: Style, result: KeyPointDetectionResult, i: int) -> Tag | None:
    """Draws the box; its tag."""
    outline, score = outline_of(image, result.boxes[i]), _item(result.box_scores, i, None)
    if outline is None:
        return None
    put_lines(image, replace(style, line=max(1, style.line // 2)), outline, color_of(i))
    return None if score is None else tag_for(image, style, f"{score:.2f}", color_of(i), around(style, outline))


def _faces(image: Picture, style: Style, result: FaceDetectionResult) -> None:
    color = color_of(_ONE_KIND)
    tags = []
    for i, box in enumerate(result.boxes):
        outline = outline_of(image, box)
        if outline is not None:
            put_lines(image, style, outline, color)
            text = _scored("face", _item(result.scores, i, None))
            tags.append(tag_for(image, style, text, color, around(style, outline)))
    for point in _there(map(pixel_of, result.landmarks)):
        put_dot(image, style, point, color)
    put_tags(image, style, _there(tags))


_DRAWERS: dict[type[Result], Callable[[Picture, Style, Any], None]] = {
    DetectionResult: _detection,
    ClassifyResult: _classification,
    SegmentationResult: _segmentation,
    OCRResult: _ocr,
    KeyPointDetectionResult: _keypoints,
    FaceDetectionResult: _faces,
}


def _item(values: Sequence[T], i: int, default: D) -> T | D:
    """Item `i` where there is one: results may leave out parallel fields, such as labels."""
    return values[i] if 0 <= i < len(values) else default


def _scored(name: str, score: float | None) -> str:
    return name if score is None else f"{name} {score:.2f}"


def _there(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]
