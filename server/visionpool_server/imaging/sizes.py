"""Steps that bring a picture to sides of a kind: a longest side, multiples of a number, a shape.

They are PaddleSeg's and its Matting's transforms, with their rounding (`paddleseg/transforms`, `Matting/ppmatting/transforms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from visionpool_server.imaging.recipe import (
    Adjusting,
    CenterCrop,
    Fill,
    Geometry,
    Interpolation,
    Picture,
    Side,
    padded,
    resized,
    up_to,
)

Aspect = Annotated[float, Field(ge=0.01, le=100)]


@dataclass(frozen=True, slots=True)
class ResizeLong(Adjusting):
    """The longer side to `size` pixels, the shorter one in proportion; `multiple`: each up to the next multiple of it."""

    size: Side
    interpolation: Interpolation = "linear"
    multiple: Side | None = None

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        return resized(image, geometry, self.size_of(*image.shape[:2]), self.interpolation)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        return up_to(_scaled(height, width, self.size / max(height, width)), self.multiple)


@dataclass(frozen=True, slots=True)
class LimitLong(Adjusting):
    """The longer side brought between `min` and `max` pixels, the shorter one in proportion; in between nothing is done."""

    max: Side | None = None
    min: Side | None = None

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        return _limited(height, width, max(height, width), self.max, self.min)


@dataclass(frozen=True, slots=True)
class LimitShort(Adjusting):
    """The shorter side brought between `min` and `max` pixels, the longer one in proportion."""

    max: Side | None = None
    min: Side | None = None

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        return _limited(height, width, min(height, width), self.max, self.min)


@dataclass(frozen=True, slots=True)
class ResizeToMultiple(Adjusting):
    """Each side down to a multiple of `multiple`; up to the first one where it is less."""

    multiple: Side = 32

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        multiple = self.multiple
        return max(height - height % multiple, multiple), max(width - width % multiple, multiple)


@dataclass(frozen=True, slots=True)
class PadToAspect(Adjusting):
    """Padded at the bottom or the right until the width is `aspect` times the height."""

    aspect: Aspect = 1.0
    fill: Fill = 128

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        rows, columns = image.shape[:2]
        height, width = self.size_of(rows, columns)
        return padded(image, geometry, (0, height - rows, 0, width - columns), self.fill)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        if width / height > self.aspect:
            return max(height, int(width / self.aspect)), width
        return height, max(width, int(height * self.aspect))

    def ratio(self, height: int, width: int) -> float:  # noqa: ARG002  a protocol's signature
        return 1.0


@dataclass(frozen=True, slots=True)
class CropSquare(Adjusting):
    """The largest square in the middle of the picture: of an odd margin the smaller half goes at the top or the left."""

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        return CenterCrop(self.size_of(*image.shape[:2]))(image, geometry)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        side = min(height, width)
        return side, side

    def ratio(self, height: int, width: int) -> float:  # noqa: ARG002  a protocol's signature
        return 1.0


def _scaled(height: int, width: int, ratio: float) -> tuple[int, int]:
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _limited(height: int, width: int, side: int, most: int | None, least: int | None) -> tuple[int, int]:
    target = most if most and side > most else least if least and side < least else side
    return (height, width) if target == side else _scaled(height, width, target / side)
