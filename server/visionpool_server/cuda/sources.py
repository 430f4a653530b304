"""What of a decoded picture is copied to the device, and how the kernel finds it there (kernels/pictures.cu).

Of a picture that shrinks a lot, bilinear sampling looks at two rows for each row of the result, and the others stay behind: a
photograph of 12 megapixels is copied in a fifth of the time so, and sooner than the CPU would have resized it. Of a picture
that the GPU has decoded nothing is copied: the kernel reads it where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from visionpool_server.imaging.device_pixels import DevicePixels
from visionpool_server.imaging.unprepared import Unprepared

PICTURE = np.dtype(  # `struct Picture` of kernels/pictures.cu
    [
        ("pixels", np.int64),
        *((name, np.float64) for name in ("step_y", "step_x")),
        *((name, np.int32) for name in ("rows", "columns", "pitch", "resized", "paired")),
        *((name, np.int32) for name in ("top", "left", "bottom", "right", "y", "x")),
        ("fill", np.uint8, 4),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True)
class Source:
    """Some rows of a picture: all from the `first` to the last that counts or, with `pairs`, two for each row that shows."""

    picture: Unprepared
    pixels: NDArray[np.uint8]  # of it, (H, W, 3)
    first: int
    last: int  # exclusive
    pairs: NDArray[np.intp] | None = None  # (2 * rows that show,)

    @classmethod
    def of(cls, picture: Unprepared, pixels: NDArray[np.uint8]) -> Source:
        top, left, bottom, right = picture.visible
        if top == bottom or left == right:
            return cls(picture, pixels, 0, 0)
        if not _resized(picture):
            return cls(picture, pixels, top, bottom)
        pairs = _pairs(picture)
        first, last = int(pairs[0]), int(pairs[-1]) + 1
        fewer = len(pairs) < last - first and pixels.flags.c_contiguous  # others would be copied twice
        return cls(picture, pixels, first, last, pairs if fewer else None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is copied."""
        rows = self.last - self.first if self.pairs is None else len(self.pairs)
        return rows, self.pixels.shape[1], self.pixels.shape[2]

    @property
    def size(self) -> int:
        rows, columns, channels = self.shape
        return rows * columns * channels

    def copy(self, to: NDArray[np.uint8]) -> None:
        """`to`: (size,)."""
        into = to.reshape(self.shape)
        if self.pairs is None:
            np.copyto(into, self.pixels[self.first : self.last])
        else:
            np.take(self.pixels, self.pairs, axis=0, out=into, mode="clip")  # "raise" would copy it twice

    def record(self, start: int, staged: int) -> tuple[Any, ...]:  # noqa: ARG002  as Resident's
        """Its PICTURE, where what is copied begins at `start` behind the address `staged`."""
        pitch, paired = self.pixels.shape[1] * self.pixels.shape[2], self.pairs is not None
        return _record(self.picture, start if paired else start - self.first * pitch, pitch, paired=paired)


@dataclass(frozen=True, slots=True)
class Resident:
    """A picture that is on the device already."""

    picture: Unprepared
    pixels: DevicePixels  # of it
    size: ClassVar[int] = 0

    def copy(self, to: NDArray[np.uint8]) -> None:
        """Nothing is."""

    def record(self, start: int, staged: int) -> tuple[Any, ...]:  # noqa: ARG002  as Source's
        """Its PICTURE: the kernel finds it so far from `staged`, before it or behind."""
        return _record(self.picture, self.pixels.address - staged, self.pixels.pitch, paired=False)


def source_of(picture: Unprepared) -> Source | Resident:
    pixels = picture.pixels
    return Resident(picture, pixels) if isinstance(pixels, DevicePixels) else Source.of(picture, pixels)


def _record(picture: Unprepared, pixels: int, pitch: int, *, paired: bool) -> tuple[Any, ...]:
    """`pixels`: where row 0 lies or would lie."""
    rows, columns = picture.pixels.shape[:2]
    sampling = *_steps(picture), rows, columns, pitch, _resized(picture), paired
    return pixels, *sampling, *picture.visible, *picture.origin, (*picture.fill, 0)


def _resized(picture: Unprepared) -> bool:
    return picture.resized != picture.pixels.shape[:2]


def _steps(picture: Unprepared) -> tuple[float, float]:
    """Source pixels for each of the result's, down and across, as OpenCV computes them: by two divisions."""
    (rows, columns), (height, width) = picture.pixels.shape[:2], picture.resized
    return 1.0 / (height / rows), 1.0 / (width / columns)


def _pairs(picture: Unprepared) -> NDArray[np.intp]:
    """The two rows that the kernel looks at for each row that shows, one after the other: its `taps_at`."""
    shown = np.arange(picture.visible[0], picture.visible[2])
    at = ((shown + 0.5) * _steps(picture)[0] - 0.5).astype(np.float32)
    upper = np.floor(at).astype(np.intp)
    return np.stack([upper, upper + 1], axis=1).ravel().clip(0, picture.pixels.shape[0] - 1)
