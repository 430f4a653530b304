"""The coded items of a HEIF file (ISO/IEC 14496-12, 8.11.3 `iloc` and 8.11.6 `iinf`)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from visionpool.errors import InvalidImage

from .boxes import boxes

MAX_ITEMS = 4096


def coded_items(view: memoryview, meta: dict[bytes, tuple[int, int]], kind: bytes) -> Iterator[bytes]:
    """The data of each item of type `kind`. `meta`: box type -> (begin, end) of the boxes in the meta box.

    All items together are never more than the file: extents that overlap are a way to make a server copy.
    """
    wanted = {item for item, found in _types(view, *meta[b"iinf"]) if found == kind}
    left = len(view)
    for item, method, extents in _locations(view, meta[b"iloc"][0]):
        if item not in wanted:
            continue
        start, end = (0, len(view)) if method == 0 else meta.get(b"idat", (0, 0))
        if method > 1:
            raise InvalidImage("the AVIF is corrupt: an item is made of other items")
        parts = [view[start + at : min(end, start + at + (size or end))] for at, size in extents]
        left -= sum(map(len, parts))
        if left < 0:
            raise InvalidImage("the AVIF is corrupt: its items overlap")
        yield b"".join(parts)


def _types(view: memoryview, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(item ID, type) of each entry."""
    for kind, at, _ in boxes(view, start + (8 if view[start] else 6), end):
        if kind == b"infe" and view[at] >= 2:
            item, _, found = struct.unpack_from(">HH4s" if view[at] == 2 else ">IH4s", view, at + 4)
            yield item, found


def _locations(view: memoryview, at: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(item ID, construction method, [(offset, length), ...]) of each item."""
    version = view[at]
    offset_size, length_size = view[at + 4] >> 4, view[at + 4] & 15
    base_size, index_size = view[at + 5] >> 4, view[at + 5] & 15 if version in (1, 2) else 0
    wide = version >= 2
    count, at = _number(view, at + 6, 4 if wide else 2)
    for _ in range(min(count, MAX_ITEMS)):
        item, at = _number(view, at, 4 if wide else 2)
        method, at = _number(view, at, 2) if version in (1, 2) else (0, at)
        base, at = _number(view, at + 2, base_size)
        extents: list[tuple[int, int]] = []
        number, at = _number(view, at, 2)
        for _ in range(min(number, MAX_ITEMS)):
            offset, at = _number(view, at + index_size, offset_size)
            length, at = _number(view, at, length_size)
            extents.append((base + offset, length))
        yield item, method & 15, extents


def _number(view: memoryview, at: int, size: int) -> tuple[int, int]:
    """(a big-endian number of `size` bytes, where it ends)."""
    if at + size > len(view):
        raise IndexError(at)
    return int.from_bytes(view[at : at + size], "big"), at + size
