"""PNG (W3C PNG, third edition): header, orientation, and the chunks that make the first picture.

Only chunks that change the picture go to libpng. The others are dropped, for three reasons: the frames of an
APNG are not wanted, compressed text and colour profiles are a way to make a server unpack megabytes, and
libpng writes its warnings about them to stderr, where nothing can catch them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from .exif import orientation
from .header import Header, corrupt, truncated

NAME = "PNG"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 1 << 17  # of 8 KiB, as libpng writes them: 1 GiB
MAX_TEXT = 1 << 20  # bytes that a compressed EXIF or XMP text may unpack to
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGBA: (8, 16),
}
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` for a header that the specification does not allow (11.2.1)."""
    width, height, depth, kind, *methods, interlace = struct.unpack_from(">IIBBBBB", view, 16)
    if bytes(view[8:16]) != b"\0\0\0\rIHDR":
        raise corrupt(NAME, "it does not begin with an IHDR chunk")
    if depth not in _DEPTHS.get(kind, ()) or methods != [0, 0] or interlace > 1:
        raise corrupt(NAME, "its IHDR chunk has values that do not exist")
    trns, turn = _ancillary(view)
    grey = None
    if kind == _GREY and trns is not None and len(trns) >= 2:
        grey = struct.unpack_from(">H", trns)[0] % (1 << depth)
        grey *= 255 // ((1 << depth) - 1) if depth < 8 else 1  # OpenCV scales 1, 2 and 4 bits up to 8
    raw = kind in (_GREY_ALPHA, _RGBA) or trns is not None
    return Header(NAME, width, height, turn, raw=raw, transparent_grey=grey)


def first_frame(view: memoryview) -> bytes:
    """The PNG with nothing but the chunks that its default picture needs (for Pillow, an APNG's first one).

    Raises `InvalidImage` for a chunk that fails its checksum and for a file without its end.
    """
    kind = view[25]
    wanted = {b"IHDR", b"IDAT", b"IEND"}
    wanted |= {_RGB: {b"tRNS"}, _PALETTE: {b"PLTE", b"tRNS"}}.get(kind, set())
    parts: list[memoryview | bytes] = [SIGNATURE]
    for name, at, length in _chunks(view):
        if name not in wanted:
            continue
        (crc,) = struct.unpack_from(">I", view, at + length)
        if zlib.crc32(view[at - 4 : at + length]) != crc:
            raise corrupt(NAME, f"the checksum of a chunk {name.decode()} is wrong")
        parts.append(view[at - 8 : at + length + 4])
        if name == b"IEND":
            return b"".join(parts)
    raise truncated(NAME)


def _chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its data begins, length of its data) of each whole chunk (5.3), up to IEND."""
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(view):
            return
        length, name = struct.unpack_from(">I4s", view, at)
        if at + 12 + length > len(view):
            return
        yield name, at + 8, length
        if name == b"IEND":
            return
        at += 12 + length
    raise corrupt(NAME, f"it has more than {MAX_CHUNKS} chunks")


def _ancillary(view: memoryview) -> tuple[memoryview | None, int]:
    """(the tRNS chunk, the orientation 1 to 8)."""
    trns, exif, profile, xmp = None, None, None, None
    for name, at, length in _chunks(view):
        data = view[at : at + length]
        if name == b"tRNS":
            trns = data
        elif name == b"eXIf" and exif is None:
            exif = bytes(data)
        elif name in _TEXTS and bytes(data[:22]) == b"Raw profile type exif\0":
            profile = _text(name, data[22:])
        elif name in _TEXTS and bytes(data[:18]) == b"XML:com.adobe.xmp\0":
            xmp = _text(name, data[18:])
    return trns, orientation(exif or _profile(profile), xmp)


def _text(name: bytes, data: memoryview) -> bytes:
    """The text behind a keyword (11.3.3), at most `MAX_TEXT` bytes; empty where it cannot be unpacked."""
    body, packed = bytes(data[:MAX_TEXT]), name == b"zTXt"
    if name == b"iTXt":
        packed, body = body[:1] == b"\x01", body[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        body = body[1:]
    try:
        return zlib.decompressobj().decompress(body, MAX_TEXT) if packed else body
    except zlib.error:
        return b""


def _profile(text: bytes | None) -> bytes | None:
    """The EXIF bytes in ImageMagick's `Raw profile type exif`: two lines of heading, then hexadecimal."""
    if not text:
        return None
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return None
