"""Text cut out of a picture along four corners, and set upright: between the steps of the OCR pipeline."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from visionpool_server.imaging.recipe import Image

Quad = NDArray[np.float32]  # (4, 2) x, y: top left, top right, bottom right, bottom left
MAX_PIXELS = 4_000_000  # of one crop: many times what a reader looks at, and little enough to have some at once
MAX_SIDE = 16_000
_OPENCV_SIDE = 32_000  # its warps count pixels in 16 bits
_VERTICAL = 1.5  # height / width


def crop(image: Image, quad: Quad) -> Image:
    """What `image`, (H, W, 3), shows within `quad`, as a rectangle (PaddleOCR `utility.py`, `get_rotate_crop_image`).

    One that is at least 1.5 times as high as wide is turned by 90 degrees against the clock.
    """
    width, height = sides(quad)
    scale = min(1.0, (MAX_PIXELS / (width * height)) ** 0.5, MAX_SIDE / max(width, height))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    image, quad = _within_reach(image, quad)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(np.ascontiguousarray(quad, np.float32), corners)
    flat = cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.rot90(flat) if is_vertical(quad) else cast(Image, flat)


def sides(quad: Quad) -> tuple[int, int]:
    """Width and height in whole pixels, at least 1: the longer of each two opposite sides."""
    top, right, bottom, left = (float(np.linalg.norm(quad[a] - quad[b])) for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)))
    return max(1, int(max(top, bottom))), max(1, int(max(left, right)))


def is_vertical(quad: Quad) -> bool:
    """Whether text within is taken to run downwards."""
    width, height = sides(quad)
    return height / width >= _VERTICAL


def upside_down(image: Image) -> Image:
    """Turned by 180 degrees."""
    return image[::-1, ::-1]


def _within_reach(image: Image, quad: Quad) -> tuple[Image, Quad]:
    """A part of a very large picture that OpenCV can warp, and the corners in it."""
    if max(image.shape[:2]) <= _OPENCV_SIDE:
        return image, quad
    left, top = np.maximum(np.floor(quad.min(axis=0)).astype(int) - 4, 0)
    right, bottom = np.ceil(quad.max(axis=0)).astype(int) + 5
    image, quad = image[top:bottom, left:right], quad - np.array([left, top], np.float32)
    longest = max(image.shape[:2])
    if longest > _OPENCV_SIDE:
        times = -(-longest // _OPENCV_SIDE)
        image, quad = image[::times, ::times], quad / np.float32(times)
    return np.ascontiguousarray(image), quad
