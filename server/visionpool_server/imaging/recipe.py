"""Preprocessing as values: what happens to a decoded picture before the model sees it.

A recipe has two halves. The *steps* change the picture's geometry (resize, crop, letterbox, pad); they are pure functions
on (H, W, 3) uint8, run on the stage threads before the picture queues, and keep account of where each original pixel went.
The *arithmetic* (channel order, scale, mean, std, layout) is only described here: each backend does it where it is cheapest,
compiled into the graph where it can (OpenVINO), so that what queues is uint8: a quarter of the bytes of float32.

A GPU can do the steps too (`Recipe.on_gpu`): they are called as always, with an `Unprepared` in place of the pixels, which all
of them change by `resized`, `padded` and `cut` alone. A step that looks at pixels itself asks `pixels_of` for them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from visionpool.errors import TooLarge

from visionpool_server.imaging.device_pixels import DevicePixels
from visionpool_server.imaging.geometry import Geometry, Undo
from visionpool_server.imaging.primitives import (
    MAX_RESIZED_PIXELS,
    Fill,
    Grey,
    Image,
    Interpolation,
    Picture,
    Side,
    Size,
    cut,
    padded,
    pixels_of,
    resized,
    up_to,
)
from visionpool_server.imaging.unprepared import NotOnGpu, Unprepared

__all__ = [
    "MAX_RESIZED_PIXELS",
    "Adjusting",
    "Arithmetic",
    "CenterCrop",
    "Channels",
    "Decoded",
    "Fill",
    "Geometry",
    "Gray",
    "Grey",
    "Image",
    "Interpolation",
    "Letterbox",
    "Number",
    "Pad",
    "PadToStride",
    "Picture",
    "Positive",
    "Recipe",
    "Resize",
    "ResizeShort",
    "Rounding",
    "Side",
    "Size",
    "Step",
    "Undo",
    "cut",
    "padded",
    "pixels_of",
    "resized",
    "up_to",
]

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Channels = Literal["rgb", "bgr"]
Decoded = Image | DevicePixels  # (H, W, 3) RGB uint8
Rounding = Literal["nearest", "down"]

_USUAL_SIDES = (32, 100, 224, 225, 480, 640, 1080, 4000)  # of pictures that a GPU has to be able to prepare


class Step(Protocol):
    """One geometric step: a frozen value that is called with a picture and says where its pixels went."""

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]: ...

    def output_size(self) -> Size | None:
        """(height, width) where the step fixes it, else None."""

    def ratio(self, height: int, width: int) -> float:
        """How much larger it makes a picture of that size, in the direction in which it shrinks it least."""


class Adjusting:
    """A step whose size follows from the picture's own, and from nothing else."""

    __slots__ = ()

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        return resized(image, geometry, self.size_of(*image.shape[:2]))

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what it makes of a picture of that size."""
        raise NotImplementedError

    def output_size(self) -> Size | None:
        return None

    def ratio(self, height: int, width: int) -> float:
        after = self.size_of(height, width)
        return max(after[0] / height, after[1] / width)


@dataclass(frozen=True, slots=True)
class Resize:
    """To `size` (height, width). With `keep_ratio`, the largest picture of the original's shape that fits into it.

    `multiple`: each side is brought up to the next multiple of it. `antialias`: as Pillow resizes, and with it torchvision
    and timm, where every pixel counts when a picture shrinks; otherwise as OpenCV does.
    """

    size: Size
    keep_ratio: bool = False
    interpolation: Interpolation = "linear"
    antialias: bool = False
    multiple: Side | None = None
    rounding: Rounding = "nearest"  # of the side that `keep_ratio` makes shorter; YOLOX's is "down"

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        height, width = self.size
        if self.keep_ratio:
            rows, columns = image.shape[:2]
            ratio = min(height / rows, width / columns)
            whole = math.floor if self.rounding == "down" else round
            height, width = whole(rows * ratio), whole(columns * ratio)
        return resized(image, geometry, up_to((height, width), self.multiple), self.interpolation, self.antialias)

    def output_size(self) -> tuple[int, int] | None:
        return None if self.keep_ratio else up_to(self.size, self.multiple)

    def ratio(self, height: int, width: int) -> float:
        ratios = self.size[0] / height, self.size[1] / width
        return min(ratios) if self.keep_ratio else max(ratios)


@dataclass(frozen=True, slots=True)
class ResizeShort:
    """The shorter side to `size` pixels, the longer one in proportion, but not over `limit`.

    `rounding`: of the longer side; torchvision's is "down". `antialias`, `multiple`: as for `Resize`.
    Raises TooLarge for a picture so thin that its longer side would take more than `MAX_RESIZED_PIXELS`.
    """

    size: Side
    interpolation: Interpolation = "linear"
    limit: Side | None = None
    antialias: bool = False
    rounding: Rounding = "nearest"
    multiple: Side | None = None

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        rows, columns = image.shape[:2]
        ratio = self.ratio(rows, columns)
        height, width = max(1, round(rows * ratio)), max(1, round(columns * ratio))
        if self.rounding == "down" and ratio == self.size / min(rows, columns):
            height, width = self.size * rows // min(rows, columns), self.size * columns // min(rows, columns)
        if height * width > MAX_RESIZED_PIXELS:
            raise TooLarge(
                f"a picture of {columns}x{rows} becomes {width}x{height} when its shorter side is brought to {self.size}",
                hint="crop it: it is too thin for this model",
            )
        return resized(image, geometry, up_to((height, width), self.multiple), self.interpolation, self.antialias)

    def output_size(self) -> tuple[int, int] | None:
        return None

    def ratio(self, height: int, width: int) -> float:
        ratio = self.size / min(height, width)
        return min(ratio, self.limit / max(height, width)) if self.limit else ratio


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle `size` (height, width) of the picture; a smaller picture is padded with black first.

    `rounding`: of an odd margin's half; torchvision's is "nearest", and Python's then, to the even number.
    """

    size: Size
    rounding: Rounding = "down"

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        height, width = self.size
        missing_y, missing_x = max(0, height - image.shape[0]), max(0, width - image.shape[1])
        margins = (missing_y // 2, missing_y - missing_y // 2, missing_x // 2, missing_x - missing_x // 2)
        image, geometry = padded(image, geometry, margins, 0)
        rows, columns = image.shape[:2]
        top, left = (_half(spare, self.rounding) for spare in (rows - height, columns - width))
        return cut(image, geometry, top, left, (height, width))

    def output_size(self) -> tuple[int, int] | None:
        return self.size

    def ratio(self, height: int, width: int) -> float:  # noqa: ARG002  a protocol's signature
        return 1.0


def _half(spare: int, rounding: Rounding) -> int:
    return spare // 2 if rounding == "down" else round(spare / 2)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Resized in proportion to fit into `size` (height, width), centred, the rest filled with grey.

    The rounding is that of YOLOv5's and Ultralytics' `letterbox`: an odd margin is larger at the bottom and right.
    """

    size: Size
    fill: Grey = 114
    interpolation: Interpolation = "linear"

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        height, width = self.size
        image, geometry = Resize(self.size, keep_ratio=True, interpolation=self.interpolation)(image, geometry)
        spare_y, spare_x = height - image.shape[0], width - image.shape[1]
        margins = (spare_y // 2, spare_y - spare_y // 2, spare_x // 2, spare_x - spare_x // 2)
        return padded(image, geometry, margins, self.fill)

    def output_size(self) -> tuple[int, int] | None:
        return self.size

    def ratio(self, height: int, width: int) -> float:
        return min(self.size[0] / height, self.size[1] / width)


@dataclass(frozen=True, slots=True)
class Pad:
    """Padded at the bottom and right to `size` (height, width). Raises TooLarge for a picture that is larger."""

    size: Size
    fill: Fill = 0

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        rows, columns = image.shape[:2]
        height, width = self.size
        if rows > height or columns > width:
            raise TooLarge(
                f"a picture of {columns}x{rows} is to be padded to {width}x{height}",
                hint="send a smaller one; or the model's operator puts a resize before pad in preprocess",
            )
        margins = (0, height - rows, 0, width - columns)
        return padded(image, geometry, margins, self.fill)

    def output_size(self) -> tuple[int, int] | None:
        return self.size

    def ratio(self, height: int, width: int) -> float:  # noqa: ARG002  a protocol's signature
        return 1.0


@dataclass(frozen=True, slots=True)
class PadToStride(Adjusting):
    """Padded at the bottom and right until both sides are multiples of `stride`."""

    stride: Side
    fill: Fill = 0

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        rows, columns = image.shape[:2]
        return padded(image, geometry, (0, -rows % self.stride, 0, -columns % self.stride), self.fill)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        return up_to((height, width), self.stride)

    def ratio(self, height: int, width: int) -> float:  # noqa: ARG002  a protocol's signature
        return 1.0


@dataclass(frozen=True, slots=True)
class Gray:
    """To one channel, (H, W, 1), with the weights of ITU-R BT.601."""

    def __call__(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        pixels = pixels_of(image, self)
        return cast(Any, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None]), geometry

    def output_size(self) -> tuple[int, int] | None:
        return None

    def ratio(self, height: int, width: int) -> float:  # noqa: ARG002  a protocol's signature
        return 1.0


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What turns uint8 RGB into the model's numbers: `(channel * scale - mean) / std`, channel by channel.

    `channels` is the order that the model wants; `mean` and `std` are in that order.
    """

    scale: Positive = 1 / 255
    mean: tuple[Number, ...] = (0.0, 0.0, 0.0)
    std: tuple[Positive, ...] = (1.0, 1.0, 1.0)
    channels: Channels = "rgb"

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(channels,) each: a model's number is `channel * factor - shift`, in float32 and rounded twice."""
        std = np.array(self.std, np.float32)
        return np.float32(self.scale) / std, np.array(self.mean, np.float32) / std

    def apply(self, batch: NDArray[np.uint8], layout: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """(N, H, W, 3) uint8 as the model's tensor, `layout` NCHW, NHWC or CHW (N is 1, and goes): for runtimes that cannot
        compile it in."""
        if self.channels == "bgr":
            batch = batch[..., ::-1]
        factor, shift = self.factors()
        if layout == "NHWC":
            out: NDArray[Any] = batch * factor - shift
        else:
            out = np.empty((batch.shape[0], batch.shape[3], *batch.shape[1:3]), np.float32)
            for channel in range(batch.shape[3]):  # plane by plane: twice as fast as a transpose of the whole
                np.multiply(batch[..., channel], factor[channel], out=out[:, channel])
                out[:, channel] -= shift[channel]
        return (out[0] if layout == "CHW" else out).astype(dtype, copy=False)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that happens between a decoded picture and the model. `unprepared`: the steps are left to a GPU."""

    steps: tuple[Step, ...] = ()
    arithmetic: Arithmetic = Arithmetic()
    unprepared: bool = False

    def prepare(self, image: Decoded, geometry: Geometry | None = None) -> tuple[Image, Geometry]:
        """The steps, one after the other. The result may be a view, and need not be contiguous.

        `geometry`: where the original lies in `image`, if it was decoded smaller. Where the steps are left to a GPU, the result
        is one object, (), an `Unprepared`, and the geometry the same. Raises NotOnGpu for pixels that are on a GPU already and
        cannot stay there.
        """
        geometry = geometry or Geometry(image.shape[0], image.shape[1])
        if not self.unprepared:
            return self._stepped(_in_ram(image), geometry)
        try:
            picture, after = self._stepped(Unprepared.of(image), geometry)
        except NotOnGpu:  # of a picture of a size for which a step does what it does for no usual one
            pixels, after = self._stepped(_in_ram(image), geometry)
            picture = Unprepared.of(pixels)
        return picture.as_tensor(), after

    def on_gpu(self) -> Recipe:
        """This recipe with its steps left to a GPU. Raises NotOnGpu where one cannot do them."""
        if self.output_size() is None:
            raise NotOnGpu("the preprocessing leaves the size of pictures open, and the GPU prepares them to one size")
        for height, width in product(_USUAL_SIDES, repeat=2):
            pixels: Image = np.broadcast_to(np.uint8(0), (height, width, 3))
            with suppress(TooLarge):
                self._stepped(Unprepared.of(pixels), Geometry(height, width))
        return replace(self, unprepared=True)

    def _stepped(self, image: Picture, geometry: Geometry) -> tuple[Picture, Geometry]:
        for step in self.steps:
            image, geometry = step(image, geometry)
        return image, geometry

    def in_grey(self) -> Recipe:
        """This recipe for a model of one channel: the arithmetic of the first channel alone."""
        grey = any(isinstance(step, Gray) for step in self.steps)
        arithmetic = Arithmetic(self.arithmetic.scale, self.arithmetic.mean[:1], self.arithmetic.std[:1])
        return Recipe(self.steps if grey else (*self.steps, Gray()), arithmetic)

    def reduction(self, height: int, width: int) -> int:
        """How many times smaller, 1, 2, 4 or 8, a picture of that size may be decoded: the first step shrinks it as much."""
        ratio = self.steps[0].ratio(height, width) if self.steps else 1.0
        return next((times for times in (8, 4, 2) if ratio * times <= 1), 1)

    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every prepared picture, or None where it depends on the picture."""
        size: tuple[int, int] | None = None
        for step in self.steps:
            if isinstance(step, Adjusting):
                size = step.size_of(*size) if size else None
            elif not isinstance(step, Gray):
                size = step.output_size()
        return size


def _in_ram(image: Decoded) -> Image:
    if isinstance(image, DevicePixels):
        raise NotOnGpu("a picture that lies on the GPU is to be prepared by the CPU")
    return image
