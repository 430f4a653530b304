"""What is not decoded: damage, bombs, other media and kinds of pictures that are not read; the error of each."""

from __future__ import annotations

import re
import struct
import tracemalloc

import cv2
import numpy as np
import pytest
from visionpool.errors import InvalidImage, RequestError, TooLarge, UnsupportedMedia
from visionpool_server.imaging import decode as module
from visionpool_server.imaging.decode import FORMATS, decode
from visionpool_server.imaging.formats.av1 import largest_frame
from visionpool_server.imaging.headers import read_header

from tests.picture_files import (
    BYTES_8,
    EVERY,
    HEIGHT,
    WIDTH,
    bmp,
    gif,
    grey_tiff,
    jpeg_2000,
    jpeg_header,
    plain,
    png,
    png_chunk,
    riff,
    saved,
    scene,
    shown,
    tiff,
)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(("name", "kind", "mode"), EVERY)
def test_a_truncated_picture_is_an_error(name: str, kind: str, mode: str, share: float) -> None:
    data = saved(scene(mode).resize((160, 120)), kind)
    with pytest.raises(RequestError) as caught:
        decode(data[: max(1, int(len(data) * share))])
    assert isinstance(caught.value, InvalidImage) or share == 0.001  # nobody knows a format by one byte


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {}])
def test_a_jpeg_is_refused_at_the_byte_where_pillow_refuses_it(options: dict[str, int]) -> None:
    data = saved(scene(), "JPEG", **options)
    for end in range(len(data) - 120, len(data) + 1):
        try:
            reference = shown(data[:end])
        except OSError:
            with pytest.raises(InvalidImage, match="truncated"):
                decode(data[:end])
        else:
            assert np.array_equal(decode(data[:end]), reference)


