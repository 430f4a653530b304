"""Picture bytes to pixels: the first thing that happens to a picture of a request.

    bytes -> `read_header` -> size check -> first frame alone -> OpenCV -> 8-bit RGB on white -> upright

The size is known, and refused, before a decoder sees the bytes. Where formats leave room, Pillow is the
reference for what is accepted and how it looks; tests/test_decode_corpus.py says where we differ, and why.

stderr: OpenCV's own log is switched off here, for the whole process, since it prints its source paths for
every bad picture of a client. libjpeg and libpng write to file descriptor 2 themselves. PNGs are checked and
stripped first, so that libpng has nothing to say about ordinary damage; for a damaged but readable JPEG, libjpeg
prints a line ("Corrupt JPEG data: ..."), which nothing short of redirecting the descriptor stops.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidImage, TooLarge, UnsupportedMedia

from .device_pixels import DecodesJpegs
from .flatten import flatten
from .formats import avif, gif, jpeg, png
from .formats.header import corrupt
from .formats.plain_jpeg import plain_end
from .headers import FORMATS, Data, Header, as_view, read_header, sniff
from .recipe import Decoded, Geometry

__all__ = ["FORMATS", "Header", "decode", "decode_on_gpu", "read_header", "sniff"]

MAX_SIDE = 1 << 20  # OpenCV's CV_IO_MAX_IMAGE_WIDTH and _HEIGHT

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {  # the "grayscale" flags only carry the factor: with a colour flag beside them the result is in colour
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_LAST_LEVEL = 4  # EXIF orientations above it turn the picture on its side
_LAST_COLUMN_FIRST = {2, 3, 6, 7}  # ... and these bring the end of a row or column to the left, or to the top
_LAST_ROW_FIRST = {3, 4, 7, 8}
_FIRST_FRAME: dict[str, Callable[[memoryview], bytes | memoryview]] = {
    png.NAME: png.first_frame,
    gif.NAME: gif.first_frame,
    avif.NAME: avif.first_frame,
}
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # EXIF orientation -> what undoes it
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def decode(data: Data, *, max_pixels: int = 50_000_000) -> NDArray[np.uint8]:
    """The first frame or page of a picture: (H, W, 3) RGB uint8, C-contiguous, upright, alpha on white.

    Raises `InvalidImage` (empty, truncated, corrupt), `UnsupportedMedia` (no picture, or of a kind not read)
    and `TooLarge` (more than `max_pixels`; nothing has been decoded then). A JPEG without its end marker is
    truncated unless its decoder had every pixel already, as with Pillow; bytes behind the end do not matter.
    """
    return decode_reduced(data, max_pixels=max_pixels)[0]


def decode_reduced(
    data: Data, *, max_pixels: int, reduction: Callable[[int, int], int] = lambda _height, _width: 1
) -> tuple[NDArray[np.uint8], Geometry]:
    """As `decode`, but a JPEG may come out smaller; with where the original picture lies in it.

    `reduction(height, width)` gives 1, 2, 4 or 8: so many times smaller, rounded up. libjpeg scales inside the DCT, which
    averages pixels and costs a fraction of decoding them all. Other formats come in full.
    """
    view = as_view(data)
    header = read_header(view)
    _check_size(header, max_pixels)
    height, width = (
        (header.height, header.width) if header.orientation <= _LAST_LEVEL else (header.width, header.height)
    )
    times = reduction(height, width) if header.format == jpeg.NAME and not header.raw else 1
    cut = _FIRST_FRAME.get(header.format)
    pixels = _as_shown(_imdecode(cut(view) if cut else view, header, times), header)
    return pixels, _reduced_geometry(height, width, times, header.orientation)


def decode_on_gpu(data: Data, decoder: DecodesJpegs, *, max_pixels: int) -> Decoded:
    """As `decode`, but plain upright JPEGs that `decoder` takes lie where it decodes them.

    All checks come first, and what it does not take goes the ordinary way: what is refused is the same.
    """
    view = as_view(data)
    header = read_header(view)
    _check_size(header, max_pixels)
    end = plain_end(view) if header.format == jpeg.NAME and header.orientation == 1 else None
    pixels = decoder.decode(view[:end], header.height, header.width) if end else None
    return decode(view, max_pixels=max_pixels) if pixels is None else pixels


def _reduced_geometry(height: int, width: int, times: int, orientation: int) -> Geometry:
    """Where the original lies in a picture reduced so many times. The last row and column may stand for less than `times`
    pixels; turning the picture upright can bring them to the top and to the left."""
    geometry = Geometry(height, width, 1 / times, 1 / times)
    left = -width % times / times if orientation in _LAST_COLUMN_FIRST else 0.0
    top = -height % times / times if orientation in _LAST_ROW_FIRST else 0.0
    return geometry.shifted(left, top)


def _as_shown(pixels: NDArray[Any], header: Header) -> NDArray[np.uint8]:
    """What OpenCV decoded as a viewer shows it: flat, in full range, upright."""
    if header.raw:
        pixels = flatten(pixels, header)
    if header.inverted:
        pixels = cv2.bitwise_not(pixels)
    if header.channel_bits is not None:
        pixels = cv2.LUT(pixels, _full_range(header.channel_bits))
    if header.frame is not None:
        pixels = _on_canvas(pixels, header.frame)
    upright = _UPRIGHT.get(header.orientation)
    return np.ascontiguousarray(upright(pixels)) if upright else pixels


def _check_size(header: Header, max_pixels: int) -> None:
    size = f"{header.width}x{header.height}"
    if header.largest > header.width * header.height:
        size += f" (made of pieces of up to {header.largest})"
    if header.pixels > max_pixels:
        raise TooLarge(
            f"the {header.format} is too large: {size} pixels, the limit is {max_pixels} in all",
            hint="send a smaller picture, or raise --max-pixels of the server",
        )
    if max(header.width, header.height) > MAX_SIDE:
        raise TooLarge(
            f"the {header.format} is too large: {size} pixels, the limit of a side is {MAX_SIDE}",
            hint="send a smaller picture",
        )


def _imdecode(data: bytes | memoryview, header: Header, times: int = 1) -> NDArray[Any]:
    """What OpenCV makes of the bytes, `times` smaller; its ways to fail become our errors."""
    flags = cv2.IMREAD_UNCHANGED if header.raw else _COLOR | _REDUCED[times]
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        if _codec_missing(header.format):
            raise UnsupportedMedia(
                f"{header.format} is not read by the OpenCV of this server", hint="send it as JPEG or PNG"
            )
        raise InvalidImage(f"the {header.format} is truncated or corrupt", hint="open it in a viewer and save it again")
    if pixels.shape[:2] != (-(-header.height // times), -(-header.width // times)):
        raise corrupt(header.format, "its data and its header disagree about the size")
    return pixels


@cache
def _codec_missing(name: str) -> bool:
    """Whether this build of OpenCV says that it has no codec for the format."""
    return re.search(rf"^\s*{name}:\s+NO\s*$", cv2.getBuildInformation(), re.I | re.M) is not None


@cache
def _full_range(channel_bits: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(256, 1, 3): OpenCV makes 5 bits into 8 by a shift, which leaves white at 248."""
    values = np.arange(256)
    tables = [np.rint((values >> 8 - bits) * 255 / ((1 << bits) - 1)) for bits in channel_bits]
    return np.stack(tables, axis=-1)[:, None].astype(np.uint8)


def _on_canvas(pixels: NDArray[Any], frame: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A GIF's frame on white: browsers leave the rest of the screen transparent, whatever its background."""
    x, y, w, h = frame
    canvas = np.full(pixels.shape, 255, np.uint8)
    canvas[y : y + h, x : x + w] = pixels[y : y + h, x : x + w]
    return canvas
