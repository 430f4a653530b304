"""Picture files for the tests of decoding: written by Pillow, or byte by byte where Pillow cannot; and how they look.

`shown` is the reference: what Pillow shows, with alpha on white and 16 bits scaled to 8.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Fields = dict[int, tuple[int, list[int]]]  # TIFF tag -> (type, values)

WRITABLE: dict[str, tuple[str, tuple[str, ...]]] = {  # our name -> (Pillow's name, modes it writes that we read)
    "JPEG": ("JPEG", ("RGB", "L", "CMYK")),
    "PNG": ("PNG", ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    "WebP": ("WEBP", ("RGB", "RGBA")),
    "BMP": ("BMP", ("RGB", "RGBA", "L", "P", "1")),
    "TIFF": ("TIFF", ("RGB", "RGBA", "L", "P", "1", "I;16", "CMYK")),
    "GIF": ("GIF", ("RGB", "L", "P", "1")),
    "AVIF": ("AVIF", ("RGB", "RGBA", "L")),
    "JPEG 2000": ("JPEG2000", ("RGB", "RGBA", "L", "I;16")),
}
EVERY = [(name, kind, mode) for name, (kind, modes) in WRITABLE.items() for mode in modes]
BYTES_8 = {258: (3, [8, 8, 8]), 262: (3, [2]), 277: (3, [3])}  # a TIFF of 8-bit RGB

WIDTH, HEIGHT = 37, 23  # odd numbers: rows get padding, chroma gets half pixels


def scene(mode: str = "RGB") -> Image.Image:
    """A picture of `WIDTH` x `HEIGHT` with no symmetry, so that each of the eight orientations differs."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rgb = np.stack([x * 6, y * 10, (x * 3 + y * 5) % 256], axis=-1).astype(np.uint8)
    alpha = Image.fromarray((255 - x * 6 - y).clip(0, 255).astype(np.uint8))
    picture = Image.fromarray(rgb)
    if mode == "I;16":
        return Image.fromarray((x * 1700 + y * 111).astype(np.uint16))
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(alpha)
        return picture
    return picture.quantize(16) if mode == "P" else picture.convert(mode)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """`picture` as a file of Pillow's format `kind`."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def shown(data: bytes, white: int = 65535) -> NDArray[np.uint8]:
    """(H, W, 3): what Pillow shows. `white`: the greatest value of a 16-bit grey picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of broken EXIF and of bombs, which are the point here
        file = Image.open(io.BytesIO(data))
        file.load()
        picture: Image.Image = ImageOps.exif_transpose(file)
    key = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.float64)
        out = np.repeat(np.rint(grey * 255 / white).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        return np.where(grey[..., None] == key, np.uint8(255), out) if key is not None else out
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or key is not None:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return np.asarray(picture.convert("RGB"))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size: tuple[int, int], depth: int, kind: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of unfiltered `rows` (each with its filter byte 0), `extra` chunks in front of the data."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(extra) + data + png_chunk(b"IEND", b"")


def jpeg_header(width: int, height: int, *, frame: int = 0xC0, precision: int = 8, before: bytes = b"") -> bytes:
    """A JPEG of `SOI`, `before`, a frame header and the beginning of a scan."""
    components = b"\x01\x11\0\x02\x11\0\x03\x11\0"
    sof = struct.pack(">BBHBHHB", 0xFF, frame, 17, precision, height, width, 3) + components
    return b"\xff\xd8" + before + sof + b"\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0" + bytes(400)


def bmp(size: tuple[int, int], bits: int, pixels: bytes, *, header: int = 40, compression: int = 0,
        masks: tuple[int, ...] = (), palette: bytes = b"") -> bytes:  # fmt: skip
    """A BMP; `masks` stand behind a 40-byte header or inside a longer one."""
    if header == 12:
        dib = struct.pack("<IHHHH", 12, *size, 1, bits)
    else:
        dib = struct.pack("<IiiHHIIiiII", header, *size, 1, bits, compression, len(pixels), 0, 0, 0, 0)
        dib += struct.pack(f"<{len(masks)}I", *masks)
        dib = dib.ljust(header, b"\0")
    start = 14 + len(dib) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + dib + palette + pixels


def tiff(size: tuple[int, int], fields: Fields, pixels: bytes, *, big: bool = False) -> bytes:
    """A little-endian TIFF of one uncompressed strip, or of the one tile that `fields` describe."""
    fields = {256: (4, [size[0]]), 257: (4, [size[1]]), 259: (3, [1])} | fields
    tiled = 324 if 322 in fields else 273
    fields |= {tiled: (4, [0]), tiled + (1 if tiled == 324 else 6): (4, [len(pixels)])}
    if tiled == 273:
        fields[278] = (4, [size[1]])
    entry, inline, word = (20, 8, "Q") if big else (12, 4, "I")
    start = (16 + 8 if big else 8 + 2) + entry * len(fields) + inline
    for _ in range(2):  # the second pass knows where the pixels begin
        spilled, directory = b"", b""
        for tag in sorted(fields):
            kind, values = fields[tag]
            packed = struct.pack(f"<{len(values)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *values)
            held = packed.ljust(inline, b"\0")
            if len(packed) > inline:
                held, spilled = struct.pack("<" + word, start + len(spilled)), spilled + packed
            directory += struct.pack("<HH" + word, tag, kind, len(values)) + held
        fields[tiled] = (4, [start + len(spilled)])
    head = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(fields)) if big else b"II*\0\x08\0\0\0"
    count = b"" if big else struct.pack("<H", len(fields))
    return head + count + directory + bytes(inline) + spilled + pixels


GIF_PALETTE = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])


