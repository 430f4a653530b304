"""What the steps of OCR are made of, each alone: pictures for the networks, boxes from maps, crops, order, and text."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool_server.families import FamilySpec, Options, build_family
from visionpool_server.families.ctc import best_path
from visionpool_server.families.db import Binarization, boxes_of
from visionpool_server.families.ocr_recognition import by_class
from visionpool_server.families.reading_order import reading_order
from visionpool_server.imaging import crops
from visionpool_server.imaging.crops import crop, is_vertical, upside_down
from visionpool_server.imaging.recipe import Geometry
from visionpool_server.imaging.text_lines import WIDTHS, LimitSide, TextLine

from tests.tiny_models import picture

Quads = NDArray[np.float32]
RANDOM = np.random.default_rng(7)


def prepared(step: Any, image: NDArray[np.uint8]) -> tuple[NDArray[Any], Geometry]:
    made: tuple[NDArray[Any], Geometry] = step(image, Geometry(*image.shape[:2]))
    return made


class TestPicturesForTheDetector:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((132, 709), (128, 704)),  # no side over 960: only brought to multiples of 32
            ((1322, 2356), (544, 960)),  # int(1322 * 960 / 2356) = 538
            ((2036, 834), (960, 384)),
            ((48, 80), (64, 64)),  # 1.5 and 2.5 multiples: to the even one, as Python rounds
            ((40, 40), (32, 32)),
            ((10, 9000), (32, 960)),
        ],
    )
    def test_sides_are_those_of_paddleocr(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        image, geometry = prepared(LimitSide(), picture(*size))
        assert image.shape == (*expected, 3)
        assert geometry.scale_x == pytest.approx(expected[1] / size[1])
        assert geometry.scale_y == pytest.approx(expected[0] / size[0])

    def test_a_tiny_picture_lies_at_the_top_left_of_a_black_one(self) -> None:
        image, geometry = prepared(LimitSide(), np.full((9, 20, 3), 200, np.uint8))
        assert image.shape == (32, 32, 3)
        assert (image[:9, :20] == 200).all()
        assert image[9:].max() == image[:, 20:].max() == 0
        assert (geometry.scale_x, geometry.scale_y, geometry.height, geometry.width) == (1, 1, 9, 20)

    @pytest.mark.parametrize(
        ("step", "expected"),
        [
            (LimitSide(736, "min"), (736, 3968)),  # PaddleOCR's other way
            (LimitSide(960, "long"), (192, 960)),  # inference.yml's resize_long
            (LimitSide(736, "min", limit=2000), (384, 1984)),  # 132 / 709 of 2000, to multiples of 32
        ],
    )
    def test_other_limits(self, step: LimitSide, expected: tuple[int, int]) -> None:
        assert prepared(step, picture(132, 709))[0].shape[:2] == expected

    def test_there_are_finitely_many_sizes(self) -> None:
        sizes = {
            prepared(LimitSide(), np.zeros((h, w, 3), np.uint8))[0].shape[:2]
            for h, w in RANDOM.integers(1, 3000, (300, 2)).tolist()
        }
        assert all(32 <= side <= 960 and side % 32 == 0 for size in sizes for side in size)


class TestLines:
    @pytest.mark.parametrize("width", [1, 47, 100, 300, 320, 321, 1999, 3199, 3200])
    def test_a_line_keeps_its_shape_and_is_padded_to_the_next_width(self, width: int) -> None:
        image, geometry = prepared(TextLine(48), picture(24, width))
        natural = math.ceil(48 * (width / 24))
        own = min(natural, 3200)
        expected = next(bucket for bucket in WIDTHS if bucket >= own)
        assert image.shape == (48, expected, 3)
        assert image.dtype == np.float32
        assert (image[:, own:] == 127.5).all()
        resized = cv2.resize(picture(24, width), (own, 48))
        assert (image[:, :own] == resized).all()
        assert geometry.scale_x == pytest.approx(own / width)

    def test_padding_becomes_exactly_nothing(self) -> None:
        image, _ = prepared(TextLine(32), picture(32, 40))
        arithmetic = build_family("ocr_recognition", recogniser_spec()).recipe.arithmetic
        normal = (image[None] * arithmetic.scale - np.array(arithmetic.mean)) / np.array(arithmetic.std)
        assert (normal[:, :, 40:] == 0).all()

    def test_one_width_only(self) -> None:
        assert prepared(TextLine(48, (192,)), picture(10, 400))[0].shape == (48, 192, 3)
        assert TextLine(48, (192,)).output_size() == (48, 192)
        assert TextLine(48).output_size() is None


class TestBoxes:
    @staticmethod
    def bright(*boxes: tuple[int, int, int, int], likely: float = 0.9, size: tuple[int, int] = (96, 160)) -> Quads:
        """A map with rectangles x, y, width, height."""
        made = np.zeros(size, np.float32)
        for x, y, width, height in boxes:
            made[y : y + height, x : x + width] = likely
        return made

    def test_a_box_grows_by_its_area_over_its_circumference(self) -> None:
        quads, scores = boxes_of(self.bright((40, 30, 61, 21)), Binarization())
        distance = 60 * 20 * 1.5 / 160
        expected = np.array([[40 - distance, 30 - distance], [100 + distance, 50 + distance]])
        assert scores == pytest.approx([0.9])
        np.testing.assert_allclose(quads[0][[0, 2]], expected, atol=1.01)

    def test_what_scores_low_or_is_thin_is_left_out(self) -> None:
        assert len(boxes_of(self.bright((40, 30, 60, 20), likely=0.45), Binarization())[0]) == 0
        assert len(boxes_of(self.bright((40, 30, 60, 20), likely=0.55), Binarization(box_threshold=0.5))[0]) == 1
        assert len(boxes_of(self.bright((40, 30, 60, 20), likely=0.25), Binarization(box_threshold=0.1))[0]) == 0
        assert len(boxes_of(self.bright((40, 30, 60, 2)), Binarization())[0]) == 0
        assert len(boxes_of(self.bright((40, 30, 60, 5)), Binarization())[0]) == 1

    def test_corners_go_clockwise_from_the_top_left(self) -> None:
        made = np.zeros((200, 200), np.float32)
        cv2.fillPoly(made, [cv2.boxPoints(((100, 100), (120, 30), 20)).astype(np.int32)], (1.0,))
        (quad,), _ = boxes_of(made, Binarization())
        (a, b, c, d) = quad
        assert a[0] < b[0] and d[0] < c[0] and a[1] < d[1] and b[1] < c[1]
        assert math.degrees(math.atan2(b[1] - a[1], b[0] - a[0])) == pytest.approx(20, abs=1.5)

    def test_a_map_of_noise_is_no_more_work_than_a_thousand_boxes(self) -> None:
        noise = RANDOM.random((960, 960)).astype(np.float32)
        looked_at = cv2.findContours((noise > 0.3).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]
        assert len(looked_at) > 5000
        quads, _ = boxes_of(noise, Binarization(box_threshold=0.0))
        assert len(quads) <= 1000

    def test_text_is_not_lost_among_more_than_a_thousand_specks(self) -> None:
        made = np.zeros((960, 960), np.float32)
        made[300::8, ::8] = 1.0
        made[20:60, 100:700] = 1.0
        contours, _ = cv2.findContours((made > 0.3).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        assert len(contours) > 9000
        quads, _ = boxes_of(made, Binarization())
        assert len(quads) == 1

    def test_rings_in_rings(self) -> None:
        made = np.zeros((960, 960), np.float32)
        for i in range(0, 470, 4):
            cv2.rectangle(made, (i, i), (959 - i, 959 - i), (1.0,), 2)
        assert len(boxes_of(made, Binarization(box_threshold=0.0))[0]) <= 1000


class TestTheDetector:
    def family(self) -> Any:
        return build_family(
            "ocr_detection",
            FamilySpec({"x": (None, 3, None, None)}, {"maps": (None, 1, None, None)}, defaults=Options()),
        )

    def test_boxes_lie_in_the_original_picture_and_within_it(self) -> None:
        family = self.family()
        likely = np.zeros((1, 544, 960), np.float32)
        likely[0, 500:544, 100:400] = 1.0  # down to the lower edge
        result = family.finish({"maps": likely}, family.prepare(picture(1322, 2356)).geometry, Options())
        ((x1, y1, x2, y2, _, y3, x4, y4),) = result.boxes
        assert y3 == y4 == 1321
        assert (x1, y1) == (x4, y2)
        assert x1 < 100 * 2356 / 960 and x2 > 399 * 2356 / 960 and y1 < 500 * 1322 / 544
        assert result.rec_scores == (1.0,)
        assert result.text == ()

    def test_an_empty_map_has_no_boxes(self) -> None:
        family = self.family()
        result = family.finish({"maps": np.zeros((1, 32, 32), np.float32)}, Geometry(32, 32), Options())
        assert result.boxes == result.rec_scores == ()

    def test_another_kind_of_output_is_refused(self) -> None:
        with pytest.raises(InvalidModel, match="gives one map"):
            build_family("ocr_detection", FamilySpec({"x": (None, 3, None, None)}, {"y": (None, 10)}))


class TestCrops:
    def test_an_upright_box_is_cut_out_as_it_is(self) -> None:
        image = picture(60, 90)
        cut = crop(image, quad((10, 20), (70, 20), (70, 40), (10, 40)))
        assert (cut == image[20:40, 10:70]).all()

    def test_a_slanted_line_becomes_level(self) -> None:
        flat = np.zeros((300, 300, 3), np.uint8)
        flat[140:160, 60:240, 0] = np.linspace(50, 250, 180)
        turn = cv2.getRotationMatrix2D((150, 150), 25, 1)
        slanted = cv2.warpAffine(flat, turn, (300, 300), flags=cv2.INTER_CUBIC)
        corners = np.array([[60, 140, 1], [240, 140, 1], [240, 160, 1], [60, 160, 1]], np.float32) @ turn.T
        cut = crop(slanted, corners.astype(np.float32))
        inside = cut[4:-4, 4:-4, 0].astype(float)
        expected = np.linspace(50, 250, cut.shape[1])[4:-4]
        assert abs(inside - expected).mean() < 3

    def test_a_high_box_is_turned_against_the_clock(self) -> None:
        image = picture(90, 60)
        corners = quad((10, 5), (30, 5), (30, 65), (10, 65))
        assert is_vertical(corners)
        assert (crop(image, corners) == np.rot90(image[5:65, 10:30])).all()
        assert not is_vertical(quad((0, 0), (20, 0), (20, 29), (0, 29)))
        assert is_vertical(quad((0, 0), (20, 0), (20, 30), (0, 30)))

    @pytest.mark.parametrize("shape", [(40_000, 40, 3), (40, 40_000, 3)])
    def test_pictures_longer_than_opencv_warps(self, shape: tuple[int, int, int]) -> None:
        image = np.zeros(shape, np.uint8)
        height, width = shape[:2]
        image[height // 2 - 10 :, width // 2 - 10 :] = 200
        corners = quad((0, 0), (18, 0), (18, 12), (0, 12)) + np.array([width // 2, height // 2], np.float32)
        assert (crop(image, corners) == 200).all()
        everything = quad((0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1))
        assert max(crop(image, everything).shape) <= crops.MAX_SIDE

    def test_a_crop_has_so_many_pixels_at_most(self) -> None:
        image = np.zeros((5000, 6000, 3), np.uint8)
        made = crop(image, quad((0, 0), (5999, 0), (5999, 4999), (0, 4999)))
        assert made.shape[0] * made.shape[1] <= crops.MAX_PIXELS
        assert made.shape[1] / made.shape[0] == pytest.approx(1.2, abs=0.01)

    @pytest.mark.parametrize(
        "corners", [[(5, 5)] * 4, [(5, 5), (9, 5), (9, 5), (5, 5)], [(0, 0), (9, 9), (9, 9), (0, 0)]]
    )
    def test_a_box_without_an_area_is_a_line_of_pixels_and_no_failure(self, corners: list[tuple[int, int]]) -> None:
        assert crop(picture(20, 20), quad(*corners)).size

    def test_upside_down(self) -> None:
        image = picture(7, 5)
        assert (upside_down(upside_down(image)) == image).all()
        assert (upside_down(image) == cv2.rotate(image, cv2.ROTATE_180)).all()


def quad(*corners: tuple[float, float]) -> Quads:
    return np.array(corners, np.float32)


def boxes(*said: tuple[float, float, float, float]) -> Quads:
    """Upright ones: x, y, width, height."""
    return np.array([[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in said], np.float32)


class TestOrder:
    PAGE = (
        (10, 10, 80, 20),
        (100, 14, 60, 14),
        (170, 8, 90, 22),
        (12, 40, 300, 20),
        (10, 70, 40, 20),
        (60, 72, 200, 18),
    )

    def ordered(self, quads: Quads, turned: bool = False) -> list[int]:
        return reading_order(quads, [is_vertical(q) for q in quads], [turned] * len(quads))

    @pytest.mark.parametrize("shuffled", list(permutations(range(6)))[::37])
    def test_lines_from_top_to_bottom_each_from_left_to_right(self, shuffled: tuple[int, ...]) -> None:
        quads = boxes(*(self.PAGE[i] for i in shuffled))
        assert [shuffled[i] for i in self.ordered(quads)] == list(range(6))

    @pytest.mark.parametrize("degrees", [-12, -4, 2, 7, 14])
    def test_a_slanted_page(self, degrees: float) -> None:
        turn = cv2.getRotationMatrix2D((150, 50), degrees, 1)
        quads = np.stack([np.c_[q, np.ones(4)] @ turn.T for q in boxes(*self.PAGE)]).astype(np.float32)
        assert self.ordered(quads) == list(range(6))

    @pytest.mark.parametrize("times", [1, 2, 3])
    def test_a_page_on_its_side_or_head(self, times: int) -> None:
        """`times`: quarters of a turn with the clock."""
        quads = boxes(*self.PAGE)
        for _ in range(times):
            x, y = quads[:, :, 0].copy(), quads[:, :, 1].copy()
            quads = np.stack([400 - y, x], axis=-1)
            quads = np.roll(quads, 1, axis=1)  # the top left corner first again
        assert self.ordered(quads, turned=times in (2, 3)) == list(range(6))

    def test_one_line_alone_that_seems_upside_down_turns_no_page(self) -> None:
        quads = boxes(*self.PAGE)
        assert reading_order(quads, [False] * 6, [True] + [False] * 5) == list(range(6))

    def test_large_letters_far_apart_in_height_are_one_line(self) -> None:
        """Over PaddleOCR's 10 pixels, but less than half of their height."""
        assert self.ordered(boxes((400, 100, 300, 120), (10, 125, 300, 120), (20, 300, 500, 90))) == [1, 0, 2]

    def test_none_and_one(self) -> None:
        assert reading_order(np.empty((0, 4, 2), np.float32), [], []) == []
        assert self.ordered(boxes((1, 1, 5, 5))) == [0]

    def test_degenerate_boxes(self) -> None:
        assert sorted(self.ordered(boxes((5, 5, 0, 0), (5, 5, 0, 0), (1, 1, 0, 9)))) == [0, 1, 2]


