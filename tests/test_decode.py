"""Decoding pictures made here: every format, mode and orientation as Pillow shows it; damage, bombs and messages."""

from __future__ import annotations

import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from visionpool_server.imaging.decode import FORMATS, decode, sniff
from visionpool_server.imaging.formats import gif as gif_format
from visionpool_server.imaging.formats import png as png_format
from visionpool_server.imaging.headers import read_header

from tests.picture_files import (
    BYTES_8,
    EVERY,
    GIF_PALETTE,
    HEIGHT,
    WIDTH,
    WRITABLE,
    Fields,
    bmp,
    exif,
    gif,
    grey_tiff,
    jpeg_2000,
    plain,
    png,
    png_chunk,
    saved,
    scene,
    shown,
    tiff,
)


def same(data: bytes, *, within: int = 1, white: int = 65535) -> None:
    """`decode` gives what Pillow shows, `within` so many steps of 255."""
    ours, reference = decode(data), shown(data, white)
    assert ours.shape == reference.shape
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert int(np.abs(ours.astype(int) - reference).max()) <= within


def test_every_format_that_is_promised_is_written_by_these_tests() -> None:
    assert set(FORMATS) == set(WRITABLE)


@pytest.mark.parametrize(("name", "kind", "mode"), EVERY)
def test_a_picture_looks_as_pillow_shows_it(name: str, kind: str, mode: str) -> None:
    data = saved(scene(mode), kind)
    assert sniff(data) == read_header(data).format == name
    same(data, within=2 if mode == "CMYK" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    same(saved(scene(), kind, exif=exif(orientation)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
def test_tiff_orientation_is_applied_once(mode: str, orientation: int) -> None:
    same(saved(scene(mode), "TIFF", tiffinfo={274: orientation}))


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_is_applied_to_alpha_as_well(orientation: int) -> None:
    for kind in ("PNG", "WEBP", "AVIF"):
        same(saved(scene("RGBA"), kind, exif=exif(orientation)))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_orientation_that_only_xmp_knows_is_applied(kind: str) -> None:
    data = saved(scene(), kind, **({"tiffinfo": {700: XMP}} if kind == "TIFF" else {"xmp": XMP}))
    same(data)
    assert decode(data).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_orientation_in_the_texts_of_a_png_is_applied(packed: bool) -> None:
    from PIL import PngImagePlugin

    hexadecimal = exif(8).tobytes().hex()
    for keyword, text in (
        ("XML:com.adobe.xmp", XMP.decode()),
        ("Raw profile type exif", f"\nexif\n {len(hexadecimal) // 2}\n{hexadecimal}\n"),
    ):
        info = PngImagePlugin.PngInfo()
        (info.add_itxt if keyword.startswith("XML") else info.add_text)(keyword, text, zip=packed)
        data = saved(scene(), "PNG", pnginfo=info)
        same(data)
        assert decode(data).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(value: int) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        same(saved(scene(), kind, exif=exif(value)))


@pytest.mark.parametrize("block", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff", b"rubbish"])
def test_broken_exif_is_ignored(block: bytes) -> None:
    segment = b"Exif\0\0" + block
    plain_jpeg = saved(scene(), "JPEG")
    app1 = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    assert np.array_equal(decode(plain_jpeg[:2] + app1 + plain_jpeg[2:]), decode(plain_jpeg))


def test_the_common_jpeg_costs_one_call_of_opencv_and_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls = saved(scene(), "JPEG"), []
    real = cv2.imdecode

    def spy(buffer: np.ndarray[tuple[int], np.dtype[np.uint8]], flags: int) -> object:
        calls.append((flags, buffer.ctypes.data))
        return real(buffer, flags)

    monkeypatch.setattr(cv2, "imdecode", spy)
    decode(data)
    address = np.frombuffer(data, np.uint8).ctypes.data
    assert calls == [(cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, address)]


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_kinds_of_jpeg(options: dict[str, int]) -> None:
    same(saved(scene(), "JPEG", **options))


def test_bytes_behind_a_picture_do_not_matter() -> None:
    for name, (kind, _) in WRITABLE.items():
        data = saved(scene(), kind)
        assert np.array_equal(decode(data + b"PK\x03\x04" + bytes(99)), decode(data)), name


def test_junk_between_the_segments_of_a_jpeg_is_passed_over_as_libjpeg_does() -> None:
    data = saved(scene(), "JPEG")
    at = data.index(b"\xff\xdb")
    for junk in (b"\0\0\0", b"\xff\xff\xff", b"\xff\0\xff\0"):
        assert np.array_equal(decode(data[:at] + junk + data[at:]), decode(data))


@pytest.mark.parametrize("wrap", [bytearray, memoryview, lambda data: memoryview(b"x" + data)[1:]])
def test_any_buffer_is_read(wrap: Callable[[bytes], memoryview]) -> None:
    for kind, _ in WRITABLE.values():
        data = saved(scene(), kind)
        assert np.array_equal(decode(wrap(data)), decode(data))
    spread = memoryview(bytes(byte for value in data for byte in (value, 0)))[::2]
    assert np.array_equal(decode(spread), decode(data))


# --- transparency, bit depths and rare kinds --------------------------------------------------------------------


def test_transparent_is_white_whatever_the_colour_beneath() -> None:
    picture = scene("RGBA")
    picture.putalpha(0)
    for kind in ("PNG", "WEBP", "TIFF", "JPEG2000"):
        assert decode(saved(picture, kind)).min() == 255, kind
    assert decode(saved(picture, "AVIF", quality=100)).min() == 255


@pytest.mark.parametrize("options", [{"transparency": 3}, {"transparency": bytes(range(0, 256, 16))}])
def test_transparent_entries_of_a_palette(options: dict[str, int]) -> None:
    same(saved(scene("P"), "PNG", **options))
    if isinstance(options["transparency"], int):
        same(saved(scene("P"), "GIF", **options))


@pytest.mark.parametrize(("mode", "key"), [("RGB", (36, 20, 28)), ("L", 45), ("1", 0), ("1", 255), ("I;16", 1811)])
def test_a_transparent_colour_of_a_png_without_alpha(mode: str, key: object) -> None:
    data = saved(scene(mode), "PNG", transparency=key)
    same(data)
    assert key == 255 or not np.array_equal(decode(data), decode(saved(scene(mode), "PNG")))


@pytest.mark.parametrize(("depth", "row"), [(1, b"\xa5"), (2, b"\x1b"), (4, b"\x1f\x01")])
def test_a_transparent_grey_of_a_few_bits(depth: int, row: bytes) -> None:
    width = 8 * len(row) // depth
    ours = decode(png((width, 1), depth, 0, b"\0" + row, png_chunk(b"tRNS", b"\0\x01")))[0, :, 0]
    bits = "".join(f"{byte:08b}" for byte in row)
    grey = [int(bits[i : i + depth], 2) for i in range(0, len(bits), depth)]
    assert ours.tolist() == [255 if value == 1 else value * 255 // (2**depth - 1) for value in grey]


def test_16_bits_with_alpha_are_within_one_of_the_truth() -> None:
    samples = np.array([[[0x1234, 0x8000], [0xFF00, 0xFFFF], [0, 0x00FF]]])
    rows = b"\0" + samples.astype(">u2").tobytes()
    grey, alpha = samples[..., 0] / 65535, samples[..., 1] / 65535
    truth = (grey * alpha + 1 - alpha) * 255
    assert np.abs(decode(png((3, 1), 16, 4, rows))[..., 0] - truth).max() <= 1


def test_only_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [scene("P").rotate(turn) for turn in range(0, 50, 10)]
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        data = saved(frames[0].convert("RGB"), kind, save_all=True, append_images=frames[1:], duration=50)
        same(data)
    animation = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert len(gif_format.first_frame(memoryview(animation))) < len(animation) / 2
    animation = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50)
    assert b"fdAT" not in png_format.first_frame(memoryview(animation))
    same(saved(scene(), "TIFF", save_all=True, append_images=[scene("L").resize((5, 5))]))


RED, GREEN, BLUE, DARK = np.frombuffer(GIF_PALETTE, np.uint8).reshape(4, 3).tolist()


@pytest.mark.parametrize("transparent", [None, 1])
def test_a_gif_frame_smaller_than_its_screen_lies_on_white(transparent: int | None) -> None:
    """Pillow fills the rest with colour 0 of the palette, OpenCV with the background; browsers leave it empty."""
    ours = decode(gif((6, 5), ((1, 2, 3, 2), [0, 1, 2, 1, 2, 3], transparent), background=2))
    green = [255, 255, 255] if transparent else GREEN
    assert ours[2:4, 1:4].tolist() == [[RED, green, BLUE], [green, BLUE, DARK]]
    ours[2:4, 1:4] = 255
    assert ours.min() == 255


def test_a_gif_frame_larger_than_its_screen_grows_the_screen() -> None:
    same(gif((2, 2), ((0, 0, 3, 2), [0, 1, 2, 1, 2, 3], None)))
    ours = decode(gif((2, 2), ((1, 0, 3, 2), [0, 1, 2, 1, 2, 3], None)))
    assert ours.shape == (2, 4, 3)
    assert ours[:, 1:].tolist() == [[RED, GREEN, BLUE], [GREEN, BLUE, DARK]]


def test_a_gif_without_its_trailer_is_read() -> None:
    data = saved(scene("P"), "GIF")
    for missing in (1, 2):  # the trailer; the trailer and the end of the chain of blocks
        assert np.array_equal(decode(data[:-missing]), decode(data))


FULL = (0xFF0000, 0xFF00, 0xFF)
BMPS = {
    "os2 24 bits": bmp((7, 5), 24, plain((22, 5), 1) + bytes(10), header=12),
    "top down": bmp((7, -5), 24, plain((24, 5), 1)),
    "555": bmp((7, 5), 16, plain((8, 5), 1, kind="H")),
    "565": bmp((7, 5), 16, plain((8, 5), 1, kind="H"), compression=3, masks=(0xF800, 0x7E0, 0x1F)),
    "32 bits, the fourth byte unused": bmp((7, 5), 32, plain((7, 5), 4)),
    "32 bits, masks": bmp((7, 5), 32, plain((7, 5), 4), compression=3, masks=FULL),
    "alpha": bmp((7, 5), 32, plain((7, 5), 4), header=108, compression=3, masks=(*FULL, 0xFF000000)),
    "alpha first": bmp((7, 5), 32, plain((7, 5), 4), header=108, compression=3,
                       masks=(0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "no alpha": bmp((7, 5), 32, plain((7, 5), 4), header=108, compression=3, masks=(*FULL, 0)),
    "rle8": bmp((4, 2), 8, bytes([4, 7, 0, 0, 2, 5, 2, 6, 0, 1]), compression=1, palette=plain((4, 256), 1)),
    "rle4": bmp((4, 2), 4, bytes([4, 0x12, 0, 0, 4, 0x34, 0, 1]), compression=2, palette=plain((4, 16), 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", BMPS)
def test_kinds_of_bmp(name: str) -> None:
    same(BMPS[name])


def rgba_tiff(extra: int | None, kind: str) -> bytes:
    pixels = np.frombuffer(plain((7, 5), 4, kind=kind), f"<{'u1' if kind == 'B' else 'u2'}").reshape(5, 7, 4).copy()
    if extra == 1:  # colours multiplied by alpha
        white = np.iinfo(pixels.dtype).max
        pixels[..., :3] = pixels[..., :3].astype(np.int64) * pixels[..., 3:] // white
    fields: Fields = {258: (3, [8 if kind == "B" else 16] * 4), 262: (3, [2]), 277: (3, [4])}
    return tiff((7, 5), fields if extra is None else fields | {338: (3, [extra])}, pixels.tobytes())


@pytest.mark.parametrize("kind", ["B", "H"])
@pytest.mark.parametrize("extra", [None, 0, 1, 2])
def test_the_fourth_sample_of_a_tiff_is_what_it_says_it_is(extra: int | None, kind: str) -> None:
    same(rgba_tiff(extra, kind), within=2)  # Pillow divides by alpha and multiplies again


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_compressions_of_tiff(mode: str, compression: str) -> None:
    same(saved(scene(mode), "TIFF", compression=compression))


@pytest.mark.parametrize(("bits", "samples"), [(1, plain((1, 5), 1)), (8, plain((8, 5), 1))])
def test_a_tiff_whose_zero_is_white(bits: int, samples: bytes) -> None:
    data = grey_tiff(bits, 0, samples)
    same(data)
    assert np.array_equal(decode(data), 255 - decode(grey_tiff(bits, 1, samples)))


@pytest.mark.parametrize(("bits", "samples"), [(16, plain((8, 5), 1, kind="H")), (12, plain((12, 5), 1))])
def test_a_tiff_of_many_bits_whose_zero_is_white(bits: int, samples: bytes) -> None:
    """Pillow 13 shows it as a negative, and 12 bits too dark."""
    data = grey_tiff(bits, 1, samples)
    same(data, white=(1 << bits) - 1)
    assert np.abs(decode(grey_tiff(bits, 0, samples)).astype(int) - (255 - decode(data).astype(int))).max() <= 1


@pytest.mark.parametrize("big", [False, True])
def test_tiff_and_bigtiff(big: bool) -> None:
    same(tiff((7, 5), BYTES_8, plain((7, 5), 3), big=big))


def test_a_bare_jpeg_2000_codestream() -> None:
    for mode in ("RGB", "L", "I;16", "RGBA"):
        same(saved(scene(mode), "JPEG2000", no_jp2=True))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_12_bit_jpeg_2000(mode: str) -> None:
    values = np.asarray(scene(mode).convert("RGB")).astype(int) - 128 + 2048
    assert np.abs(decode(jpeg_2000(mode, 12)) - values * 255 / 4095).max() <= 1


@pytest.mark.parametrize("depth", [10, 12])
def test_avif_of_more_than_8_bits_with_alpha(depth: int) -> None:
    bgra = np.asarray(scene("RGBA"))[..., [2, 1, 0, 3]].astype(np.uint16) * ((1 << depth) - 1) // 255
    options = [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 100]
    same(cv2.imencode(".avif", bgra.astype(np.uint16), options)[1].tobytes(), within=3)
