"""JPEG 2000 (ISO/IEC 15444-1): the SIZ segment (A.5.1) of a codestream, alone or inside a JP2 (annex I)."""

from __future__ import annotations

import struct

from visionpool.errors import UnsupportedMedia

from .boxes import boxes
from .header import Header, corrupt

NAME = "JPEG 2000"
CODESTREAM = b"\xff\x4f\xff\x51"
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` (no codestream) and `UnsupportedMedia` (2 channels, or more than 4)."""
    start = 0
    if bytes(view[:4]) != CODESTREAM:
        start = next((at for kind, at, _ in boxes(view, 12, len(view)) if kind == b"jp2c"), -1)
        if start < 0 or bytes(view[start : start + 4]) != CODESTREAM:
            raise corrupt(NAME, "it holds no codestream")
    x1, y1, x0, y0 = struct.unpack_from(">IIII", view, start + 8)
    components, precision = struct.unpack_from(">HB", view, start + 40)
    if components not in (1, 3, 4):
        raise UnsupportedMedia(
            f"JPEG 2000 of {components} channels is not read", hint="save it as grey, RGB or RGBA, or as PNG"
        )
    # OpenCV cannot turn a bare grey codestream into colour, so grey goes the way of alpha.
    return Header(NAME, max(0, x1 - x0), max(0, y1 - y0), raw=components != 3, depth=(precision & 0x7F) + 1)
