"""A decoded picture and what is to become of it: it stands in for the prepared pixels where a GPU makes them.

Steps of a recipe treat it as they treat pixels: they ask its shape, and have it resized, padded and cut; it only writes that
down. Batches of it are (N,) arrays of objects, so that pictures of different sizes share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Unprepared:
    """`pixels`, resized bilinearly to `resized`, of which `visible` shows; the rest of `size` is `fill`.

    Output pixel (row, column) is pixel (row + origin[0], column + origin[1]) of the resized picture where that lies in
    `visible` (top, left, bottom, right; the last two exclusive).
    """

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    resized: tuple[int, int]  # (height, width)
    visible: tuple[int, int, int, int]
    origin: tuple[int, int]  # negative where the picture begins further down or to the right
    size: tuple[int, int]  # (height, width) of the result
    fill: tuple[int, int, int] = (0, 0, 0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """As of the pixels that it stands for."""
        return (*self.size, self.pixels.shape[2])