def test_damage_in_a_png_is_found_before_libpng_talks_about_it(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(saved(scene(), "PNG"))
    data[data.index(b"IDAT") + 30] ^= 0xFF
    with pytest.raises(InvalidImage, match="checksum of a chunk IDAT"):
        decode(data)
    with pytest.raises(InvalidImage, match="truncated"):
        decode(saved(scene(), "PNG")[:-12])
    assert capfd.readouterr() == ("", "")


def test_a_png_does_not_unpack_what_is_not_the_picture(capfd: pytest.CaptureFixture[str]) -> None:
    bomb = b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib_bomb(1 << 26)
    extra = (png_chunk(b"iTXt", bomb), png_chunk(b"iCCP", b"x\0\0" + zlib_bomb(1 << 26)))
    data = png((1, 1), 8, 0, b"\0\x07", *extra)
    tracemalloc.start()
    try:
        assert decode(data).tolist() == [[[7, 7, 7]]]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert capfd.readouterr().err == ""


def zlib_bomb(size: int) -> bytes:
    import zlib

    return zlib.compress(bytes(size), 9)


BOMBS = {
    "png": png((20000, 20000), 8, 2, b""),
    "png of 2^31": png((2**31 - 1, 2**31 - 1), 8, 6, b""),
    "jpeg": jpeg_header(65500, 65500),
    "progressive jpeg": jpeg_header(65500, 65500, frame=0xC2),
    "bmp": bmp((3_000_000, 2_000_000), 24, b""),
    "bmp upside down": bmp((2**31 - 1, -(2**31)), 24, b""),
    "gif": gif((65535, 65535), ((0, 0, 1, 1), [0], None)),
    "gif frame": gif((1, 1), ((0, 0, 65535, 65535), [0], None)),
    "gif frame far away": gif((1, 1), ((65535, 65535, 1, 1), [0], None)),
    "tiff": tiff((100_000, 100_000), BYTES_8, b""),
    "bigtiff": tiff((2**32 - 1, 2**32 - 1), BYTES_8, b"", big=True),
    "tiff tile": tiff((7, 5), {**BYTES_8, 322: (4, [65536]), 323: (4, [65536])}, b""),
    "webp canvas": riff((b"VP8X", b"\0\0\0\0" + b"\xff\x3f\0" * 2)),
    "webp frame": riff((b"VP8X", bytes(10)), (b"VP8 ", b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f")),
    "webp lossless": riff((b"VP8L", b"\x2f\xff\xff\xff\x0f")),
    "jpeg 2000": saved(scene(), "JPEG2000", no_jp2=True).replace(
        struct.pack(">II", WIDTH, HEIGHT), struct.pack(">II", 2**31, 2**31)
    ),
    "avif": saved(scene(), "AVIF").replace(struct.pack(">II", WIDTH, HEIGHT), struct.pack(">II", 16384, 16384)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_without_decoding_anything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        pytest.fail("the picture was decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=r"\d+x\d+") as caught:
            decode(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "50000000" in caught.value.message
    assert "--max-pixels" in (caught.value.hint or "")


def test_the_limit_is_the_last_size_that_passes() -> None:
    data = saved(scene(), "PNG")
    assert decode(data, max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(TooLarge, match=f"{WIDTH}x{HEIGHT} .* {WIDTH * HEIGHT - 1} "):
        decode(data, max_pixels=WIDTH * HEIGHT - 1)


def test_a_side_longer_than_opencv_takes_is_too_large() -> None:
    with pytest.raises(TooLarge, match="the limit of a side"):
        decode(png((1 << 21, 1), 8, 0, b""))


def test_a_progressive_jpeg_of_a_thousand_scans_is_refused() -> None:
    scans = b"\xff\xda\0\x08\x01\x01\0\0\0\0" * 1000
    with pytest.raises(InvalidImage, match="scans"):
        decode(jpeg_header(64, 64, frame=0xC2) + scans)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xfe\0\x02" * 200_000 + jpeg_header(8, 8)[2:],
        b"\x89PNG\r\n\x1a\n" + png((1, 1), 8, 0, b"")[8:33] + png_chunk(b"teSt", b"") * 200_000,
        gif((1, 1))[:-1] + b"!\xfe" + b"\x01x" * 400_000 + b"\0",
        gif((1, 1))[:-1] + b"!\xfe\x01x\0" * 200_000 + b"\0",
        riff(*[(b"ANMF", b"")] * 20_000),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535),
        b"\0\0\0\x14ftypavif\0\0\0\0avif" + b"\0\0\0\x08free" * 10_000,
        b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 10_000,
        b"\xff\xd8" + b"\xff" * 4_000_000,
    ],
    ids=["jpeg", "png", "gif blocks", "gif extensions", "webp", "tiff", "avif", "jp2", "jpeg fill bytes"],
)
def test_a_walk_that_does_not_end_is_given_up(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        png((0, 5), 8, 2, b""),
        png((5, 0), 8, 2, b""),
        png((5, 5), 7, 2, b""),
        jpeg_header(0, 10),
        jpeg_header(10, 0),
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8",
        gif((0, 4), ((0, 0, 1, 1), [0], None)),
        gif((4, 4)),
        bmp((-4, 4), 24, bytes(64)),
        bmp((4, 4), 30000, bytes(64)),
        tiff((0, 4), BYTES_8, b""),
        tiff((4, 4), {258: (3, [8])}, bytes(16)),
        b"II*\0\xff\xff\xff\xff",
        riff((b"VP8X", b"\0\0\0\0")),
        riff((b"JUNK", b"")),
        b"\0\0\0\x0cjP  \r\n\x87\n",
    ],
)
def test_a_broken_picture_is_invalid(data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode(data)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"<?xml version='1.0'?><a/>", "XML"),
        (b'{"error": "no such file"}', "JSON"),
        (b"hello, world", "text"),
        ("Grüße\n".encode(), "text"),
        (b"data:image/png;base64,iVBORw0KGgo", "a data URL"),
        (b"/9j/4AAQSkZJRgABAQ", "base64 text"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "a.* video"),
        (b"\xff\x0a\0\0", "a JPEG XL picture"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"BMW is a car, this is text", "text"),
        (b"\x01\x02\x03\x04", "binary data that begin with 01 02 03 04"),
        (b"\0" * 100, "binary data"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, what: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"looks like {what}") as caught:
        decode(data)
    assert all(name in (caught.value.hint or "") for name in FORMATS)


def grey_alpha_tiff() -> bytes:
    return tiff((7, 5), {258: (3, [8, 8]), 262: (3, [1]), 277: (3, [2]), 338: (3, [2])}, plain((7, 5), 2))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg_header(8, 8, precision=12), "12-bit JPEG"),
        (jpeg_header(8, 8, frame=0xC5), "hierarchical or lossless JPEG"),
        (grey_alpha_tiff(), "2 samples a pixel"),
        (saved(scene("L").convert("F"), "TIFF"), "32-bit signed or floating point"),
        (saved(scene("LA"), "JPEG2000"), "2 channels"),
        (jpeg_2000("L", 4), "4 bits"),
        (grey_tiff(4, 1, bytes(20)), "4 bits a sample"),
        (tiff((4, 4), {258: (3, [16] * 4), 262: (3, [5]), 277: (3, [4])}, bytes(128)), "16-bit CMYK"),
        (tiff((4, 4), {**BYTES_8, 259: (3, [6])}, bytes(48)), "old-style JPEG"),
        (bmp((4, 4), 32, bytes(64), compression=3, masks=(0x3FF00000, 0xFFC00, 0x3FF)), "bit masks"),
        (bmp((4, 4), 0, bytes(64), compression=4), "compression 4"),
    ],
)
def test_a_kind_of_picture_that_is_not_read_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedMedia, match=reason) as caught:
        decode(data)
    assert "save it as" in (caught.value.hint or "")


