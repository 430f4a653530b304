"""The orientation of a picture, from EXIF or XMP, read as Pillow's `ImageOps.exif_transpose` reads it."""

from __future__ import annotations

import re
import struct

ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4 A
_INTEGERS = {3: "H", 4: "I", 8: "h", 9: "i"}  # TIFF 6.0, section 2: field types
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def exif_orientation(exif: bytes) -> int | None:
    """1 to 8, or None where IFD0 has no orientation or cannot be read. `exif` may start with `Exif\\0\\0`."""
    try:
        return _from_ifd0(exif.removeprefix(b"Exif\0\0"))
    except struct.error:
        return None


def xmp_orientation(xmp: bytes) -> int | None:
    """1 to 8, or None where the XMP packet names no orientation (XMP part 2, TIFF namespace)."""
    found = _XMP.search(xmp)
    return valid(int(found[1])) if found else None


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """1 to 8; XMP only counts where EXIF is silent."""
    value = exif_orientation(exif) if exif else None
    if value is None and xmp:
        value = xmp_orientation(xmp)
    return value or 1


def valid(value: int) -> int:
    """`value` where it is an orientation, else 1: viewers show a picture with a nonsense value as it lies."""
    return value if 1 <= value <= 8 else 1


def _from_ifd0(tiff: bytes) -> int | None:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    (ifd,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, ifd)
    for at in range(ifd + 2, ifd + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, at)
        if tag == ORIENTATION:
            if kind not in _INTEGERS or values != 1:
                return 1
            return valid(struct.unpack_from(order + _INTEGERS[kind], tiff, at + 8)[0])
    return None
