"""Where the original picture lies in the prepared one, for the way back: of boxes, points and maps of pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Undo:
    """One step back, for maps of pixels: to a picture of `size` (height, width).

    `at`: the row and column where that picture lies in the one after the step; None where the step resized it.
    """

    size: tuple[int, int]
    at: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the original picture lies in the prepared one: `prepared = original * scale + offset`, in pixels.

    `undo`: the same step by step, the last step first, for what is to be brought back pixel by pixel.
    """

    height: int  # of the original picture
    width: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0
    undo: tuple[Undo, ...] = field(default=(), compare=False)

    def scaled(self, x: float, y: float, *undo: Undo) -> Geometry:
        return replace(
            self,
            undo=undo + self.undo,
            scale_x=self.scale_x * x,
            scale_y=self.scale_y * y,
            offset_x=self.offset_x * x,
            offset_y=self.offset_y * y,
        )

    def shifted(self, x: float, y: float, *undo: Undo) -> Geometry:
        return replace(self, offset_x=self.offset_x + x, offset_y=self.offset_y + y, undo=undo + self.undo)

    def to_original(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) xyxy in the prepared picture as boxes in the original one, clipped to its borders."""
        offset = np.array([self.offset_x, self.offset_y] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        return self.clip((boxes - offset) / scale)

    def points_to_original(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (N, 2) x, y in the prepared picture as points in the original one, which may lie beside it."""
        offset = np.array([self.offset_x, self.offset_y], np.float32)
        return np.asarray((points - offset) / np.array([self.scale_x, self.scale_y]), np.float32)

    def clip(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) xyxy in the original picture, cut at its borders."""
        limit = np.array([self.width, self.height] * 2, np.float32)
        clipped: NDArray[np.float32] = np.clip(boxes, 0, limit)
        return clipped
