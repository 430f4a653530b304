"""The two geometric steps of PP-OCR: a picture for the text detector, and a line of text for those who read it.

Both end in sizes of a finite set, so that what is compiled for them is bounded, and a result never depends on which other
pictures share a batch (PaddleOCR pads each line to the widest of its batch).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from visionpool_server.imaging.recipe import Geometry, Image, Picture, Side, Size, Undo, pixels_of, resized

STRIDE = 32  # of DB's backbone
WIDTHS = (320, 480, 640, 800, 960, 1280, 1600, 1920, 2560, 3200)  # PaddleOCR's least, and the most that PaddleX reads
MIDDLE = 127.5  # what becomes 0 once it is normalised: PaddleOCR pads with zeros after that


@dataclass(frozen=True, slots=True)
class LimitSide:
    """To sides that are multiples of 32, no more than `side` where `by` says (PaddleOCR `operators.py`, `DetResizeForTest`).

    `by`: max, the longer side is at most `side`; min, the shorter one at least; long, the longer one exactly. Whatever
    `by`, the longer side ends at or below `limit`.
    """

    side: Side = 960
    by: Literal["max", "min", "long"] = "max"
    limit: Side = 4000

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        if sum(image.shape[:2]) < 2 * STRIDE:
            image = cast(Any, _padded(pixels_of(image, self)))
        rows, columns = image.shape[:2]
        ratio = self.ratio(rows, columns)
        height, width = _multiple(rows * ratio), _multiple(columns * ratio)
        return resized(image, geometry, (height, width))

    def output_size(self) -> Size | None:
        return None

    def ratio(self, height: int, width: int) -> float:
        longer = max(height, width)
        match self.by:
            case "max":
                ratio = min(1.0, self.side / longer)
            case "min":
                ratio = max(1.0, self.side / min(height, width))
            case "long":
                ratio = self.side / longer
        return min(ratio, self.limit / longer)


def _multiple(length: float) -> int:
    """The multiple of 32 next to a length in whole pixels, at least one; halves go to the even one, as Python rounds."""
    return max(round(int(length) / STRIDE) * STRIDE, STRIDE)


def _padded(image: Image) -> Image:
    """A tiny picture at the top left of a black one."""
    rows, columns = image.shape[:2]
    out = np.zeros((max(STRIDE, rows), max(STRIDE, columns), image.shape[2]), np.uint8)
    out[:rows, :columns] = image
    return out


@dataclass(frozen=True, slots=True)
class TextLine:
    """To `height` in proportion, padded at the right to the next of `widths`; what is wider is squeezed to the last
    (PaddleOCR `predict_rec.py`, `resize_norm_img`).

    Gives float32 (height, width, 3): the padding is what becomes 0, 127.5, and bytes cannot say that.
    """

    height: Side = 48
    widths: tuple[Side, ...] = WIDTHS

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        pixels = pixels_of(image, self)
        rows, columns = pixels.shape[:2]
        widths = sorted(self.widths)
        natural = min(ceil(self.height * (columns / rows)), widths[-1])
        out: NDArray[np.float32] = np.full(
            (self.height, widths[bisect_left(widths, natural)], pixels.shape[2]), MIDDLE, np.float32
        )
        out[:, :natural] = cv2.resize(pixels, (natural, self.height)).reshape(self.height, natural, -1)
        return cast(Any, out), geometry.scaled(natural / columns, self.height / rows, Undo((rows, columns)))

    def output_size(self) -> Size | None:
        return (self.height, self.widths[0]) if len(self.widths) == 1 else None

    def ratio(self, height: int, width: int) -> float:
        return max(self.height / height, min(self.widths) / width)
