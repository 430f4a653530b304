"""A picture's format and size from its first bytes: nothing is decoded here.

    bytes -> `sniff` -> one reader of `formats/` -> `Header` -> decode.py

Work is bounded on hostile input: each walk over segments, chunks, boxes or entries has a limit, and none goes
over the same bytes twice. Whatever the bytes are, only `InvalidImage` and `UnsupportedMedia` are raised.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

from visionpool.errors import InvalidImage, UnsupportedMedia

from .formats import avif, bmp, gif, jpeg, jpeg2000, png, tiff, webp
from .formats.header import Header, truncated
from .formats.unknown import describe

__all__ = ["FORMATS", "Data", "Header", "as_view", "read_header", "sniff"]

Data: TypeAlias = bytes | bytearray | memoryview

_READERS: dict[str, Callable[[memoryview], Header]] = {
    module.NAME: module.read for module in (jpeg, png, webp, bmp, tiff, gif, avif, jpeg2000)
}
FORMATS: tuple[str, ...] = tuple(_READERS)

_MAGIC = (
    (b"\xff\xd8", jpeg.NAME),
    (png.SIGNATURE, png.NAME),
    (b"GIF87a", gif.NAME),
    (b"GIF89a", gif.NAME),
    (b"II*\0", tiff.NAME),
    (b"MM\0*", tiff.NAME),
    (b"II+\0", tiff.NAME),
    (b"MM\0+", tiff.NAME),
    (jpeg2000.CODESTREAM, jpeg2000.NAME),
    (jpeg2000.JP2, jpeg2000.NAME),
)


def as_view(data: Data) -> memoryview:
    """`data` as a flat memoryview of bytes; copied only where it does not lie in one piece."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def sniff(data: Data) -> str | None:
    """The name of the picture format that the first bytes announce, one of `FORMATS`, or None."""
    head = bytes(as_view(data)[:64])
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return webp.NAME
    if head[4:8] == b"ftyp" and _is_avif(head):
        return avif.NAME
    if head[:2] == b"BM" and (len(head) < 18 or int.from_bytes(head[14:18], "little") in bmp.HEADER_SIZES):
        return bmp.NAME
    return None


def read_header(data: Data) -> Header:
    """Format, size and orientation of a picture, without decoding any of it.

    Raises `InvalidImage` for an empty, truncated or corrupt header and for a width or height of zero, and
    `UnsupportedMedia` for what is no picture or a kind of picture that is not read here.
    """
    view = as_view(data)
    if not view:
        raise InvalidImage("the picture is empty: it has 0 bytes", hint="send the bytes of an image file")
    name = sniff(view)
    if name is None:
        formats = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
        raise UnsupportedMedia(
            f"not a picture that is read here: it looks like {describe(view)}",
            hint=f"formats read: {formats}",
        )
    try:
        header = _READERS[name](view)
    except (struct.error, IndexError, OverflowError):  # a reader went past the end of the bytes
        raise truncated(name) from None
    if not header.width or not header.height:
        raise InvalidImage(
            f"the {name} has a size of {header.width}x{header.height} pixels",
            hint="send one with pixels in it",
        )
    return header


def _is_avif(head: bytes) -> bool:
    """Whether a file type box (ISO/IEC 14496-12, 4.3) names AVIF among its brands."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    return bool(brands & {b"avif", b"avis"})