class TestText:
    CHARACTERS = ("", "a", "b", " ")

    def steps(self, *classes: int, sure: float = 0.9) -> NDArray[np.float32]:
        rows = np.full((len(classes), 4), (1 - sure) / 3, np.float32)
        rows[range(len(classes)), classes] = sure
        return rows

    def test_repeats_are_one_character_unless_a_blank_lies_between(self) -> None:
        assert best_path(self.steps(0, 1, 1, 0, 1, 2, 2, 3, 0), self.CHARACTERS)[0] == "aab "

    def test_the_score_is_the_mean_of_the_first_step_of_each_character(self) -> None:
        rows = np.concatenate(
            [self.steps(1, sure=0.6), self.steps(1, sure=0.9), self.steps(0), self.steps(2, sure=0.8)]
        )
        text, score = best_path(rows, self.CHARACTERS)
        assert text == "ab"
        assert score == pytest.approx(0.7)

    def test_nothing_scores_nothing(self) -> None:
        assert best_path(self.steps(0, 0, 0), self.CHARACTERS) == ("", 0.0)
        assert best_path(np.empty((0, 4), np.float32), self.CHARACTERS) == ("", 0.0)

    def test_logits_become_probabilities(self) -> None:
        rows = np.array([[0.0, 5.0, 1.0, -2.0], [9.0, 0.0, 0.0, 0.0]], np.float32)
        exponents = np.exp(rows[0].astype(np.float64))
        text, score = best_path(rows, self.CHARACTERS)
        assert text == "a"
        assert score == pytest.approx(float(exponents[1] / exponents.sum()))


