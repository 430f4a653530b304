"""A caller's picture becomes bytes for the wire: paths, bytes, open files, NumPy arrays and Pillow images.

The first step of a call, and the only one that knows what callers hold in their hands. Encoded pictures pass
through untouched; pixels are written losslessly (BMP, PNG) with nothing beyond the standard library. NumPy is
imported only once an array is there, so the client works without it.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from visionpool.errors import InvalidImage
from visionpool.jpeg import JPEG_QUALITY, encode_jpeg

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray


class PixelArray(Protocol):
    """What a NumPy array offers, and so does whatever else hands out its pixels the same way."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


Picture: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | PixelArray"
Color: TypeAlias = Literal["bgr", "rgb"]
Encoding: TypeAlias = Literal["lossless", "jpeg"]

_WANTED = "pass a path, bytes, a file opened with 'rb', or an array of uint8 pixels"
_MAX_BYTES = 2**32 - 1  # BMP and PNG both write sizes in 32 bits
_SIGNATURES = (  # (offset, bytes there, media type)
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (0, b"II+\0", "image/tiff"),  # above 4 GB
    (0, b"MM\0+", "image/tiff"),
    (0, b"GIF8", "image/gif"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypavis", "image/avif"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
    (0, b"\xff\x4f\xff\x51", "image/jp2"),
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture as it travels: an encoded file's bytes and their media type."""

    data: bytes
    media_type: str


def load(picture: Picture, *, color: Color = "bgr", encoding: Encoding = "lossless") -> Encoded:
    """The bytes of `picture`. A file object is read once, from where it stands, and is left open.

    `color` is the order of an array's channels: "bgr" as `cv2.imread` gives them, or "rgb". It says nothing
    about encoded pictures or Pillow images, which know their own. `encoding` is how arrays and Pillow images
    become files: without loss, or as JPEGs of quality 95, a tenth of the size; transparent arrays never lose.

    Raises InvalidImage for what cannot be a picture, OSError (FileNotFoundError, ...) for an unreadable path,
    InvalidOption where nothing is installed that writes JPEGs.
    """
    data = _content(picture, color, encoding)
    if not data:
        raise InvalidImage("the picture has no bytes", hint="is the file empty, or already read?")
    return Encoded(data, media_type(data))


def media_type(data: bytes) -> str:
    """The media type that the first bytes of a file tell, `application/octet-stream` where they tell none."""
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return name
    return "application/octet-stream"


def _content(picture: Any, color: Color, encoding: Encoding) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, (bytearray, memoryview)):
        return bytes(picture)
    if isinstance(picture, (str, os.PathLike)):
        return Path(picture).read_bytes()
    if type(picture).__module__.startswith("PIL."):
        return _from_pillow(picture, encoding)
    if hasattr(picture, "__array_interface__"):
        return _from_array(picture, color, encoding)
    if hasattr(picture, "read"):
        return _from_file(picture)
    raise InvalidImage(f"a {type(picture).__name__} is not a picture", hint=_WANTED)


def _from_file(file: Any) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise InvalidImage("the file is open as text", hint="open it with mode 'rb'")
    return data


def _from_pillow(image: Any, encoding: Encoding) -> bytes:
    # It knows the order of its channels, so `color` does not apply: as an array, red and blue would swap.
    buffer = BytesIO()
    image.convert("RGB").save(buffer, format="JPEG" if encoding == "jpeg" else "BMP", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _from_array(source: Any, color: Color, encoding: Encoding) -> bytes:
    import numpy as np

    if color not in ("bgr", "rgb"):
        raise InvalidImage(f"unknown order of channels {color!r}", hint="use 'bgr' or 'rgb'")
    pixels = np.asarray(source)
    _check(pixels.dtype.name, pixels.shape)
    if pixels.nbytes > _MAX_BYTES // 2:
        raise InvalidImage(f"an array of {pixels.nbytes} bytes is too large", hint="scale the picture down")
    if encoding == "jpeg" and (pixels.ndim == 2 or pixels.shape[2] != 4):
        return encode_jpeg(pixels[..., ::-1] if color == "rgb" and pixels.ndim == 3 else pixels)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _png(pixels.reshape(pixels.shape[0], -1), color_type=0)
    if pixels.shape[2] == 4:
        return _png(pixels[..., [2, 1, 0, 3]] if color == "bgr" else pixels, color_type=6)
    return _bmp(pixels if color == "bgr" else pixels[..., ::-1])


def _check(dtype: str, shape: tuple[int, ...]) -> None:
    """Raises InvalidImage, with what to do about it, for an array that is not one picture of uint8 pixels."""
    channels = (1, 3, 4)
    if dtype != "uint8":
        fault, hint = f"holds {dtype}, not uint8", "for values of 0..1: (array * 255).round().astype('uint8')"
    elif len(shape) == 4:
        fault, hint = "is a batch", "predict_many(model, array) takes it"
    elif len(shape) == 3 and shape[2] not in channels and shape[0] in channels:
        fault, hint = "has its channels first", "turn it with array.transpose(1, 2, 0)"
    elif len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in channels):
        fault, hint = "is not a picture", "shapes are (height, width) and (height, width, 1 or 3 or 4)"
    elif 0 in shape:
        fault, hint = "has no pixels", "did a crop miss the picture?"
    else:
        return
    raise InvalidImage(f"an array of shape {shape} {fault}", hint=hint)


def _bmp(bgr: NDArray[uint8]) -> bytes:  # (H, W, 3)
    """An uncompressed 24-bit BMP: little more than a copy. Rows run from the bottom up, padded to 4 bytes."""
    import numpy as np

    height, width = bgr.shape[:2]
    rows = np.zeros((height, (width * 3 + 3) // 4 * 4), np.uint8)
    rows[:, : width * 3] = bgr[::-1].reshape(height, width * 3)
    file = struct.pack("<2sIHHI", b"BM", 54 + rows.nbytes, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, rows.nbytes, 2835, 2835, 0, 0)
    return file + info + rows.tobytes()


def _png(pixels: NDArray[uint8], color_type: int) -> bytes:  # (H, W) grey is type 0, (H, W, 4) RGBA is type 6
    """A PNG without row filters, at zlib's fastest level (PNG specification, 3rd edition, section 5)."""
    import numpy as np

    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each row starts with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), level=1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