def test_a_format_that_this_opencv_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  Media I/O:\n    AVIF:                        NO\n")
    module._codec_missing.cache_clear()
    try:
        with pytest.raises(UnsupportedMedia, match="AVIF is not read"):
            decode(saved(scene(), "AVIF"))
        with pytest.raises(InvalidImage):
            decode(saved(scene(), "WEBP"))
    finally:
        module._codec_missing.cache_clear()


def test_a_header_that_lies_about_the_size_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(InvalidImage, match="disagree"):
        decode(saved(scene(), "JPEG"))


def test_errors_of_opencv_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise cv2.error("grfmt_png.cpp:42: error: (-215:Assertion failed)")

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(InvalidImage) as caught:
        decode(saved(scene(), "JPEG"))
    assert not re.search(r"cpp|assert|-215", str(caught.value), re.I)
    assert caught.value.__cause__ is None


def test_an_avif_whose_bitstream_is_larger_than_its_header_is_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """libavif would decode the large frame, scale it down to the size in the header, and say nothing."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the picture was decoded"))
    data = saved(scene().resize((512, 256)), "AVIF").replace(struct.pack(">II", 512, 256), struct.pack(">II", 8, 8))
    assert (read_header(data).width, read_header(data).largest) == (8, 512 * 256)
    with pytest.raises(TooLarge, match="pieces of up to 131072"):
        decode(data, max_pixels=100_000)


def sequence_header(*fields: tuple[int, int]) -> bytes:
    """An AV1 sequence header of (value, number of bits) fields, as an open bitstream unit with its size."""
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    payload = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return b"\x12\0" + b"\x0a" + bytes([len(payload)]) + payload


SIZE = ((9, 4), (8, 4), (999, 10), (299, 9))  # 1000 x 300
POINT = ((0, 12), (8, 5), (0, 1))  # an operating point of a level above 7, which has a tier


@pytest.mark.parametrize(
    ("fields", "pixels"),
    [
        (((0, 3), (1, 1), (1, 1), (3, 5), *SIZE), 300_000),
        (((0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 5), *POINT, *SIZE), 300_000),
        (((0, 3), (0, 1), (0, 1), (1, 1), (1, 32), (25, 32), (1, 1), (1, 1), (1, 1), (9, 5), (1, 32), (0, 10),
          (1, 1), (1, 5), *POINT, (1, 1), (0, 21), (1, 1), (3, 4), *POINT, (0, 1), (0, 1), *SIZE), 300_000),
        (((0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 5), *POINT, (15, 4), (15, 4), (7, 16), (7, 16)), 1 << 32),
        (((0, 3), (1, 1), (1, 1), (3, 5), (15, 4), (15, 4), (7, 16), (7, 16)), 64),
    ],
    ids=["still", "video", "video with timing and two points", "room for an override", "still cannot override"],
)  # fmt: skip
def test_the_frame_size_of_av1(fields: tuple[tuple[int, int], ...], pixels: int) -> None:
    assert largest_frame(sequence_header(*fields)) == pixels
    assert largest_frame(sequence_header(*fields) * 2 + b"\x32\x01\0") == pixels


def test_a_jpeg_2000_of_countless_tiles_is_refused() -> None:
    data = bytearray(saved(scene(), "JPEG2000", no_jp2=True))
    data[24:32] = struct.pack(">II", 2**31, 1)
    data[8:16] = struct.pack(">II", 60, 60_000)
    with pytest.raises(UnsupportedMedia, match="60000 tiles"):
        decode(data)
