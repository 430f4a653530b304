"""Masks of objects, from whatever a model says of them to `Mask`s of the original picture. A leaf: it imports no family.

A model gives soft masks on some grid: prototypes a quarter of the prepared picture's size (YOLO), 28x28 cells over each box
(Mask R-CNN), or the picture's own pixels. Each is sampled where the centres of the original's pixels lie, bilinearly, and
only for the pixels of its object's box, so that the cost follows the objects and not the picture.

A mask covers the pixels whose centres lie in its box: the columns round(xmin) up to round(xmax), the rows likewise, of
the box as the result states it (halves to even, as Python rounds).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidOption
from visionpool.results import Box, DetectionResult, Mask

from visionpool_server.families.boxes import Floats
from visionpool_server.imaging.masks import rle_within
from visionpool_server.imaging.recipe import Geometry

MAX_NUMBERS = 50_000_000  # of all masks of a picture together: a result keeps eight bytes for each
MAX_PIXELS = 300_000_000  # of compact masks: some seconds' work

Positions = NDArray[np.float64]  # along one side of a grid: 0 is the centre of its first cell, 1 that of the next


class Pixels(NamedTuple):
    """The pixels of a box in the original picture: columns x0 to x1 - 1, rows y0 to y1 - 1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0


Cover = Callable[[int, Pixels], NDArray[Any]]


def pixels_of(box: Box, geometry: Geometry) -> Pixels:
    """Of a box that lies in the picture. One thinner than a pixel may have none."""
    x0, y0, x1, y1 = map(round, box)
    limit_x, limit_y = geometry.width, geometry.height
    return Pixels(min(x0, limit_x), min(y0, limit_y), min(max(x0, x1), limit_x), min(max(y0, y1), limit_y))


def with_masks(found: DetectionResult, cover: Cover, geometry: Geometry, *, compact: bool) -> DetectionResult:
    """`found`, a mask to each object. `cover(i, pixels)`: which of the pixels of object i's box are its own.

    Raises InvalidOption where the masks are too large together, as thousands of boxes over a whole picture are.
    """
    boxes = [pixels_of(box, geometry) for box in found.boxes]
    _check_area(sum(pixels.shape[0] * pixels.shape[1] for pixels in boxes), len(boxes), compact=compact)
    masks = []
    with np.errstate(over="ignore", invalid="ignore"):  # what a model that overflowed leaves covers nothing
        for i, pixels in enumerate(boxes):
            crop = cover(i, pixels).view(np.uint8) if 0 not in pixels.shape else np.zeros(pixels.shape, np.uint8)
            masks.append(_mask(crop, pixels, geometry, compact=compact))
    return replace(found, masks=tuple(masks), contain_masks=True)


def _check_area(area: int, count: int, *, compact: bool) -> None:
    limit = MAX_PIXELS if compact else MAX_NUMBERS
    if area > limit:
        fewer = "ask for fewer, with score_threshold, iou_threshold or max_detections"
        raise InvalidOption(
            f"the masks of {count} objects have {area // 10**6} million pixels together, over the limit of {limit // 10**6}",
            hint=fewer if compact else f"{fewer}; or for compact ones, with compact",
        )


def _mask(crop: NDArray[np.uint8], pixels: Pixels, geometry: Geometry, *, compact: bool) -> Mask:
    if not compact:
        return Mask(tuple(crop.tobytes()), pixels.shape)
    whole = geometry.height, geometry.width
    return Mask(shape=whole, rle=rle_within(crop, (pixels.x0, pixels.y0), whole))


def sampled(grid: Floats, x: Positions, y: Positions) -> Floats:
    """(rows, columns) at the `x`, `y` given; bilinear, beyond the outermost cells their own values. Shape (len(y), len(x))."""
    first, next_first, part_x = _between(x, grid.shape[1])
    columns = grid[:, first] * (1 - part_x) + grid[:, next_first] * part_x  # few rows yet: the cheaper side first
    first, next_first, part_y = _between(y, grid.shape[0])
    step = (columns[next_first] - columns[first]) * part_y[:, None]
    step += columns[first]
    return step


def _between(positions: Positions, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """The cells on both sides of each position, and how far it is from the first to the second."""
    inside = np.clip(positions, 0, cells - 1)
    first = inside.astype(np.intp)
    part: Floats = (inside - first).astype(np.float32)
    return first, np.minimum(first + 1, cells - 1), part


def over_picture(pixels: Pixels, geometry: Geometry, stride: float) -> tuple[Positions, Positions]:
    """Where the centres of `pixels` lie, x and y, on a grid over the prepared picture with a cell for each `stride` pixels.

    They stay within the cells of the picture itself: what the padding around it says is not mixed in.
    """
    x = _along(pixels.x0, pixels.x1, (geometry.scale_x / stride, geometry.offset_x / stride), geometry.width)
    y = _along(pixels.y0, pixels.y1, (geometry.scale_y / stride, geometry.offset_y / stride), geometry.height)
    return x, y


def _along(start: int, end: int, placed: tuple[float, float], length: int) -> Positions:
    """`placed`: scale and offset, in cells, of a side of the original that is `length` pixels long."""
    scale, offset = placed
    low, high = offset, offset + length * scale - 1
    if high < low:  # a picture thinner than a cell
        low = high = (low + high) / 2
    return np.asarray(((np.arange(start, end) + 0.5) * scale + offset - 0.5).clip(low, high), np.float64)


def over_box(pixels: Pixels, box: Floats, shape: tuple[int, int]) -> tuple[Positions, Positions]:
    """Where the centres of `pixels` lie, x and y, on a grid of `shape` (rows, columns) that fills `box` (4,)."""
    x0, y0, x1, y1 = map(float, box)
    x = (np.arange(pixels.x0, pixels.x1) + 0.5 - x0) / max(x1 - x0, 1e-6) * shape[1] - 0.5
    y = (np.arange(pixels.y0, pixels.y1) + 0.5 - y0) / max(y1 - y0, 1e-6) * shape[0] - 0.5
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def cut_out(mask: NDArray[Any], pixels: Pixels) -> NDArray[np.bool_]:
    """`pixels` of a mask (H, W) of the original picture, covered where it is over 0; what it does not reach is not."""
    crop = np.zeros(pixels.shape, bool)
    part = mask[pixels.y0 : pixels.y1, pixels.x0 : pixels.x1] > 0
    crop[: part.shape[0], : part.shape[1]] = part
    return crop


def cells_under(positions: Positions, cells: int) -> slice:
    """The cells of a side that `sampled` looks at for these positions, which do not fall."""
    first, last = (int(np.clip(position, 0, cells - 1)) for position in (positions[0], positions[-1]))
    return slice(first, min(last + 2, cells))
