"""WebP (RFC 9649): the canvas of the container, or the frame header of a VP8 (RFC 6386) or VP8L picture."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .exif import orientation
from .header import Header, corrupt

NAME = "WebP"
MAX_CHUNKS = 1 << 14  # an animation has one a frame
_ALPHA, _ANIMATION = 0x10, 0x02  # flags of VP8X


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` where no chunk tells the size."""
    width, height, raw, exif, xmp = 0, 0, False, None, None
    for name, at, length in _chunks(view):
        if name == b"VP8X":
            flags, w, h = view[at], _u24(view, at + 4) + 1, _u24(view, at + 7) + 1
            raw |= bool(flags & (_ALPHA | _ANIMATION))
        elif name == b"VP8 ":
            w, h = _vp8(view, at)
        elif name == b"VP8L":
            w, h, alpha = _vp8l(view, at)
            raw |= alpha
        else:
            if name == b"EXIF" and exif is None:
                exif = bytes(view[at : at + length])
            elif name == b"XMP " and xmp is None:
                xmp = bytes(view[at : at + length])
            continue
        width, height = max(width, w), max(height, h)  # a frame larger than its canvas must count as well
    if not width:
        raise corrupt(NAME, "it holds no picture")
    return Header(NAME, width, height, orientation(exif, xmp), raw=raw)


def _chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its data begins, length) of each chunk (RFC 9649, 2.3), a cut one at the end included."""
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(view):
            return
        name, length = struct.unpack_from("<4sI", view, at)
        yield name, at + 8, length
        at += 8 + length + (length & 1)
    raise corrupt(NAME, f"it has more than {MAX_CHUNKS} chunks")


def _u24(view: memoryview, at: int) -> int:
    return view[at] | view[at + 1] << 8 | view[at + 2] << 16


def _vp8(view: memoryview, at: int) -> tuple[int, int]:
    """(width, height) of a key frame (RFC 6386, 9.1)."""
    if bytes(view[at + 3 : at + 6]) != b"\x9d\x01\x2a":
        raise corrupt(NAME, "its frame header is not one of VP8")
    width, height = struct.unpack_from("<HH", view, at + 6)
    return width & 0x3FFF, height & 0x3FFF


def _vp8l(view: memoryview, at: int) -> tuple[int, int, bool]:
    """(width, height, has alpha) of a lossless picture (RFC 9649, 3.4)."""
    signature, bits = struct.unpack_from("<BI", view, at)
    if signature != 0x2F:
        raise corrupt(NAME, "its frame header is not one of VP8L")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
