"""The three ways in which steps change a picture, resized, padded and cut, on pixels or on what stands in for them.

Each keeps account of where the original's pixels went. All decisions on sizes are made before, by the steps (`recipe.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from visionpool.errors import TooLarge

from visionpool_server.imaging.antialias import Filter, resampled
from visionpool_server.imaging.geometry import Geometry, Undo
from visionpool_server.imaging.unprepared import NotOnGpu, Unprepared

Side = Annotated[int, Field(ge=1, le=65_535)]
Size = tuple[Side, Side]  # (height, width)
Grey = Annotated[int, Field(ge=0, le=255)]
MAX_RESIZED_PIXELS = 50_000_000

Image = NDArray[np.uint8]  # (H, W, 3) RGB
Picture = TypeVar("Picture", Image, Unprepared)  # what steps change: the pixels, or what is to become of them
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
Fill = Grey | tuple[Grey, Grey, Grey]  # red, green, blue

_CV2_INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
_FILTERS: dict[str, Filter] = {  # what Pillow calls them
    "nearest": "nearest",
    "linear": "bilinear",
    "cubic": "bicubic",
    "area": "box",
    "lanczos": "lanczos",
}


def resized(
    image: Picture,
    geometry: Geometry,
    size: tuple[int, int],
    interpolation: Interpolation = "linear",
    antialias: bool = False,
) -> tuple[Picture, Geometry]:
    """`image` in this (height, width). Raises TooLarge for more than `MAX_RESIZED_PIXELS`, NotOnGpu."""
    (rows, columns), (height, width) = image.shape[:2], size
    if (rows, columns) == (height, width):
        return image, geometry
    if height * width > MAX_RESIZED_PIXELS:
        raise TooLarge(
            f"a picture of {columns}x{rows} becomes {width}x{height} when it is prepared for this model",
            hint="crop it: it is too thin for this model",
        )
    out = _resampled(image, size, interpolation, antialias)
    return out, geometry.scaled(width / columns, height / rows, Undo((rows, columns)))


def _resampled(image: Picture, size: tuple[int, int], interpolation: Interpolation, antialias: bool) -> Picture:
    if isinstance(image, Unprepared):
        if antialias or interpolation != "linear":
            how = "with antialias" if antialias else f"by {interpolation} interpolation"
            raise NotOnGpu(f"pictures are resized {how}, and the GPU does it by linear interpolation alone")
        return image.resize(size)
    if antialias:
        return resampled(image, size, _FILTERS[interpolation])
    out: Image = cv2.resize(image, (size[1], size[0]), interpolation=_CV2_INTERPOLATION[interpolation])
    return out if out.ndim == 3 else out[:, :, None]  # which OpenCV drops of one channel


def up_to(size: tuple[int, int], multiple: int | None) -> tuple[int, int]:
    """`size`, each side up to the next multiple, and at least a pixel."""
    height, width = max(1, size[0]), max(1, size[1])
    return (height + -height % multiple, width + -width % multiple) if multiple else (height, width)


def padded(
    image: Picture, geometry: Geometry, margins: tuple[int, int, int, int], fill: Fill
) -> tuple[Picture, Geometry]:
    """`margins`: rows above and below, columns to the left and right. Raises TooLarge, NotOnGpu."""
    top, bottom, left, right = margins
    if not any(margins):
        return image, geometry
    rows, columns = image.shape[:2]
    if (rows + top + bottom) * (columns + left + right) > 2 * MAX_RESIZED_PIXELS:
        raise TooLarge(
            f"a picture of {columns}x{rows} becomes {columns + left + right}x{rows + top + bottom} when it is padded",
            hint="crop it: it is too thin for this model",
        )
    geometry = geometry.shifted(left, top, Undo((rows, columns), (top, left)))
    if isinstance(image, Unprepared):
        return image.pad(margins, fill), geometry
    out = np.full((rows + top + bottom, columns + left + right, image.shape[2]), fill, np.uint8)
    out[top : top + rows, left : left + columns] = image
    return out, geometry


def cut(image: Picture, geometry: Geometry, top: int, left: int, size: tuple[int, int]) -> tuple[Picture, Geometry]:
    """The window of `size` (height, width) whose first pixel lies at (top, left); it lies within the picture."""
    rows, columns = image.shape[:2]
    if (rows, columns) == size:
        return image, geometry
    geometry = geometry.shifted(-left, -top, Undo((rows, columns), (-top, -left)))
    if isinstance(image, Unprepared):
        return image.cut(top, left, size), geometry
    return image[top : top + size[0], left : left + size[1]], geometry


def pixels_of(image: Image | Unprepared, step: object) -> Image:
    """The pixels, for a step that looks at them itself. Raises NotOnGpu where a GPU is to make them."""
    if isinstance(image, Unprepared):
        raise NotOnGpu(f"the step {type(step).__name__} looks at the pixels, and cannot be done on the GPU")
    return image
