"""Decoding the awkward, broken and hostile pictures of the test data (VISIONPOOL_TESTDATA), file by file.

What Pillow accepts must look as Pillow shows it; what is refused is in a table, with the class of the error and why.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionpool.errors import InvalidImage, RequestError, TooLarge, UnsupportedMedia
from visionpool_server.imaging.decode import decode

from tests.picture_files import shown

IMAGES = Path(os.environ.get("VISIONPOOL_TESTDATA", "")) / "images"
FOLDERS = ("generated", "odd", "exif", "photos", "ocr")
PRESENT = "VISIONPOOL_TESTDATA" in os.environ and IMAGES.is_dir()

pytestmark = pytest.mark.skipif(not PRESENT, reason="VISIONPOOL_TESTDATA does not name a folder with images/")

REFUSED: dict[str, type[RequestError]] = {
    # Larger than the limit; all but the last are bombs. flat_81MP is a decent picture: the hint names the setting.
    "generated/bomb_20000x20000_rgb8.png": TooLarge,
    "generated/bomb_50000x50000_gray1.png": TooLarge,
    "generated/bomb_header_2147483647sq.png": TooLarge,
    "generated/bomb_sof_65500sq.jpg": TooLarge,
    "generated/bomb_sof_progressive_65500sq.jpg": TooLarge,
    "odd/bmp_b_reallybig.bmp": TooLarge,
    "odd/decompression_bomb.gif": TooLarge,
    "generated/flat_81MP.jpg": TooLarge,
    # Truncated, and Pillow says so too. ultrahdr.jpg ends right behind its SOS segment: Pillow's tests keep it for
    # its metadata. truncated_end_chunk.png has all its pixels, but so would a file cut a little earlier.
    "generated/empty.jpg": InvalidImage,
    "generated/trunc_1k.jpg": InvalidImage,
    "generated/trunc_2bytes.jpg": InvalidImage,
    "generated/trunc_50pct.jpg": InvalidImage,
    "generated/trunc_50pct.png": InvalidImage,
    "odd/bmp_b_shortfile.bmp": InvalidImage,
    "odd/truncated_end_chunk.png": InvalidImage,
    "odd/truncated_image.png": InvalidImage,
    "odd/truncated_jpeg.jpg": InvalidImage,
    "odd/ultrahdr.jpg": InvalidImage,
    "odd/oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": InvalidImage,
    # Corrupt, for Pillow too, except badwidth: Pillow reads its -127 as 4294967169 and calls it a bomb.
    "generated/corrupt_crc.png": InvalidImage,
    "generated/zero_dim.png": InvalidImage,
    "odd/bmp_b_badbitcount.bmp": InvalidImage,
    "odd/bmp_b_badwidth.bmp": InvalidImage,
    "odd/broken.png": InvalidImage,
    "odd/broken_data_stream.png": InvalidImage,
    "odd/zero_width.gif": InvalidImage,
    # No pictures.
    "generated/html_as.png": UnsupportedMedia,
    "generated/svg_as.png": UnsupportedMedia,
    "generated/text_as.jpg": UnsupportedMedia,
    "ocr/two_dim_image.npy": UnsupportedMedia,
    # Pillow shows floats clipped to 0..255, which is garbage for most of them; the sender has to choose a range.
    "odd/10ct_32bit_128.tiff": UnsupportedMedia,
    # Pillow reads it, this OpenCV does not.
    "odd/old-style-jpeg-compression.tif": UnsupportedMedia,
}

ACCEPTED_HERE_ALONE = {
    # A 1x1 picture with 64 MB in a compressed text, and one with a broken colour profile: neither is the picture.
    "odd/png_decompression_dos.png": (1, 1, 3),
    "odd/unknown_compression_method.png": (57, 57, 3),
}

WITHIN = {  # mean difference to Pillow, where it is more than rounding
    "odd/hopper.Lab.tif": 14.0,  # libtiff's own conversion of CIE L*a*b*, darker than a colour management's
}

C_STDERR = re.compile(r"(Corrupt JPEG data: \d+ extraneous bytes before marker 0x..|"
                      r"libpng warning: IDAT: Extra compressed data)\n")  # fmt: skip


def names() -> list[str]:
    if not PRESENT:
        return ["(no test data)"]
    return [f"{folder}/{path.name}" for folder in FOLDERS for path in sorted((IMAGES / folder).iterdir())]


@pytest.mark.parametrize("name", names())
def test_a_file_of_the_corpus(name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = (IMAGES / name).read_bytes()
    if name in REFUSED:
        if REFUSED[name] is TooLarge:
            monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the picture was decoded"))
        check_refusal(data, REFUSED[name])
        assert capfd.readouterr() == ("", "")
        return
    ours = decode(data)
    assert capfd.readouterr().out == ""
    if name in ACCEPTED_HERE_ALONE:
        assert ours.shape == ACCEPTED_HERE_ALONE[name]
        return
    reference = shown(data, white=4095 if "12bit" in name else 65535)
    assert ours.shape == reference.shape
    difference = np.abs(ours.astype(int) - reference)
    assert difference.mean() <= WITHIN.get(name, 1.0)
    assert difference.max() <= (2 if name not in WITHIN else 255)


def check_refusal(data: bytes, kind: type[RequestError]) -> None:
    with pytest.raises(RequestError) as caught:
        decode(data)
    assert type(caught.value) is kind
    assert caught.value.hint
    assert not re.search(r"opencv|cv::|\.cpp|grfmt|libpng|assert", str(caught.value), re.I)


@pytest.mark.parametrize("name", names())
def test_nothing_but_known_lines_of_c_libraries_reaches_stderr(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        decode((IMAGES / name).read_bytes(), max_pixels=10_000_000)
    except RequestError:
        assert capfd.readouterr().err == ""
    else:
        assert C_STDERR.sub("", capfd.readouterr().err) == ""


@pytest.mark.parametrize("base", ["exif/Landscape", "generated/bus_exif", "odd/hopper_orientation"])
def test_all_orientations_of_one_scene_are_upright(base: str) -> None:
    paths = sorted((IMAGES / base).parent.glob(Path(base).name + "_[1-8].jpg"))
    pictures = [cv2.resize(decode(path.read_bytes()), (64, 64), interpolation=cv2.INTER_AREA) for path in paths]
    assert len(pictures) >= 7
    for picture in pictures[1:]:
        assert np.abs(picture.astype(int) - pictures[0]).mean() < 6
