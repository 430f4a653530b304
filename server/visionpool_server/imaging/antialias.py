"""Resizing as Pillow does it, to the last bit: when a picture shrinks, the filter grows with it, so that every pixel counts.

torchvision, timm and PaddleClas (`backend: pil`) prepare their pictures so; OpenCV's `INTER_LINEAR` looks at four pixels
only. The weights are whole numbers, 22 bits after the point, columns come before rows, and the picture is rounded to
8 bits in between (Pillow `src/libImaging/Resample.c`; from 13 on it takes the rows first in some cases, which changes a
value by 1 at most where pictures shrink).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
_SUPPORT = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_BITS = 22
_BAND = 128  # rows at a time: their numbers as float64 fit into a cache


@dataclass(frozen=True, slots=True)
class _Weights:
    """For each pixel of the result the first pixel that counts, how many do, and their `values` (pixels, most).

    Weights of 22 bits times pixels of 8: doubles hold the sums exactly.
    """

    first: list[int]
    count: list[int]
    values: NDArray[np.float64]


def resampled(image: NDArray[np.uint8], size: tuple[int, int], kind: Filter) -> NDArray[np.uint8]:
    """`image` (H, W, C) in this (height, width)."""
    height, width = size
    if kind == "nearest":
        return image[_nearest(image.shape[0], height)][:, _nearest(image.shape[1], width)]
    if width != image.shape[1]:
        weights = _weights(image.shape[1], width, kind)
        bands = [image[row : row + _BAND] for row in range(0, len(image), _BAND)]
        image = np.concatenate([_turned(_filtered(_turned(band), weights)) for band in bands])
    if height != image.shape[0]:
        image = _filtered(image, _weights(image.shape[0], height, kind))
    return np.ascontiguousarray(image)


def _filtered(lines: NDArray[np.uint8], weights: _Weights) -> NDArray[np.uint8]:
    """Weighted sums over the first axis of `lines` (L, ...)."""
    flat = lines.reshape(len(lines), -1).astype(np.float64)
    sums = np.empty((len(weights.first), flat.shape[1]))
    for i, (first, count) in enumerate(zip(weights.first, weights.count, strict=True)):
        np.dot(weights.values[i, :count], flat[first : first + count], out=sums[i])
    np.clip(sums + 0.5, 0, 255, out=sums)
    return sums.astype(np.uint8).reshape(-1, *lines.shape[1:])


def _turned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Columns as rows. OpenCV does it faster than NumPy, and drops a lone channel."""
    return np.asarray(cv2.transpose(image), np.uint8).reshape(image.shape[1], image.shape[0], -1)


@lru_cache(maxsize=64)
def _weights(before: int, after: int, kind: Filter) -> _Weights:
    scale = before / after
    widened = max(scale, 1.0)
    support = _SUPPORT[kind] * widened
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centres + support + 0.5).astype(np.int64), before) - first
    places = np.arange(int(count.max()))
    values = _filter((places + first[:, None] - centres[:, None] + 0.5) / widened, kind)
    values[places >= count[:, None]] = 0
    values /= values.sum(axis=1, keepdims=True)
    whole = np.trunc(values * (1 << _BITS) + np.copysign(0.5, values))
    return _Weights(first.tolist(), count.tolist(), whole / (1 << _BITS))


def _filter(x: NDArray[np.float64], kind: Filter) -> NDArray[Any]:
    away = np.abs(x)
    match kind:
        case "box":
            return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)
        case "bilinear":
            return np.where(away < 1, 1 - away, 0.0)
        case "bicubic":  # a = -0.5
            near, far = (1.5 * away - 2.5) * away * away + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2
            return np.where(away < 1, near, np.where(away < 2, far, 0.0))
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)


def _nearest(before: int, after: int) -> NDArray[np.intp]:
    """Which pixels stay: Pillow adds up the steps, and with them their rounding errors (`Geometry.c`, ImagingScaleAffine)."""
    step = before / after
    return np.cumsum([step / 2, *[step] * (after - 1)]).astype(np.intp).clip(max=before - 1)
