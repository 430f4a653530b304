"""Which JPEGs go to a GPU: ordinary whole ones, and never one that the CPU would refuse."""

from __future__ import annotations

import io
import random
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from visionpool_server.imaging.decode import decode
from visionpool_server.imaging.formats.plain_jpeg import plain_end

from tests.picture_files import saved, scene

BASES: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "optimised": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "a profile and a comment": {"icc_profile": b"\xff\xd8\xff\xd9" * 40, "comment": b"\xff\xda"},
}


def jpeg(name: str, size: tuple[int, int] = (70, 45)) -> bytes:
    return saved(scene().resize(size), "JPEG", **BASES[name])


@pytest.mark.parametrize("name", BASES)
def test_whole_ordinary_files_are_plain_up_to_their_end(name: str) -> None:
    data = jpeg(name)
    assert plain_end(memoryview(data)) == len(data)
    assert plain_end(memoryview(data + data + b"\0\xff")) == len(data)


@pytest.mark.parametrize("sampling", ["411", "420", "422", "440", "444"])
@pytest.mark.parametrize("progressive", [0, 1])
def test_opencvs_own_are_plain(sampling: str, progressive: int) -> None:
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    _, data = cv2.imencode(".jpg", np.random.default_rng(1).integers(0, 256, (33, 51, 3), np.uint8), options)
    assert plain_end(memoryview(data.tobytes())) == data.size


def test_a_missing_byte_is_not_plain() -> None:
    for name in BASES:
        data = jpeg(name)
        assert all(plain_end(memoryview(data[:end])) is None for end in range(len(data)))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_not_plain(mode: str) -> None:
    assert plain_end(memoryview(saved(scene(mode), "JPEG"))) is None


def test_a_jpeg_of_rgb_is_not_plain() -> None:
    file = io.BytesIO()
    scene().save(file, "JPEG", keep_rgb=True)
    assert plain_end(memoryview(file.getvalue())) is None


def test_arithmetic_coding_and_twelve_bits_are_not_plain() -> None:
    data = jpeg("4:2:0")
    frame = data.index(b"\xff\xc0")
    for marker in range(0xC0, 0xD0):
        other = data[:frame] + bytes((0xFF, marker)) + data[frame + 2 :]
        assert (plain_end(memoryview(other)) is None) == (marker != 0xC0), hex(marker)
    assert plain_end(memoryview(data[: frame + 4] + b"\x0c" + data[frame + 5 :])) is None


def test_a_progressive_file_that_ends_between_its_scans_is_not_plain() -> None:
    data = jpeg("progressive")
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        assert plain_end(memoryview(data[:at] + b"\xff\xd9")) is None


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_plain_is_never_refused_by_the_cpu(name: str, seed: int) -> None:
    """So that a GPU cannot answer for a damaged picture where the CPU would have said no."""
    randomness = random.Random(f"{name} {seed}")
    whole = jpeg(name, (33, 21))
    plain = 0
    for _ in range(1500):
        data = _damaged(whole, randomness)
        if (end := plain_end(memoryview(data))) is not None:
            plain += 1
            pixels = decode(data)
            assert np.array_equal(pixels, decode(data[:end]))
    assert plain > 100  # of damage within the scans, and in segments that say nothing of the pixels


def _damaged(whole: bytes, randomness: random.Random) -> bytes:
    data = bytearray(whole)
    head = data.index(b"\xff\xda") + 14
    for _ in range(randomness.randint(1, 3)):
        at = randomness.randrange(2, randomness.choice([head, len(data)]))
        match randomness.randrange(4):
            case 0:
                data[at] = randomness.randrange(256)
            case 1:
                data[at] ^= 1 << randomness.randrange(8)
            case 2:
                del data[at : at + randomness.randint(1, 40)]
            case _:
                data[at:at] = data[at : at + randomness.randint(1, 40)]
    return bytes(data)


def test_the_end_is_found_in_megabytes_at_once() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (600, 800, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95, progressive=True)
    assert plain_end(memoryview(file.getvalue())) == len(file.getvalue())
