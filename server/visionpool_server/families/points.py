"""Points of objects: joints and landmarks. A leaf: it imports no family."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.results import Point

from visionpool_server.families.boxes import Floats

_FAR = 1e7  # pixels: beyond it no picture has anything


def within_reach(values: Floats) -> NDArray[np.bool_]:
    """Which rows (N, k) are numbers of a sane size throughout: what a model that overflowed leaves has no place in JSON."""
    return np.asarray((np.abs(values) < _FAR).all(axis=1), np.bool_)


def rounded_points(points: NDArray[Any]) -> tuple[Point, ...]:
    """(N, 2) as a result has them, to 0.001 px."""
    return tuple(map(tuple, np.round(points.astype(np.float64), 3).tolist()))