def gif(screen: tuple[int, int], *frames: tuple[tuple[int, int, int, int], list[int], int | None],
        background: int = 0) -> bytes:  # fmt: skip
    """A GIF of four colours; a frame is ((x, y, w, h), its pixels, the transparent index or None)."""
    parts = [b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, background, 0) + GIF_PALETTE]
    for rectangle, pixels, transparent in frames:
        if transparent is not None:
            parts.append(b"!\xf9\x04" + struct.pack("<BHB", 1, 10, transparent) + b"\0")
        data = _lzw(pixels)
        parts.append(b"," + struct.pack("<HHHHB", *rectangle, 0) + b"\x02" + bytes([len(data)]) + data + b"\0")
    return b"".join(parts) + b";"


def _lzw(pixels: list[int]) -> bytes:
    """LZW codes of three bits; a clear code before every second pixel keeps them at three."""
    codes = [code for i, pixel in enumerate(pixels) for code in ([4, pixel] if i % 2 == 0 else [pixel])] + [5]
    bits = sum(code << 3 * i for i, code in enumerate(codes))
    return bits.to_bytes((3 * len(codes) + 7) // 8, "little")


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of the given chunks."""
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def grey_tiff(bits: int, photometric: int, pixels: bytes) -> bytes:
    return tiff((8, 5), {258: (3, [bits]), 262: (3, [photometric]), 277: (3, [1])}, pixels)


def jpeg_2000(mode: str, bits: int) -> bytes:
    """8-bit samples under a header of `bits`: the decoder adds another middle (15444-1 G.1.2), 2^(bits - 1)."""
    data, channels = bytearray(saved(scene(mode), "JPEG2000")), len(mode)
    data[data.index(b"ihdr") + 14] = bits - 1
    at = data.index(b"\xff\x4f\xff\x51") + 42
    data[at : at + 3 * channels : 3] = bytes([bits - 1]) * channels
    return bytes(data)


def plain(size: tuple[int, int], channels: int, *, kind: str = "B") -> bytes:
    """Samples that differ from each other, row by row without padding."""
    count = size[0] * size[1] * channels
    values = (np.arange(count) * 7919) % (256 if kind == "B" else 65536)
    return struct.pack(f"<{count}{kind}", *values)
