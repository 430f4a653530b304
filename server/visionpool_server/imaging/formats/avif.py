"""AVIF (AV1 Image File Format 1.1, on HEIF, ISO/IEC 23008-12): the properties of the primary item."""

from __future__ import annotations

import struct
from typing import TypeAlias

from .av1 import largest_frame
from .boxes import boxes
from .header import Header, corrupt
from .heif import MAX_ITEMS, coded_items

NAME = "AVIF"
_ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"

_Property: TypeAlias = tuple[bytes, int, int]  # type, where the content begins, where it ends

# (quarter turns anticlockwise, mirror axis or None) -> EXIF orientation; the turn comes first (HEIF 6.5.10)
_ORIENTATION = {
    (0, None): 1, (0, 0): 4, (0, 1): 2,
    (1, None): 8, (1, 0): 5, (1, 1): 7,
    (2, None): 3, (2, 0): 2, (2, 1): 4,
    (3, None): 6, (3, 0): 7, (3, 1): 5,
}  # fmt: skip


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` where the primary item or its size is missing.

    EXIF does not turn an AVIF, `irot` and `imir` do (AVIF 1.1, section 4). OpenCV leaves both to us.
    """
    start, end = _find(view, 0, len(view), b"meta")
    meta = {kind: (at, stop) for kind, at, stop in boxes(view, start + 4, end)}
    for kind in (b"pitm", b"iprp", b"iinf", b"iloc"):
        if kind not in meta:
            raise corrupt(NAME, f"its box {kind.decode()} is missing")
    at, _ = meta[b"pitm"]
    (primary,) = struct.unpack_from(">I" if view[at] else ">H", view, at + 4)
    properties, own = _properties(view, *meta[b"iprp"], primary)
    frames = [largest_frame(item) for item in coded_items(view, meta, b"av01")]
    areas = [_area(view, at) for kind, at, _ in properties if kind == b"ispe"]
    alpha = any(kind == b"auxC" and bytes(view[at + 4 : stop]) == _ALPHA for kind, at, stop in properties)
    return _header(view, own, alpha, max(areas + frames, default=0))


def _header(view: memoryview, own: list[_Property], alpha: bool, largest: int) -> Header:
    """What the properties of the primary item say."""
    found = {kind: at for kind, at, _ in reversed(own)}
    if b"ispe" not in found:
        raise corrupt(NAME, "it does not tell its size")
    width, height = struct.unpack_from(">II", view, found[b"ispe"] + 4)
    turn = view[found[b"irot"]] & 3 if b"irot" in found else 0
    mirror = view[found[b"imir"]] & 1 if b"imir" in found else None
    flags = view[found[b"av1C"] + 2] if b"av1C" in found else 0  # high_bitdepth, twelve_bit: AV1-ISOBMFF 2.3.3
    depth = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return Header(NAME, width, height, _ORIENTATION[turn, mirror], raw=alpha, depth=depth, largest=largest)


def first_frame(view: memoryview) -> bytes | memoryview:
    """The file; a sequence under the brand of a still, since libavif would open its track instead of the
    primary item, whose header was checked.
    """
    return b"".join((view[:8], b"avif", view[12:])) if bytes(view[8:12]) == b"avis" else view


def _area(view: memoryview, at: int) -> int:
    width, height = struct.unpack_from(">II", view, at + 4)
    return int(width * height)


def _find(view: memoryview, start: int, end: int, kind: bytes) -> tuple[int, int]:
    for found, at, stop in boxes(view, start, end):
        if found == kind:
            return at, stop
    raise corrupt(NAME, f"its box {kind.decode()} is missing")


def _properties(view: memoryview, start: int, end: int, item: int) -> tuple[list[_Property], list[_Property]]:
    """(all properties of the file, those of `item`)."""
    everything = list(boxes(view, *_find(view, start, end, b"ipco")))
    at, stop = _find(view, start, end, b"ipma")
    wide_id, wide_index = view[at] > 0, view[at + 3] & 1
    (count,) = struct.unpack_from(">I", view, at + 4)
    at += 8
    for _ in range(min(count, MAX_ITEMS)):
        (name,) = struct.unpack_from(">I" if wide_id else ">H", view, at)
        at += 4 if wide_id else 2
        links, at = view[at], at + 1
        step = 2 if wide_index else 1
        if at + links * step > stop:
            break
        if name == item:
            masks = struct.unpack_from(f">{links}{'H' if wide_index else 'B'}", view, at)
            indexes = [mask & (0x7FFF if wide_index else 0x7F) for mask in masks]
            return everything, [everything[i - 1] for i in indexes if 0 < i <= len(everything)]
        at += links * step
    raise corrupt(NAME, "its primary item has no properties")
