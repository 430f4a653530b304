"""Annotated pictures: what is drawn where, and that nothing a model answers makes drawing fail."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionpool.errors import InvalidOption
from visionpool.results import (
    RESULT_TYPES,
    ClassifyResult,
    DetectionResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    Mask,
    OCRResult,
    Result,
    SegmentationResult,
)
from visionpool_server.imaging.draw import draw, encode
from visionpool_server.imaging.lettering import Style, color_of, printable, readable_on, shortened, width_of
from visionpool_server.imaging.tags import put_tags, tag_for

Picture = NDArray[np.uint8]
GREY = (90, 90, 90)
HUMAN = tuple((10.0 + 5 * i, 20.0 + 7 * (i % 4)) for i in range(17))

DETECTION = DetectionResult(
    boxes=((30.0, 40.0, 90.0, 110.0), (60.0, 60.0, 150.0, 190.0)),
    scores=(0.9, 0.5),
    label_ids=(0, 7),
    labels=("person", "truck"),
)
EACH: list[Result] = [
    DETECTION,
    DetectionResult(rotated_boxes=((20.0, 20.0, 80.0, 30.0, 75.0, 60.0, 15.0, 50.0),), scores=(0.5,), label_ids=(3,)),
    ClassifyResult(label_ids=(4, 2), scores=(0.9, 0.004), labels=("wolf", "husky")),
    SegmentationResult(label_map=(0, 1, 1, 2), shape=(2, 2), labels=("background", "road", "sky")),
    OCRResult(boxes=((10, 10, 90, 14, 88, 40, 8, 36),), text=("EXIT",), rec_scores=(0.9,)),
    KeyPointDetectionResult(keypoints=HUMAN, scores=(0.9,) * 17, num_joints=17),
    FaceDetectionResult(boxes=((10.0, 10.0, 60.0, 70.0),), landmarks=((20.0, 30.0),), landmarks_per_face=1),
]
SIZES = [(1, 1), (1, 8000), (8000, 1), (16, 16), (3, 200), (100, 80), (480, 640)]
each = pytest.mark.parametrize("result", EACH, ids=lambda result: result.type)


def picture(height: int = 200, width: int = 200) -> Picture:
    return np.full((height, width, 3), GREY, np.uint8)


def changed(image: Picture) -> NDArray[np.bool_]:
    return np.asarray((image != GREY).any(axis=2))


@each
def test_a_result_is_drawn_into_a_copy(result: Result) -> None:
    original = picture()
    drawn = draw(original, result)
    assert drawn.shape == original.shape
    assert drawn.dtype == np.uint8
    assert not changed(original).any()
    assert changed(drawn).any()
    assert not np.shares_memory(drawn, original)


@pytest.mark.parametrize("kind", RESULT_TYPES.values(), ids=lambda kind: kind.type)
def test_an_empty_result_changes_nothing(kind: type[Result]) -> None:
    assert not changed(draw(picture(), kind())).any()


@each
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_of_picture_will_do(result: Result, size: tuple[int, int]) -> None:
    assert draw(picture(*size), result).shape == (*size, 3)


def test_pictures_that_are_views_or_read_only_will_do() -> None:
    view = picture(400, 400)[::-2, ::2]
    view.flags.writeable = False
    assert np.array_equal(draw(view, DETECTION), draw(picture(), DETECTION))


def test_a_box_has_the_colour_of_its_label_on_its_outermost_pixels() -> None:
    drawn = draw(picture(), DETECTION)
    for x, y in ((60, 109), (30, 80), (89, 109)):  # below, left, and the corner that no tag covers
        assert tuple(drawn[y, x]) == color_of(0)
    for x, y in ((149, 120), (100, 189)):
        assert tuple(drawn[y, x]) == color_of(7)
    inside = drawn[70:100, 64:84]
    assert not changed(inside).any()


def test_a_box_that_ends_beyond_the_picture_shows_its_edge() -> None:
    drawn = draw(picture(), DetectionResult(boxes=((-50.0, 60.0, 300.0, 120.0),), label_ids=(1,)))
    assert tuple(drawn[100, 0]) == tuple(drawn[100, 199]) == color_of(1)


@pytest.mark.parametrize(
    "box",
    [
        (-90.0, 10.0, -5.0, 50.0),
        (10.0, 900.0, 50.0, 950.0),
        (float("nan"), 0.0, 9.0, 9.0),
        (0.0, 0.0, float("inf"), 9.0),
        (),
    ],
)
def test_a_box_that_cannot_be_seen_is_left_out(box: tuple[float, ...]) -> None:
    result = DetectionResult(boxes=(box,), scores=(0.5,), label_ids=(0,), labels=("a",))  # type: ignore[arg-type]
    assert not changed(draw(picture(), result)).any()


coordinate = st.floats(-1e12, 1e12) | st.floats(-50, 250)


@settings(deadline=None, max_examples=60)
@given(
    boxes=st.lists(st.tuples(*[coordinate] * 4), max_size=6),
    labels=st.lists(st.text(max_size=20), max_size=6),
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
)
def test_no_boxes_or_names_make_it_fail(boxes: list[Any], labels: list[str], size: tuple[int, int]) -> None:
    result = DetectionResult(tuple(boxes), (0.5,) * len(boxes), tuple(range(len(boxes))), tuple(labels))
    assert draw(picture(*size), result).shape == (*size, 3)
    lines = OCRResult(tuple((*map(int, box), *map(int, box)) for box in boxes), tuple(labels))
    assert draw(picture(*size), lines).shape == (*size, 3)


@pytest.mark.parametrize(
    "name", ["", " \n\t", "x" * 100_000, "Straße", "猫", "\ud800\0", "🙂👩‍👩‍👧", "مرحبا", "a\nb", "%s{}\\"]
)
def test_no_name_makes_it_fail(name: str) -> None:
    boxes = ((10.0, 10.0, 50.0, 50.0),)
    draw(picture(), DetectionResult(boxes=boxes, scores=(0.5,), label_ids=(0,), labels=(name,)))
    draw(picture(), ClassifyResult(label_ids=(0,), scores=(0.5,), labels=(name,)))
    draw(picture(), OCRResult(boxes=((1, 1, 50, 1, 50, 20, 1, 20),), text=(name,)))


def test_parallel_fields_may_be_missing() -> None:
    draw(picture(), DetectionResult(boxes=((10.0, 10.0, 50.0, 50.0),)))
    draw(picture(), ClassifyResult(label_ids=(3,), scores=(0.5,)))
    draw(picture(), ClassifyResult(label_ids=(-1,), scores=(float("nan"),)))
    draw(picture(), SegmentationResult(label_map=(5,), shape=(1, 1), labels=("a",)))
    draw(picture(), DetectionResult(rotated_boxes=((1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0),), masks=(Mask(),)))
    draw(picture(), SegmentationResult(label_map=(5,), shape=(4, 4)))
    draw(picture(), KeyPointDetectionResult(keypoints=((3.0, float("nan")), (4.0, 4.0)), num_joints=-1))


def test_tags_stay_inside_the_picture_and_apart_from_each_other() -> None:
    image = picture(300, 300)
    style = Style.of(image)
    boxes = [(100, 100, 180, 160), (102, 101, 182, 161), (-20, -20, 40, 40), (280, 280, 320, 320)]
    tags = [tag for box in boxes if (tag := tag_for(image, style, "person 0.87", color_of(0), box))]
    assert len(tags) == 4
    for tag in tags:
        assert all(0 <= x <= 300 - tag.size[0] and 0 <= y <= 300 - tag.size[1] for x, y in tag.places)
    put_tags(image, style, tags)
    filled = int((image == color_of(0)).all(axis=2).sum())
    alone = picture(300, 300)
    put_tags(alone, style, tags[:1])
    assert filled == pytest.approx(4 * int((alone == color_of(0)).all(axis=2).sum()), rel=0.01)


def test_a_small_picture_is_not_hidden_under_its_tags() -> None:
    boxes = tuple((float(x), float(y), x + 30.0, y + 30.0) for x in range(0, 70, 15) for y in range(0, 50, 10))
    many = DetectionResult(boxes, (0.5,) * len(boxes), tuple(range(len(boxes))), ("person",) * len(boxes))
    image = picture(80, 100)
    style = Style.of(image)
    tags = [tag for box in boxes if (tag := tag_for(image, style, "person 0.50", (255, 0, 0), (*map(int, box),)))]  # type: ignore[arg-type]
    put_tags(image, style, tags)
    assert 0 < changed(image).mean() <= 0.3
    assert draw(picture(80, 100), many).shape == (80, 100, 3)


def test_a_mask_tints_its_pixels_from_the_corner_of_its_box() -> None:
    mask = Mask(data=(1,) * 3200 + (0,) * 3200, shape=(80, 80))  # the upper half
    result = DetectionResult(boxes=((100.0, 100.0, 180.0, 180.0),), label_ids=(2,), masks=(mask,), contain_masks=True)
    drawn = draw(picture(), result)
    assert tuple(drawn[125, 140]) not in (GREY, color_of(2))
    assert tuple(drawn[165, 140]) == GREY


def test_a_background_class_stays_as_it_is() -> None:
    result = SegmentationResult(label_map=(0, 1), shape=(1, 2), labels=("_background_", "road"))
    drawn = draw(picture(), result)
    assert not changed(drawn[150:, :99]).any()
    assert changed(drawn[150:, 101:]).all()


def test_joints_that_are_guessed_are_not_shown() -> None:
    points = ((50.0, 50.0), (150.0, 150.0))
    drawn = draw(picture(), KeyPointDetectionResult(keypoints=points, scores=(0.9, 0.1), num_joints=2))
    assert tuple(drawn[50, 50]) == color_of(0)
    assert tuple(drawn[150, 150]) == GREY


def test_labels_have_colours_of_their_own_that_never_change() -> None:
    colors = [color_of(label_id) for label_id in range(80)]
    assert len(set(colors)) == 80
    assert colors[0] == (248, 76, 76)
    for first, second in pairwise(colors):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 120


@pytest.mark.parametrize(
    ("background", "text"), [((255, 255, 255), 0), ((0, 0, 0), 255), ((255, 225, 77), 0), ((120, 30, 160), 255)]
)
def test_text_contrasts_with_its_background(background: tuple[int, int, int], text: int) -> None:
    assert abs(readable_on(background)[0] - text) < 20


def test_long_names_are_shortened_to_fit() -> None:
    short = shortened("a very long name of a class", 20, 100)
    assert short.startswith("a ")
    assert short.endswith("..")
    assert width_of(short, 20) <= 100
    assert shortened("fits", 20, 100) == "fits"
    assert shortened("fits", 20, 1) == ""


def test_printable_is_one_line_that_this_opencv_can_write() -> None:
    assert printable(" a\n\tb\0 ") == "a b"
    assert printable("café") == ("café" if int(cv2.__version__.split(".")[0]) >= 5 else "cafe")


def test_threads_draw_the_same_picture() -> None:
    expected = draw(picture(), DETECTION)
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: draw(picture(), DETECTION), range(64)))
    assert all(np.array_equal(one, expected) for one in drawn)


@pytest.mark.parametrize(("kind", "signature"), [("jpeg", b"\xff\xd8\xff"), ("png", b"\x89PNG")])
def test_encoded_pictures_keep_their_colours(kind: Any, signature: bytes) -> None:
    image = np.full((20, 30, 3), (250, 120, 10), np.uint8)
    data = encode(image, kind)
    assert data.startswith(signature)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() <= (0 if kind == "png" else 6)


def test_a_picture_too_long_for_a_jpeg_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidOption, match="ask for image/png"):
        encode(np.zeros((1, 70_000, 3), np.uint8), "jpeg")
    assert encode(np.zeros((1, 70_000, 3), np.uint8), "png")
