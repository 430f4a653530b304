"""From a map of how likely each pixel is text to the boxes of lines: differentiable binarization. A leaf.

Source: Liao et al., "Real-time Scene Text Detection with Differentiable Binarization" (2020); PaddleOCR
`db_postprocess.py`, `boxes_from_bitmap`, with its `fast` score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyclipper
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Contours = Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Binarization:
    """`threshold`: from which a pixel counts as text. `box_threshold`: the least mean of a box. `unclip_ratio`: how much
    boxes grow, as the network learns shrunken ones. `min_size`: pixels of the map, of the shorter side."""

    threshold: float = 0.3
    box_threshold: float = 0.5  # PaddleOCR's .6 loses lone figures, such as the number of a chapter
    unclip_ratio: float = 1.5
    min_size: int = 3
    max_candidates: int = 1000  # bounds the time that a map of noise takes


def boxes_of(likely: Floats, how: Binarization) -> tuple[Floats, Floats]:
    """Quadrangles (N, 4, 2) x, y in the map, clockwise from the top left, and their scores (N,). `likely`: (H, W)."""
    bitmap = (likely > how.threshold).astype(np.uint8)
    contours, _ = cv2.findContours(bitmap, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    quads, scores = [], []
    for contour in _largest(contours, how):
        quad, shorter = _around(contour)
        if shorter < how.min_size:
            continue
        score = _mean_within(likely, quad)
        if score < how.box_threshold:
            continue
        grown, shorter = _around(_unclipped(quad, how.unclip_ratio))
        if shorter >= how.min_size + 2:
            quads.append(grown)
            scores.append(score)
    return np.array(quads, np.float32).reshape(-1, 4, 2), np.array(scores, np.float32)


def _largest(contours: Contours, how: Binarization) -> Contours:
    """All of them, in the order found; of more than `max_candidates` those whose bounding boxes are the largest.
    (PaddleOCR takes the first, and loses text below a thousand specks.)"""
    if len(contours) <= how.max_candidates:
        return contours
    sizes = np.array([_extent(contour) for contour in contours])
    kept = np.argpartition(-sizes, how.max_candidates)[: how.max_candidates]
    return [contours[i] for i in np.sort(kept).tolist()]


def _extent(contour: NDArray[Any]) -> int:
    _, _, width, height = cv2.boundingRect(contour)
    return int(width * height)


def _around(contour: NDArray[Any]) -> tuple[Floats, float]:
    """The smallest rectangle around some points, clockwise from its top left corner, and its shorter side."""
    rectangle = cv2.minAreaRect(contour)
    points = cv2.boxPoints(rectangle)
    points = points[np.argsort(points[:, 0], kind="stable")]
    left = points[:2] if points[1, 1] > points[0, 1] else points[1::-1]
    right = points[2:] if points[3, 1] > points[2, 1] else points[:1:-1]
    quad = np.stack([left[0], right[0], right[1], left[1]]).astype(np.float32)
    return quad, min(rectangle[1])


def _mean_within(likely: Floats, quad: Floats) -> float:
    """The mean of the map within a box."""
    height, width = likely.shape
    low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
    left, right = np.clip((low[0], high[0]), 0, width - 1).tolist()
    top, bottom = np.clip((low[1], high[1]), 0, height - 1).tolist()
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    corners = (quad - np.array([left, top], np.float32)).astype(np.int32)
    cv2.fillPoly(mask, [corners], (1,))
    return float(cv2.mean(likely[top : bottom + 1, left : right + 1], mask)[0])


def _unclipped(quad: Floats, ratio: float) -> NDArray[np.int32]:
    """The box grown on all sides by area * ratio / circumference, its corners rounded (Vatti clipping)."""
    points = quad.astype(np.float64)
    following = np.roll(points, -1, axis=0)
    area = abs(float((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum())) / 2
    circumference = float(np.linalg.norm(following - points, axis=1).sum())
    offset = pyclipper.PyclipperOffset()
    offset.AddPath(points.astype(np.int64).tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    grown = offset.Execute(area * ratio / circumference)
    return np.array(max(grown, key=len) if grown else points, np.int32).reshape(-1, 1, 2)
