"""`decode: fast`: JPEGs much larger than the model needs are decoded smaller, and everything still lies where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from scenes import draw_scene
from visionpool.results import DetectionResult
from visionpool_server.app import DEMO_MODELS, offline
from visionpool_server.families import Options
from visionpool_server.imaging.decode import decode, decode_reduced
from visionpool_server.imaging.recipe import CenterCrop, Geometry, Letterbox, Recipe, Resize, ResizeShort, Step
from visionpool_server.models.loader import Defaults
from visionpool_server.service import Ask

from tests.picture_files import saved, scene


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


@pytest.mark.parametrize(
    ("step", "height", "width", "times"),
    [
        (Letterbox((320, 320)), 640, 480, 2),
        (Letterbox((320, 320)), 639, 480, 1),
        (Letterbox((320, 320)), 5000, 300, 8),
        (ResizeShort(256), 576, 768, 2),
        (ResizeShort(256), 511, 2000, 1),
        (Resize((100, 100)), 400, 800, 4),
        (Resize((100, 100), keep_ratio=True), 400, 800, 8),
        (CenterCrop((10, 10)), 1000, 1000, 1),
    ],
)
def test_no_pixel_is_lost_that_the_first_step_would_keep(step: Step, height: int, width: int, times: int) -> None:
    assert Recipe((step,)).reduction(height, width) == times


def test_a_recipe_without_steps_wants_the_whole_picture() -> None:
    assert Recipe().reduction(10_000, 10_000) == 1


@pytest.mark.parametrize("times", [2, 4, 8])
def test_a_reduced_jpeg_looks_like_the_whole_one(times: int) -> None:
    data = jpeg(cv2.resize(draw_scene(7).image, (640, 480)))
    reduced, geometry = decode_reduced(data, max_pixels=10**7, reduction=lambda *_: times)
    assert geometry == Geometry(480, 640, 1 / times, 1 / times)
    shrunk = cv2.resize(decode(data), (640 // times, 480 // times), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - reduced).mean() < 2


@pytest.mark.parametrize("times", [2, 4, 8])
def test_a_last_column_that_stands_for_less_than_a_whole_pixel_moves_nothing(times: int) -> None:
    """libjpeg rounds the size up: 100 columns are 13 eighths, not stretched over 12.5."""
    image = np.zeros((96, 97 + times // 2, 3), np.uint8)
    image[:, 64:] = 255
    reduced, geometry = decode_reduced(jpeg(image), max_pixels=10**6, reduction=lambda *_: times)
    edge = int(np.argmax(reduced[10, :, 0] > 127))
    assert (edge - geometry.offset_x) / geometry.scale_x == 64


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("times", [2, 4, 8])
def test_a_turned_picture_is_reduced_in_place(orientation: int, times: int) -> None:
    """Sides that are no multiples of `times`: what is left over lies at the left or the top of some turned pictures."""
    image = np.zeros((8 * 13 + 3, 8 * 21 + 1, 3), np.uint8)
    image[32:64, 48:96] = 255
    data = saved(Image.fromarray(image), "JPEG", exif=_exif(orientation), quality=95)
    whole, (reduced, geometry) = decode(data), decode_reduced(data, max_pixels=10**6, reduction=lambda *_: times)
    assert (geometry.height, geometry.width) == whole.shape[:2]
    assert edges(reduced, geometry) == pytest.approx(edges(whole, Geometry(*whole.shape[:2])), abs=0.01)


def edges(image: np.ndarray, geometry: Geometry) -> list[float]:
    """xmin, ymin, xmax, ymax of what is white, in pixels of the original."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    return [float(value) for value in geometry.to_original(box)[0]]


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_come_whole(kind: str) -> None:
    reduced, geometry = decode_reduced(saved(scene(), kind), max_pixels=10**7, reduction=lambda *_: 8)
    assert geometry == Geometry(*reduced.shape[:2])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The embedded detector's folder, told how to decode."""

    def folder(decoding: str) -> Path:
        path = tmp_path_factory.mktemp(decoding) / "shapes"
        path.mkdir()
        (path / "shapes.onnx").write_bytes((DEMO_MODELS / "shapes" / "shapes.onnx").read_bytes())
        (path / "model.yaml").write_text(yaml.safe_dump({"decode": decoding}))
        return path

    return folder


def test_boxes_are_pixels_of_the_original_picture_either_way(shapes: Callable[[str], Path]) -> None:
    drawn = draw_scene(12)
    large = cv2.resize(drawn.image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    found = {}
    for decoding in ("exact", "fast"):
        with offline([shapes(decoding)], Defaults(), max_pixels=10**8) as service:
            (model,) = service.models
            work = service.predict(model, jpeg(large), Ask(Options(score_threshold=0.6)))
            result = asyncio.run(work).result
            assert isinstance(result, DetectionResult)
            found[decoding] = result
    assert found["fast"].labels and sorted(found["fast"].labels) == sorted(found["exact"].labels)
    for label, box in zip(found["fast"].labels, found["fast"].boxes, strict=True):
        others = [b for one, b in zip(found["exact"].labels, found["exact"].boxes, strict=True) if one == label]
        assert min(np.abs(np.subtract(box, other)).max() for other in others) < 6  # of 960 to 1,920 pixels
