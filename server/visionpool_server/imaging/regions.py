"""Maps of classes laid over a picture: tinted and outlined, or cut out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visionpool_server.imaging.lettering import Color, Picture, Style

_TINT = 0.5  # how much of a class's colour is laid over the picture
_LIGHT, _DARK = 245, 205  # greys of the ground behind what is cut out


def classes_in(labels: NDArray[np.int32]) -> tuple[list[int], NDArray[np.uint16]]:
    """The ids that occur in `labels` (H, W), ascending, and for each pixel the place of its id among them."""
    if labels.size and labels.min() >= 0 and labels.max() <= np.iinfo(np.uint16).max:
        there = np.bincount(labels.ravel()) > 0
        places = (np.cumsum(there) - 1).astype(np.uint16)
        return np.flatnonzero(there).tolist(), places[labels]
    ids, inverse = np.unique(labels, return_inverse=True)
    return ids.tolist(), inverse.reshape(labels.shape).astype(np.uint16)


def put_regions(
    image: Picture, style: Style, places: NDArray[np.uint16], colors: Sequence[Color], shown: NDArray[np.bool_]
) -> None:
    """Tints each region in its colour, and draws its outline inside of it; those that are not `shown` stay as they are."""
    if not len(colors):
        return
    tint = np.array(colors, np.uint8)[places]
    seen = shown[places][:, :, None]
    np.copyto(image, cv2.addWeighted(image, 1 - _TINT, tint, _TINT, 0), where=seen)
    around: Any = np.ones((2 * style.line + 1, 2 * style.line + 1), np.uint8)
    edges = cv2.morphologyEx(places, cv2.MORPH_GRADIENT, around) > 0
    np.copyto(image, tint, where=seen & edges[:, :, None])


def put_cut_out(image: Picture, style: Style, shares: NDArray[np.float32]) -> None:
    """The picture where `shares`, of the picture's shape in 0..1, is 1, and a chequered ground where it is 0."""
    height, width = image.shape[:2]
    alpha = cv2.resize(shares, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)[:, :, None]
    rows, columns = np.arange(height) // style.text, np.arange(width) // style.text
    light = (rows[:, None] + columns) % 2 == 0
    ground = np.where(light, np.float32(_LIGHT), np.float32(_DARK))[:, :, None]
    image[:] = (ground + alpha * (image - ground) + 0.5).astype(np.uint8)
