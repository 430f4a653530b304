"""A decoded picture and what is to become of it: it stands in for the prepared pixels where a GPU makes them.

Steps of a recipe treat it as they treat pixels: they ask its shape, and have it resized, padded and cut; it only writes that
down. Batches of it are (N,) arrays of objects, so that pictures of different sizes share one. `cuda/pictures.py` does what is
written down, `on_cpu` does it here; both give the same pixels as the steps do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.imaging.device_pixels import DevicePixels

Fill = int | tuple[int, int, int]


class NotOnGpu(InvalidModel):
    """A recipe asks for more than one bilinear sampling of the picture, which is what the GPU does of it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "runtime.prepare_on: cpu in model.yaml, or other steps in preprocess")


@dataclass(frozen=True, slots=True, eq=False)
class Unprepared:
    """`pixels`, resized bilinearly to `resized`, of which `visible` shows; the rest of `size` is `fill`.

    Output pixel (row, column) is pixel (row + origin[0], column + origin[1]) of the resized picture where that lies in
    `visible` (top, left, bottom, right; the last two exclusive).
    """

    pixels: NDArray[np.uint8] | DevicePixels  # (H, W, 3) RGB
    resized: tuple[int, int]  # (height, width)
    visible: tuple[int, int, int, int]
    origin: tuple[int, int]  # negative where the picture begins further down or to the right
    size: tuple[int, int]  # (height, width) of the result
    fill: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, pixels: NDArray[np.uint8] | DevicePixels) -> Unprepared:
        """Pixels (H, W, 3) of which nothing is to become yet: the result is they."""
        size = pixels.shape[0], pixels.shape[1]
        return cls(pixels, size, (0, 0, *size), (0, 0), size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """As of the pixels that it stands for."""
        return (*self.size, self.pixels.shape[2])

    def resize(self, size: tuple[int, int]) -> Unprepared:
        """To this (height, width). Raises NotOnGpu where it was resized or padded before."""
        if not self._untouched:
            raise NotOnGpu("a picture is resized after it was padded or resized before, which the GPU does not do")
        return replace(self, resized=size, visible=(0, 0, *size), size=size)

    def pad(self, margins: tuple[int, int, int, int], fill: Fill) -> Unprepared:
        """`margins`: rows above and below, columns to the left and right. Raises NotOnGpu for a second colour."""
        top, bottom, left, right = margins
        color = (fill, fill, fill) if isinstance(fill, int) else fill
        if self._padded and color != self.fill:
            raise NotOnGpu("a picture is padded with two different colours, which the GPU does not do")
        height, width = self.size
        origin = self.origin[0] - top, self.origin[1] - left
        return replace(self, origin=origin, size=(height + top + bottom, width + left + right), fill=color)

    def cut(self, top: int, left: int, size: tuple[int, int]) -> Unprepared:
        """The window of `size` (height, width) whose first pixel lies at (top, left)."""
        height, width = size
        if self._untouched:
            return Unprepared.of(self.pixels[top : top + height, left : left + width])
        y, x = self.origin[0] + top, self.origin[1] + left
        window = _overlap(self.visible, (y, x, y + height, x + width))
        return replace(self, visible=window, origin=(y, x), size=size)

    def on_cpu(self) -> NDArray[np.uint8]:
        """The pixels (height, width, 3) that it stands for. Raises ValueError where they are on a GPU already."""
        pixels = self.pixels
        if isinstance(pixels, DevicePixels):
            raise ValueError("the pixels of this picture are on a GPU")
        if self.resized != pixels.shape[:2]:
            pixels = _resized(pixels, self.resized)
        out = np.full(self.shape, self.fill[: self.shape[2]], np.uint8)
        top, left, bottom, right = self.visible
        y, x = self.origin
        out[top - y : bottom - y, left - x : right - x] = pixels[top:bottom, left:right]
        return out

    def as_tensor(self) -> NDArray[Any]:
        """As one picture's tensor: (), of objects."""
        tensor = np.empty((), object)
        tensor[()] = self
        return tensor

    @property
    def _untouched(self) -> bool:
        return self.resized == self.size == self.pixels.shape[:2] and not self._padded

    @property
    def _padded(self) -> bool:
        """Whether some of the result shows no pixel of the picture."""
        top, left, bottom, right = self.visible
        return (bottom - top, right - left) != self.size


def size_of(prepared: NDArray[Any]) -> tuple[int, int]:
    """(height, width) of a prepared picture, also where a GPU is still to make it."""
    if prepared.dtype == object:
        return cast(Unprepared, prepared[()]).size
    return prepared.shape[0], prepared.shape[1]


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """What lies in both, (top, left, bottom, right); where that is nothing, no row or column of it."""
    top, left = max(one[0], other[0]), max(one[1], other[1])
    return top, left, max(top, min(one[2], other[2])), max(left, min(one[3], other[3]))


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    out: NDArray[np.uint8] = cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return out if out.ndim == 3 else out[:, :, None]  # which OpenCV drops of one channel
