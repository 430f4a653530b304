"""JPEG (ITU-T T.81 annex B): size and orientation from the marker segments in front of the first scan.

The walk takes the same steps as libjpeg's `next_marker`, so that both find the same frame header.
"""

from __future__ import annotations

import re
import struct

import numpy as np
from visionpool.errors import UnsupportedMedia

from .exif import orientation
from .header import Header, corrupt, truncated

NAME = "JPEG"
MAX_SEGMENTS = 4096  # an ICC profile takes 255 at most, extended XMP some hundreds
MAX_SCANS = 100  # encoders write 10; each scan of a progressive picture costs a pass over all its pixels

_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # TEM, RST0-7: no length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0-15 without DHT, JPG, DAC
_NOT_READ = {0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}  # hierarchical, or lossless with arithmetic coding
_PROGRESSIVE = {0xC2, 0xCA}
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` (no frame header before the data), `UnsupportedMedia` (12 bits, hierarchical)."""
    at, size, exif, xmp = 2, None, None, None
    for _ in range(MAX_SEGMENTS):
        marker, at = _next_marker(view, at)
        if marker in _STANDALONE:
            continue
        if marker in (_SOI, _EOI):
            raise corrupt(NAME, "its header ends before there is a picture")
        length = view[at] << 8 | view[at + 1]
        if length < 2:
            raise corrupt(NAME, "a segment has no length")
        if marker == _SOS:
            break
        if marker in _FRAMES:
            size = _frame(view, at, marker, seen=size is not None)
        elif marker == _APP1:
            segment = bytes(view[at + 2 : at + length])
            if exif is None and segment.startswith(_EXIF):
                exif = segment
            elif xmp is None and segment.startswith(_XMP):
                xmp = segment
        at += length
    else:
        raise corrupt(NAME, f"it has more than {MAX_SEGMENTS} segments before its data")
    if size is None:
        raise corrupt(NAME, "it has no frame header")
    return Header(NAME, *size, orientation(exif, xmp))


def _next_marker(view: memoryview, at: int) -> tuple[int, int]:
    """(marker code, where its segment begins). Like libjpeg: bytes in front of a marker are passed over."""
    if view[at] != 0xFF or (code := view[at + 1]) in (0x00, 0xFF):
        found = _MARKER.search(view, at)
        if found is None:
            raise truncated(NAME)
        at = found.start()
        code = view[at + 1]
    return code, at + 2


def _frame(view: memoryview, at: int, marker: int, *, seen: bool) -> tuple[int, int]:
    """(width, height) from a frame header (T.81 B.2.2)."""
    if seen:
        raise corrupt(NAME, "it has two frame headers")
    precision, height, width = struct.unpack_from(">BHH", view, at + 2)
    if marker in _NOT_READ or precision != 8:
        kind = "hierarchical or lossless" if marker in _NOT_READ else f"{precision}-bit"
        raise UnsupportedMedia(f"{kind} JPEG is not read", hint="save it as an ordinary 8-bit JPEG or as PNG")
    if marker in _PROGRESSIVE and _scans(view) > MAX_SCANS:
        raise corrupt(NAME, f"a progressive picture of more than {MAX_SCANS} scans only costs time")
    return width, height


def _scans(view: memoryview) -> int:
    """How often the two bytes of SOS stand in the file: data never hold them (B.1.1.5). 0.1 ns a byte."""
    return sum(
        int(np.count_nonzero(np.frombuffer(view[odd : len(view) - (len(view) - odd) % 2], "<u2") == 0xDAFF))
        for odd in (0, 1)
    )
