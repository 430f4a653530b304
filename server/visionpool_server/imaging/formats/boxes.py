"""Boxes: the container of AVIF (ISO/IEC 14496-12, 4.2) and of JP2 (ISO/IEC 15444-1, annex I.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from visionpool.errors import InvalidImage

MAX_BOXES = 4096  # in one level


def boxes(view: memoryview, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, where the content begins, where it ends) of each box; the end never lies behind `end`."""
    at, end = start, min(end, len(view))
    for _ in range(MAX_BOXES):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", view, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", view, at + 8)
            head = 16
        elif size == 0:
            size = end - at
        if size < head:
            return
        yield kind, at + head, min(at + size, end)
        at += size
    raise InvalidImage(f"the picture is corrupt: it has more than {MAX_BOXES} boxes in a row")
