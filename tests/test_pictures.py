"""What callers hold becomes the right bytes: pixels survive exactly, and mistakes are named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from visionpool.errors import InvalidImage
from visionpool.pictures import load, media_type

JPEG = b"\xff\xd8\xff\xe0..."
sides = st.integers(1, 9)  # all paddings of a BMP's rows are in it


def decoded(data: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return np.asarray(picture, np.uint8)


def pixels(*channels: int) -> st.SearchStrategy[NDArray[np.uint8]]:
    return st.tuples(sides, sides).flatmap(lambda size: arrays(np.uint8, (*size, *channels)))


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO])
def test_encoded_bytes_pass_through(wrap: Any) -> None:
    assert load(wrap(JPEG)).data == JPEG
    assert load(wrap(JPEG)).media_type == "image/jpeg"


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    assert load(path) == load(str(path)) == load(JPEG)
    with path.open("rb") as file:
        assert load(file) == load(JPEG)
        assert not file.closed


def test_a_missing_file_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.jpg")


@settings(deadline=None)
@given(pixels(3))
def test_colour_arrays_keep_every_pixel(bgr: NDArray[np.uint8]) -> None:
    assert load(bgr).media_type == "image/bmp"
    assert np.array_equal(decoded(load(bgr).data), bgr)
    assert np.array_equal(decoded(load(bgr[..., ::-1], color="rgb").data), bgr)
    assert np.array_equal(decoded(load(bgr.swapaxes(0, 1)[::-1]).data), bgr.swapaxes(0, 1)[::-1])


@settings(deadline=None)
@given(pixels())
def test_grey_arrays_keep_every_pixel(grey: NDArray[np.uint8]) -> None:
    assert load(grey).media_type == "image/png"
    assert np.array_equal(decoded(load(grey).data), grey)
    assert load(grey[..., None]) == load(grey)


@settings(deadline=None)
@given(pixels(4))
def test_arrays_with_transparency_keep_every_pixel(bgra: NDArray[np.uint8]) -> None:
    assert np.array_equal(decoded(load(bgra).data), bgra)
    assert np.array_equal(decoded(load(bgra[..., [2, 1, 0, 3]], color="rgb").data), bgra)


def test_another_decoder_reads_the_same_pixels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)
    for array in (rgb, rgb[..., :3], rgb[..., 0]):
        with Image.open(io.BytesIO(load(array, color="rgb").data)) as image:
            assert np.array_equal(np.asarray(image), array)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_a_pillow_image_keeps_its_colours_whatever_color_says(mode: str) -> None:
    image = Image.new("RGB", (3, 2), (250, 10, 20)).convert(mode)
    expected = np.asarray(image.convert("RGB"))[..., ::-1]
    assert np.array_equal(decoded(load(image).data), expected)
    assert np.array_equal(decoded(load(image, color="rgb").data), expected)


def test_anything_with_the_array_interface_is_an_array() -> None:
    class Frame:
        __array_interface__ = np.full((2, 3, 3), 9, np.uint8).__array_interface__

    frame = Frame()
    frame.keep = source = np.full((2, 3, 3), 9, np.uint8)  # type: ignore[attr-defined]
    frame.__array_interface__ = source.__array_interface__
    assert np.array_equal(decoded(load(frame).data), source)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"", "no bytes"),
        (io.BytesIO(), "already read"),
        (io.StringIO("text"), "mode 'rb'"),
        (None, "a NoneType is not a picture .*pass a path"),
        ([1, 2], "a list is not a picture"),
        (np.zeros((4, 4, 3), np.float32), r"holds float32, not uint8 .*\* 255"),
        (np.zeros((4, 4), bool), "holds bool"),
        (np.zeros((3, 40, 50), np.uint8), r"\(3, 40, 50\) has its channels first \(.*transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "is a batch .*predict_many"),
        (np.zeros((5, 5, 2), np.uint8), "is not a picture"),
        (np.zeros(4, np.uint8), "is not a picture"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_what_cannot_be_a_picture_is_refused_with_what_to_do(picture: Any, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        load(picture)


def test_an_unknown_order_of_channels_is_refused() -> None:
    with pytest.raises(InvalidImage, match="'bgr' or 'rgb'"):
        load(np.zeros((2, 2, 3), np.uint8), color="gbr")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif", "jp2", "avif"])
def test_media_types_are_told_from_the_bytes(suffix: str) -> None:
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
    if kind not in Image.registered_extensions().values():
        pytest.skip(f"this Pillow writes no {kind}")
    Image.new("RGB", (8, 8)).save(buffer, kind)
    assert media_type(buffer.getvalue()) == {"jpg": "image/jpeg"}.get(suffix, f"image/{suffix}")


def test_unknown_bytes_have_no_media_type() -> None:
    assert media_type(b"%PDF-1.7") == "application/octet-stream"
