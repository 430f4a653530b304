"""Boxes at an angle: their corners, and which of them are of one object. A leaf: it imports no family.

Rows (N, 5): centre x, y, width, height, angle in radians, clockwise on the screen.
"""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionpool_server.families.boxes import Floats, Ints

MAX_CANDIDATES = (
    5000  # of 30000 in Ultralytics: every pair is compared, and one hostile threshold must not take minutes
)
_EPSILON = 1e-7
_AT_ONCE = 256


def corners_of(rotated: Floats) -> Floats:
    """(N, 4, 2): of rows with the angle brought to [0, pi/2), the corners as Ultralytics' `xywhr2xyxyxyxy` orders them."""
    centre, size, angle = rotated[:, :2], rotated[:, 2:4], rotated[:, 4].astype(np.float64)
    swapped = (angle % pi >= pi / 2)[:, None]
    half = np.where(swapped, size[:, ::-1], size).astype(np.float64) / 2
    angle = angle % (pi / 2)
    cos, sin = np.cos(angle), np.sin(angle)
    along = np.stack([half[:, 0] * cos, half[:, 0] * sin], axis=1)
    across = np.stack([-half[:, 1] * sin, half[:, 1] * cos], axis=1)
    corners = np.stack([along + across, along - across, -along - across, across - along], axis=1) + centre[:, None]
    return corners.astype(np.float32)


def enclosing(corners: Floats) -> Floats:
    """(N, 4) xyxy of the upright boxes around corners (N, 4, 2)."""
    boxes: Floats = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return boxes


def non_maximum_suppression(
    rotated: Floats, scores: Floats, label_ids: Ints, iou_threshold: float, limit: int
) -> NDArray[np.intp]:
    """The indices that stay, best score first, at most `limit`: those that no better one of their class overlaps.

    It is Ultralytics' `nms_rotated`, a "fast NMS": also a box that goes itself suppresses others. The overlap is
    `probabilistic_iou`, and suppresses from the threshold on.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    if iou_threshold >= 1:
        return order[:limit]
    shapes, label_ids = _gaussians(rotated[order]), label_ids[order]
    kept: list[int] = []
    for start in range(0, len(order), _AT_ONCE):
        end = min(start + _AT_ONCE, len(order))
        overlaps = _similarity(shapes[:, start:end, None], shapes[:, None, :end]) >= iou_threshold
        overlaps &= label_ids[start:end, None] == label_ids[:end]
        better = np.arange(end) < np.arange(start, end)[:, None]
        kept += (start + np.flatnonzero(~(overlaps & better).any(axis=1))).tolist()
        if len(kept) >= limit:
            break
    return order[kept[:limit]]


def probabilistic_iou(rotated: Floats, others: Floats) -> NDArray[np.float64]:
    """(N, M): 1 minus the Hellinger distance of the boxes as normal distributions (ProbIoU, arXiv:2106.06072)."""
    return _similarity(_gaussians(rotated)[:, :, None], _gaussians(others)[:, None])


def _gaussians(rotated: Floats) -> NDArray[np.float64]:
    """(5, N): mean x, y, and the covariance matrix's a, b (diagonal) and c."""
    x, y, width, height, angle = rotated.T.astype(np.float64)
    wide, high, cos, sin = width**2 / 12, height**2 / 12, np.cos(angle), np.sin(angle)
    return np.stack([x, y, wide * cos**2 + high * sin**2, wide * sin**2 + high * cos**2, (wide - high) * cos * sin])


def _similarity(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    (x1, y1, a1, b1, c1), (x2, y2, a2, b2, c2) = one, other
    a, b, c, x, y = a1 + a2, b1 + b2, c1 + c2, x1 - x2, y1 - y2
    determinant = np.maximum(a * b - c**2, 0)
    apart = (0.25 * (a * y**2 + b * x**2) - 0.5 * c * x * y) / (determinant + _EPSILON)
    own = np.sqrt(np.maximum(a1 * b1 - c1**2, 0) * np.maximum(a2 * b2 - c2**2, 0))
    unlike = 0.5 * np.log(determinant / (4 * own + _EPSILON) + _EPSILON)
    distance = np.clip(apart + unlike, _EPSILON, 100)
    similarity: NDArray[np.float64] = 1 - np.sqrt(1 - np.exp(-distance) + _EPSILON)
    return similarity
