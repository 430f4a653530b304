"""Lines, dots and masks in a picture, at coordinates as models give them: any number, or none.

Coordinates are those of `visionpool.results`: 0 is the outer edge of the first pixel, so a box that ends at x
covers pixel x - 1 and not pixel x.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isfinite

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.results import Mask

from visionpool_server.imaging.lettering import Color, Picture, Pixel, Span, Style, blend
from visionpool_server.imaging.masks import mask_of

Polygon = NDArray[np.int32]  # (N, 2): x, y of pixels

_FAR = 30_000  # OpenCV's lines count in 16 bits; what lies farther out is not seen anyway
_MASK_OPACITY = 115  # of 255: the object stays visible under its colour


def outline_of(image: Picture, shape: Sequence[float]) -> Polygon | None:
    """The corners of a box (4 numbers) or of a polygon (8 numbers); None where nothing of it can be seen."""
    if len(shape) < 4 or not all(map(isfinite, shape)):
        return None
    near = [round(min(max(value, -_FAR), _FAR)) for value in shape[: len(shape) // 2 * 2]]
    xs, ys = near[::2], near[1::2]
    if max(xs) < 0 or max(ys) < 0 or min(xs) >= image.shape[1] or min(ys) >= image.shape[0]:
        return None
    if len(near) > 4:
        return np.array(list(zip(xs, ys, strict=True)), np.int32)
    left, top, right, bottom = _clipped(image, min(xs), min(ys), max(xs), max(ys))
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.int32)


def _clipped(image: Picture, x0: int, y0: int, x1: int, y1: int) -> Span:
    """The first and the last pixels of a box, inside the picture, so that its edges are seen."""
    height, width = image.shape[:2]
    left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return left, top, min(max(x1 - 1, left), width - 1), min(max(y1 - 1, top), height - 1)


def pixel_of(point: Sequence[float]) -> Pixel | None:
    """The pixel that a point lies in; None where it is no number."""
    if not all(map(isfinite, point)):
        return None
    x, y = (floor(min(max(value, -_FAR), _FAR)) for value in point)
    return x, y


def around(style: Style, outline: Polygon) -> Span:
    """The rectangle that an outline's lines cover."""
    reach = style.line // 2
    left, top = outline.min(axis=0) - reach
    right, bottom = outline.max(axis=0) + reach + 1
    return int(left), int(top), int(right), int(bottom)


def tips(style: Style, outline: Polygon) -> Span:
    """The rectangle from a slanted outline's topmost corner to its lowest, where a name is seen to be its own. Of corners
    about as high, the left one."""
    reach = style.line // 2
    slant = outline @ np.array([0.2, 1.0])
    left, top = outline[slant.argmin()] - reach
    right, bottom = outline[slant.argmax()] + reach + 1
    return int(left), int(top), int(right), int(bottom)


def put_lines(image: Picture, style: Style, outline: Polygon, color: Color, *, smooth: bool = False) -> None:
    """Draws an outline; `smooth` for slanted lines, which would show steps. Upright ones would only blur."""
    cv2.polylines(image, [outline], True, color, style.line, cv2.LINE_AA if smooth else cv2.LINE_8)


def put_dot(image: Picture, style: Style, center: Pixel, color: Color) -> None:
    """Draws a point with a white rim, which tells it from a background of its colour."""
    cv2.circle(image, center, style.line * 2, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(image, center, max(1, round(style.line * 1.4)), color, -1, cv2.LINE_AA)


def put_mask(image: Picture, style: Style, mask: Mask, box: Sequence[float], color: Color) -> None:
    """Tints the pixels of an object and draws its contour. A cropped mask starts at the corner of its box, rounded."""
    covered = _covered(mask)
    corner = (0, 0) if mask.rle else _corner(box)
    if corner is None or covered is None:
        return
    blend(image, covered * np.uint8(_MASK_OPACITY), corner, color)
    contours, _ = cv2.findContours(covered, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=corner)
    cv2.drawContours(image, contours, -1, color, max(1, round(style.line * 0.75)), cv2.LINE_AA)


def _covered(mask: Mask) -> NDArray[np.uint8] | None:
    """(rows, columns) of 0 and 1, or None where the mask makes no sense."""
    if mask.rle:
        return mask_of(mask.rle, mask.shape)
    if mask.shape[0] * mask.shape[1] != len(mask.data) or not mask.data:
        return None
    return np.array(mask.data, np.uint8).reshape(mask.shape)


def _corner(box: Sequence[float]) -> Pixel | None:
    return pixel_of([round(value) for value in box[:2]] if all(map(isfinite, box[:2])) else box[:2])
