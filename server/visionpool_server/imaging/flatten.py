"""Pixels as OpenCV's `IMREAD_UNCHANGED` gives them, made into 8-bit RGB the way a viewer shows them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .formats.header import Header

_BAND = 1 << 18  # pixels composited at once: the 16-bit intermediates stay in the cache


def flatten(pixels: NDArray[Any], header: Header) -> NDArray[np.uint8]:
    """(H, W) grey, (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16 -> (H, W, 3) RGB uint8.

    Alpha is composited on white, as a browser shows a picture on an empty page. 16-bit (and 10-, 12-bit)
    samples are scaled to the full range and rounded.
    """
    transparent = None if header.transparent_grey is None else pixels == header.transparent_grey
    if pixels.dtype != np.uint8:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / ((1 << header.depth) - 1))
    if pixels.ndim == 2:
        rgb: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        if transparent is not None:
            rgb[transparent] = 255
        return rgb
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        return _on_white(pixels, header.premultiplied)
    opaque: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB)
    return opaque


def _on_white(bgra: NDArray[np.uint8], premultiplied: bool) -> NDArray[np.uint8]:
    """(H, W, 4) -> (H, W, 3) RGB, rounded. Band by band, since 50 megapixels need 600 MB at once."""
    height, width = bgra.shape[:2]
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = bgra[top : top + rows]
        colour = band[..., 2::-1].astype(np.uint16)
        alpha = band[..., 3:].astype(np.uint16)
        if premultiplied:
            mixed = np.minimum(colour + (255 - alpha), 255)
        else:
            mixed = colour * alpha + (255 - alpha) * 255 + 128
            mixed = (mixed + (mixed >> 8)) >> 8  # division by 255 with rounding, exact for these values
        rgb[top : top + rows] = mixed
    return rgb