def recogniser_spec(classes: int | None = 5, dictionary: tuple[str, ...] = ("a", "b", "c")) -> FamilySpec:
    return FamilySpec({"x": (None, 3, 32, None)}, {"y": (None, None, classes)}, labels=dictionary)


class TestDictionaries:
    def test_the_number_of_classes_says_whether_there_is_a_space(self) -> None:
        assert by_class(("a", "b"), 4) == ("", "a", "b", " ")
        assert by_class(("a", "b"), 3) == ("", "a", "b")
        assert by_class(("a", "b"), None) == ("", "a", "b", " ")

    def test_one_that_does_not_fit_is_refused_with_the_count_it_must_have(self) -> None:
        with pytest.raises(InvalidModel, match="has 3 characters, and the model 97 classes") as refused:
            by_class(("a", "b", "c"), 97)
        assert refused.value.hint and "96 or 95 lines" in refused.value.hint and "en_dict.txt" in refused.value.hint

    def test_none_is_refused_with_the_usual_one(self) -> None:
        with pytest.raises(InvalidModel, match="which characters") as refused:
            by_class((), 6625)
        assert refused.value.hint and "ppocr_keys_v1.txt" in refused.value.hint

    def test_the_height_of_lines_is_that_of_the_file(self) -> None:
        family = build_family("ocr_recognition", recogniser_spec())
        assert family.recipe.steps == (TextLine(32),)
        assert family.labels == ("", "a", "b", "c", " ")
