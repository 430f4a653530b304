"""JPEG 2000 (ISO/IEC 15444-1): the SIZ segment (A.5.1) of a codestream, alone or inside a JP2 (annex I)."""

from __future__ import annotations

import struct

from visionpool.errors import UnsupportedMedia

from .boxes import boxes
from .header import Header, corrupt

NAME = "JPEG 2000"
MAX_TILES = 4096  # each takes the decoder kilobytes, whatever the size of the picture
CODESTREAM = b"\xff\x4f\xff\x51"
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` (no codestream) and `UnsupportedMedia` (channels, bits or tiles)."""
    start = 0
    if bytes(view[:4]) != CODESTREAM:
        start = next((at for kind, at, _ in boxes(view, 12, len(view)) if kind == b"jp2c"), -1)
        if start < 0 or bytes(view[start : start + 4]) != CODESTREAM:
            raise corrupt(NAME, "it holds no codestream")
    x1, y1, x0, y0, tile_w, tile_h, tile_x, tile_y = struct.unpack_from(">8I", view, start + 8)
    if not tile_w or not tile_h:
        raise corrupt(NAME, "its tiles have no size")
    tiles = -(-max(0, x1 - tile_x) // tile_w) * -(-max(0, y1 - tile_y) // tile_h)  # rounded up (B.3)
    if tiles > MAX_TILES:
        raise UnsupportedMedia(f"JPEG 2000 of {tiles} tiles is not read", hint="save it as larger tiles, or as PNG")
    components, precision = struct.unpack_from(">HB", view, start + 40)
    if components not in (1, 3, 4):
        raise UnsupportedMedia(
            f"JPEG 2000 of {components} channels is not read", hint="save it as grey, RGB or RGBA, or as PNG"
        )
    if precision & 0x80 or precision < 7:  # Ssiz: the sign, and the bits less one
        raise UnsupportedMedia(
            f"JPEG 2000 of {(precision & 0x7F) + 1} bits{', signed,' if precision & 0x80 else ''} is not read",
            hint="save it as 8 bits a channel, or as PNG",
        )
    # OpenCV cannot turn a bare grey codestream into colour, so grey goes the way of alpha.
    return Header(NAME, max(0, x1 - x0), max(0, y1 - y0), raw=components != 3, depth=precision + 1)
