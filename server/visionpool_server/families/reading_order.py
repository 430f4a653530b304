"""In which order people read boxes of text: line by line, each from its beginning. A leaf.

PaddleOCR sorts by the top left corner, and lets two boxes within 10 pixels of height count as one line
(`predict_system.py`, `sorted_boxes`). Here a line's own height says what one line is, a slant of the whole page is taken
out first, and a page that lies on its side or head is read as who turns it would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Quads = NDArray[np.float32]  # (N, 4, 2) x, y: clockwise from the top left
_SAME_LINE = 0.5  # of the lower of two boxes: so far apart at most are their middles

# Which way text runs and lines follow each other, as x, y: by whether it is vertical, and whether upside down.
_WAYS = {
    (False, False): ((1, 0), (0, 1)),
    (False, True): ((-1, 0), (0, -1)),
    (True, False): ((0, 1), (-1, 0)),
    (True, True): ((0, -1), (1, 0)),
}


def reading_order(quads: Quads, vertical: Sequence[bool], turned: Sequence[bool]) -> list[int]:
    """The indices of the boxes in the order of reading.

    `vertical`: which text runs downwards; `turned`: which is upside down, as seen after vertical text was turned by 90
    degrees against the clock. What most of the text says, by its length, holds for the page.
    """
    if len(quads) < 2:
        return list(range(len(quads)))
    quads = quads.astype(np.float64)
    widths = np.linalg.norm(quads[:, 1] - quads[:, 0], axis=1)
    heights = np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1)
    upright = ~np.asarray(vertical, bool)
    lengths, thick = np.where(upright, widths, heights), np.where(upright, heights, widths)
    on_side = bool(lengths[~upright].sum() > lengths[upright].sum())
    alike = upright != on_side
    weights = np.where(alike, lengths, 0)
    head_down = bool(weights[np.asarray(turned, bool)].sum() * 2 > weights.sum())
    axes = np.array(_WAYS[on_side, head_down], np.float64)
    edges = quads[:, 3] - quads[:, 0] if on_side else quads[:, 1] - quads[:, 0]
    axes = _slanted(axes, edges @ axes.T, weights)
    along, across = (quads.mean(axis=1) @ axes.T).T
    return _line_by_line(along, across, thick)


def _slanted(
    axes: NDArray[np.float64], edges: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`axes`, turned by the median angle of the `edges` (N, 2), which are given along and across."""
    angles = np.arctan2(edges[:, 1] * np.sign(edges[:, 0]), np.abs(edges[:, 0]))
    order = np.argsort(angles)
    total = np.cumsum(weights[order])
    angle = float(angles[order[np.searchsorted(total, total[-1] / 2)]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned: NDArray[np.float64] = turn @ axes
    return turned


def _line_by_line(along: NDArray[np.float64], across: NDArray[np.float64], thick: NDArray[np.float64]) -> list[int]:
    lines: list[list[int]] = []
    for i in np.argsort(across, kind="stable").tolist():
        if lines and _on_line(i, lines[-1], across, thick):
            lines[-1].append(i)
        else:
            lines.append([i])
    return [i for line in lines for i in sorted(line, key=lambda i: float(along[i]))]


def _on_line(i: int, line: Sequence[int], across: NDArray[np.float64], thick: NDArray[np.float64]) -> bool:
    lower = min(float(thick[i]), float(np.mean(thick[list(line)])))
    return bool(across[i] - np.mean(across[list(line)]) < _SAME_LINE * lower)
