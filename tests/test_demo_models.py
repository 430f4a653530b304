"""The embedded demo models, measured again on what they were never trained on.

`score_shapes` and `score_digits` take any callable, so that the served models can be held to the same
numbers.
"""

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from demo_scoring import (
    HELD_OUT_SEEDS,
    DetectShapes,
    Letterbox,
    ShapesScore,
    letterbox,
    onnx_classifier,
    onnx_detector,
    score_digits,
    score_shapes,
)
from scenes import CLASS_NAMES, Floats, Image, Ints, draw_scene

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "server" / "visionpool_server" / "demo"
SHAPES = DEMO / "shapes" / "shapes.onnx"
DIGITS = DEMO / "digits" / "digits.onnx"

# The scene of seed 77796, enlarged to 640x480, and the held-out fifth's digit 14.
EXAMPLE_SHAPES = ["circle", "cross", "cross", "heart", "heart", "pentagon", "ring", "square", "star"]
EXAMPLE_DIGIT = 5


def oracle(image: Image, shift: float = 0.0) -> tuple[Floats, Floats, Ints]:
    """The truth of the held-out scene that `image` is, its boxes moved by a share of their size."""
    scene = next(s for s in map(draw_scene, range(20)) if np.array_equal(s.image, image))
    sizes = scene.boxes[:, 2:] - scene.boxes[:, :2]
    boxes = scene.boxes + np.float32(shift) * np.tile(sizes, 2)
    return boxes.astype(np.float32), np.ones(len(boxes), np.float32), scene.label_ids


def score_few(predict: DetectShapes) -> ShapesScore:
    return score_shapes(predict, range(20))


class TestScenes:
    def test_same_seed_gives_same_scene(self) -> None:
        first, second = draw_scene(7), draw_scene(7)
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.boxes, second.boxes)
        assert not np.array_equal(first.image.shape, draw_scene(8).image.shape)

    @pytest.mark.parametrize("seed", range(20))
    def test_truth_lies_inside_the_picture(self, seed: int) -> None:
        scene = draw_scene(seed)
        height, width = scene.image.shape[:2]
        assert len(scene.boxes) == len(scene.label_ids) >= 1
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= [width, height, width, height]).all()
        assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 8).all()
        assert set(scene.label_ids) <= set(range(len(CLASS_NAMES)))


class TestMeasure:
    def test_truth_scores_one(self) -> None:
        score = score_few(oracle)
        assert (score.map50, score.map50_95) == pytest.approx((1, 1))

    def test_displaced_truth_passes_the_loose_overlap_only(self) -> None:
        score = score_few(lambda image: oracle(image, shift=0.1))
        assert score.map50 == pytest.approx(1)
        assert score.map50_95 < 0.6

    def test_nothing_found_scores_zero(self) -> None:
        nothing = (np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
        assert score_few(lambda _: nothing) == ShapesScore(0, 0)

    def test_letterbox_places_boxes_and_takes_them_back(self) -> None:
        fitted: Letterbox = letterbox(np.zeros((240, 640, 3), np.uint8), 320)
        assert (fitted.image[:100] == 114).all()
        assert (fitted.image[100:220] == 0).all()
        boxes = np.array([[0, 0, 640, 240]], np.float32)
        assert fitted.to_input(boxes).tolist() == [[0, 100, 320, 220]]
        assert np.array_equal(fitted.to_picture(fitted.to_input(boxes)), boxes)


class TestShapes:
    def test_reaches_its_average_precision_on_held_out_scenes(self) -> None:
        score = score_shapes(onnx_detector(SHAPES))
        assert len(HELD_OUT_SEEDS) == 300
        assert score.map50 >= 0.90
        assert score.map50_95 >= 0.70

    def test_gets_the_example_picture_right(self) -> None:
        image = cv2.imread(str(ROOT / "examples" / "shapes.jpg"), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        _, scores, label_ids = onnx_detector(SHAPES, min_score=0.5)(image.astype(np.uint8))
        assert sorted(CLASS_NAMES[k] for k in label_ids) == EXAMPLE_SHAPES
        assert scores.min() > 0.7


class TestDigits:
    @pytest.mark.parametrize("dark_ink", [False, True])
    def test_reaches_its_accuracy_on_the_held_out_fifth(self, dark_ink: bool) -> None:
        assert score_digits(onnx_classifier(DIGITS), dark_ink) >= 0.97

    def test_gets_the_example_picture_right(self) -> None:
        image = cv2.imread(str(ROOT / "examples" / "digits.png"), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        assert image.shape == (128, 128, 3)
        assert onnx_classifier(DIGITS)(image.astype(np.uint8)) == EXAMPLE_DIGIT


@pytest.mark.parametrize(
    ("path", "size", "shape", "most_bytes"),
    [(SHAPES, 320, (12, 2100), 2_000_000), (DIGITS, 32, (10,), 200_000)],
    ids=["shapes", "digits"],
)
class TestFile:
    def test_takes_any_batch(self, path: Path, size: int, shape: tuple[int, ...], most_bytes: int) -> None:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        pictures = np.random.default_rng(0).random((3, 3, size, size), np.float32)
        together = session.run(["output0"], {"images": pictures})[0]
        alone = session.run(["output0"], {"images": pictures[1:2]})[0]
        assert together.shape == (3, *shape)
        np.testing.assert_allclose(together[1:2], alone, atol=1e-3)
        assert path.stat().st_size < most_bytes

    def test_names_itself(self, path: Path, size: int, shape: tuple[int, ...], most_bytes: int) -> None:
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        names = CLASS_NAMES if path == SHAPES else tuple("0123456789")
        assert metadata["task"] == ("detect" if path == SHAPES else "classify")
        assert metadata["imgsz"] == str([size, size])
        assert metadata["names"] == str(dict(enumerate(names)))
        assert metadata["license"] == "Apache-2.0"
