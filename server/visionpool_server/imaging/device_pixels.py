"""A decoded picture that lies on a GPU: it stands in for the pixels where the GPU decodes too, and nobody here sees them.

`decode: gpu` makes them (`cuda/jpegs.py`), `Unprepared` carries them, and the kernel reads them where they are
(`cuda/sources.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True, eq=False)
class DevicePixels:
    """(H, W, 3) RGB uint8. `pitch`: bytes from row to row. The memory is there as long as `owner` is."""

    address: int
    shape: tuple[int, int, int]
    pitch: int
    owner: object

    def __getitem__(self, window: tuple[slice, slice]) -> DevicePixels:
        """Some rows and columns, as an array's: the same memory."""
        rows, columns = (range(size)[part] for size, part in zip(self.shape, window, strict=False))
        start = self.address + rows.start * self.pitch + columns.start * self.shape[2]
        return replace(self, address=start, shape=(len(rows), len(columns), self.shape[2]))


class DecodesJpegs(Protocol):
    """What decodes JPEGs into the memory of a GPU."""

    def decode(self, jpeg: memoryview, height: int, width: int) -> DevicePixels | None:
        """The pixels, (height, width, 3), once they are there; None where it does not decode this one."""
