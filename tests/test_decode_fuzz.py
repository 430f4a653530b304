"""Any bytes at all: `read_header` and `decode` answer with a value or with one of our errors, and nothing else."""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from visionpool.errors import InvalidImage, RequestError, TooLarge, UnsupportedMedia
from visionpool_server.imaging.decode import decode
from visionpool_server.imaging.headers import Header, read_header, sniff

from tests.picture_files import bmp, exif, gif, saved, scene, tiff

# derandomize: a suite that fails by chance is not believed. Longer, random runs are made by hand.
FUZZ = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
DECODES = settings(FUZZ, max_examples=250)

MAGICS = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"II+\0\x08\0\0\0",
    b"BM",
    b"RIFF\0\0\0\0WEBPVP8X",
    b"RIFF\0\0\0\0WEBPVP8L",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\0\0\0\x10ftypavif\0\0\0\0\0\0\xff\xffmeta",
]


@cache
def seeds() -> list[bytes]:
    """Small real files of every format, with EXIF where the format carries it."""
    tag = exif(6)
    return [
        *(saved(scene(mode), "PNG", exif=tag) for mode in ("RGB", "RGBA", "P", "1")),
        saved(scene("L"), "PNG", transparency=5),
        *(saved(scene(mode), "JPEG", exif=tag) for mode in ("RGB", "L", "CMYK")),
        saved(scene(), "JPEG", progressive=True),
        *(saved(scene(mode), "WEBP", exif=tag) for mode in ("RGB", "RGBA")),
        saved(scene(), "WEBP", lossless=True),
        *(saved(scene(mode), "TIFF") for mode in ("RGB", "L", "CMYK")),
        saved(scene("RGBA"), "TIFF", compression="tiff_lzw"),
        tiff((7, 5), {258: (3, [8] * 3), 262: (3, [2]), 277: (3, [3])}, bytes(105), big=True),
        *(saved(scene(mode), "AVIF", exif=tag) for mode in ("RGB", "RGBA")),
        *(saved(scene(mode), "JPEG2000") for mode in ("RGB", "L")),
        saved(scene(), "JPEG2000", no_jp2=True),
        *(saved(scene(mode), "BMP") for mode in ("RGB", "P")),
        bmp((4, 2), 16, bytes(16), compression=3, masks=(0xF800, 0x7E0, 0x1F)),
        saved(scene("P"), "GIF", save_all=True, append_images=[scene("P").rotate(90)]),
        gif((6, 5), ((1, 2, 3, 2), [0, 1, 2, 1, 2, 3], 1)),
    ]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real file with some bytes changed, cut out, doubled, or cut off; most often near its beginning."""
    data = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(1, 4))):
        near = min(len(data), draw(st.sampled_from([64, 512, 1 << 20])))
        at = draw(st.integers(0, max(0, near - 1)))
        what = draw(st.integers(0, 5))
        if what == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif what == 1:
            data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f" + b"\xff" * 3, b"\0\0\0\1"]))
        elif what == 2:
            del data[at : at + draw(st.integers(1, 20))]
        elif what == 3:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif what == 4:
            data[at:at] = draw(st.binary(max_size=8))
        else:
            del data[at:]
    return bytes(data)


def header_or_error(data: bytes) -> None:
    sniff(data)
    try:
        header = read_header(data)
    except (InvalidImage, UnsupportedMedia) as error:
        assert error.message
    else:
        assert isinstance(header, Header)
        assert header.width > 0
        assert header.height > 0
        assert 1 <= header.orientation <= 8


@FUZZ
@given(st.binary(max_size=300))
@example(b"BM")
@example(b"\xff\xd8\xff\xc0\0\x02")
@example(b"RIFF\0\0\0\0WEBPVP8X\xff\xff\xff\xff")
@example(b"II+\0" + struct.pack("<HHQ", 8, 0, 2**64 - 1))
def test_the_header_of_random_bytes(data: bytes) -> None:
    header_or_error(data)


@FUZZ
@given(st.sampled_from(MAGICS), st.binary(max_size=300))
def test_the_header_of_random_bytes_behind_a_magic_number(magic: bytes, data: bytes) -> None:
    header_or_error(magic + data)


@settings(FUZZ, max_examples=1000)
@given(mutated())
def test_the_header_of_a_damaged_file(data: bytes) -> None:
    header_or_error(data)


@pytest.mark.parametrize("index", range(27))
def test_the_header_of_a_file_cut_anywhere(index: int) -> None:
    data = seeds()[index]
    whole = read_header(data)
    for end in range(len(data)):
        try:
            header = read_header(data[:end])
        except (InvalidImage, UnsupportedMedia):
            continue
        assert (header.format, header.width, header.height) == (whole.format, whole.width, whole.height)


@DECODES
@given(mutated())
def test_decoding_a_damaged_file(data: bytes) -> None:
    try:
        pixels = decode(data, max_pixels=1_000_000)
    except RequestError as error:
        assert isinstance(error, InvalidImage | UnsupportedMedia | TooLarge)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.flags.c_contiguous
