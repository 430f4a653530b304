"""BMP (Windows GDI: BITMAPCOREHEADER to BITMAPV5HEADER): size, alpha and odd bit masks."""

from __future__ import annotations

import struct

from visionpool.errors import UnsupportedMedia

from .header import Header, corrupt

NAME = "BMP"
HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_RGB, _RLE8, _RLE4, _BITFIELDS = 0, 1, 2, 3
_HINT = "save it as an ordinary 24-bit BMP or as PNG"
_555 = (0x7C00, 0x3E0, 0x1F)
_CHANNEL_BITS: dict[tuple[int, ...], tuple[int, int, int]] = {
    _555: (5, 5, 5),
    (0xF800, 0x7E0, 0x1F): (5, 6, 5),
}
_BYTES = (0xFF, 0xFF00, 0xFF0000, 0xFF000000, 0)


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` (an impossible width or bit count) and `UnsupportedMedia` (rare kinds)."""
    (size,) = struct.unpack_from("<I", view, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", view, 18)
        return _checked(Header(NAME, width, height), bits)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", view, 18)
    if compression not in (_RGB, _RLE8, _RLE4, _BITFIELDS):
        raise UnsupportedMedia(f"BMP with compression {compression} is not read", hint=_HINT)
    masks: tuple[int, ...] = ()
    if compression == _BITFIELDS:
        masks = struct.unpack_from("<4I" if size >= 56 else "<3I", view, 54)
    if bits == 32 and not all(mask in _BYTES for mask in masks):
        raise UnsupportedMedia("BMP with unusual bit masks is not read", hint=_HINT)
    alpha = bits == 32 and len(masks) == 4 and masks[3] != 0
    channel_bits = _CHANNEL_BITS.get(masks[:3] or _555) if bits == 16 else None
    return _checked(Header(NAME, width, abs(height), raw=alpha, channel_bits=channel_bits), bits)


def _checked(header: Header, bits: int) -> Header:
    if header.width <= 0:
        raise corrupt(NAME, f"its width is {header.width}")
    if bits not in (1, 4, 8, 16, 24, 32):
        raise corrupt(NAME, f"its pixels have {bits} bits")
    if bits == 16 and header.channel_bits is None:
        raise UnsupportedMedia("BMP with unusual bit masks is not read", hint=_HINT)
    return header
