"""Segmentation pixel by pixel against a second implementation: ONNX Runtime, OpenCV's resize, and NumPy written here.

Linear resizing back is also written here in double precision, so that OpenCV does not judge itself.
"""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import visionpool
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from visionpool.errors import InvalidModel, InvalidOption, SetupError, TooLarge
from visionpool.results import SegmentationResult
from visionpool_server.api.answers import describe
from visionpool_server.families import FamilySpec, Options
from visionpool_server.families.pixel_maps import contenders
from visionpool_server.families.segmentation import Segmentation
from visionpool_server.imaging.masks import map_of
from visionpool_server.imaging.recipe import CenterCrop, Geometry, Recipe, Resize
from visionpool_server.models import paddle_segmentation
from visionpool_server.models.preprocess import recipe_from

from tests import tiny_models
from tests.conftest import Serve
from tests.segmentation_models import BACKENDS, planes, run, segmenter, served

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float64]  # (C, H, W)
NORMALIZE = {"normalize": {"mean": 0.5, "std": 0.5}}
SIZES = ((64, 64), (97, 61), (33, 120), (1, 1), (200, 150))


# The second implementation


def bilinear(scores: Scores, size: tuple[int, int]) -> Scores:
    """(C, h, w) as (C, H, W): each pixel's centre between the centres of four, held at the borders."""
    for axis, length in ((1, size[0]), (2, size[1])):
        before = scores.shape[axis]
        place = ((np.arange(length) + 0.5) * before / length - 0.5).clip(0, before - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, before - 1)
        scores = scores.take(low, axis) * (1 - share) + scores.take(high, axis) * share
    return scores


def nearest(ids: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(h, w) as (H, W): the pixel that a pixel's first corner lies in, as Paddle's `nearest` has it."""
    rows, columns = (np.arange(after) * before // after for after, before in zip(size, ids.shape, strict=True))
    back: NDArray[Any] = ids[rows][:, columns]
    return back


def softmax(scores: Scores) -> Scores:
    powers = np.exp(scores - scores.max(axis=0))
    shares: Scores = powers / powers.sum(axis=0)
    return shares


def assert_classes(result: Any, scores: Scores, labels: tuple[str, ...] | None = None) -> None:
    """Every pixel's class is that of the highest score; where two are closer than the runtimes are, either."""
    assert isinstance(result, SegmentationResult)
    assert result.shape == scores.shape[1:]
    ids = np.array(result.label_map).reshape(result.shape)
    chosen = np.take_along_axis(scores, ids[None], axis=0)[0]
    assert (scores.max(axis=0) - chosen).max() <= 1e-4 * max(1.0, float(np.abs(scores).max()))
    assert (ids != scores.argmax(axis=0)).mean() < 1e-3
    assert labels is None or result.labels == labels


def assert_shares(result: Any, shares: NDArray[Any]) -> None:
    assert result.contain_score_map
    assert np.abs(np.array(result.score_map).reshape(result.shape) - shares).max() < 2e-3


def write(
    folder: Path, ending: str, preprocess: list[Any], *, size: tuple[int, int] | None = None, **more: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    segmenter(folder / "s.onnx", ending, size=size)
    said = {"task" if ending == "logits" else "family": "segmentation"}  # either is enough
    config = {**said, "preprocess": preprocess, **more}
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    return folder / "s.onnx"


# Every ending, stretched to a fixed size


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ["logits", "softmax", "nhwc", "aux", "small"])
def test_scores_are_interpolated_before_the_best_is_taken(tmp_path: Path, ending: str, backend: str) -> None:
    labels = ["sky", "road", "car", "tree"]
    model = write(tmp_path, ending, [{"resize": [64, 96]}, NORMALIZE], size=(64, 96), labels=labels)
    with served(tmp_path, backend) as predict:
        for seed, size in enumerate(SIZES):
            image = tiny_models.picture(*size, seed=seed)
            raw = run(model, planes(cv2.resize(image, (96, 64))), "out" if ending == "aux" else None)[0]
            raw = raw.transpose(2, 0, 1) if ending == "nhwc" else raw
            scores = bilinear(raw.astype(np.float64), size)
            assert_classes(predict(image), scores, tuple(labels))
            shares = scores if ending == "softmax" else softmax(scores)
            assert_shares(predict(image, score_map=True), shares.max(axis=0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ["argmax", "argmax4"])
def test_ready_classes_come_back_by_the_nearest_pixel(tmp_path: Path, ending: str, backend: str) -> None:
    model = write(tmp_path, ending, [{"resize": [64, 96]}, NORMALIZE], size=(64, 96))
    with served(tmp_path, backend) as predict:
        for seed, size in enumerate(SIZES):
            image = tiny_models.picture(*size, seed=seed)
            ids = run(model, planes(cv2.resize(image, (96, 64)))).reshape(64, 96)
            result = predict(image)
            assert result.shape == size and not result.contain_score_map
            differing = np.array(result.label_map).reshape(size) != nearest(ids, size)
            assert differing.mean() < 1e-3  # two logits that are closer than the runtimes are
        with pytest.raises(InvalidOption, match="score_map means nothing"):
            predict(image, score_map=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ["sigmoid", "one_logit", "plane"])
def test_one_channel_is_the_foreground_over_a_threshold(tmp_path: Path, ending: str, backend: str) -> None:
    said = {"postprocess": {"activation": "none"}} if ending == "plane" else {}
    model = write(tmp_path, ending, [{"resize": [64, 96]}, NORMALIZE], size=(64, 96), **said)
    with served(tmp_path, backend) as predict:
        image = tiny_models.picture(77, 120, seed=3)
        raw = bilinear(run(model, planes(cv2.resize(image, (96, 64)))).reshape(1, 64, 96).astype(float), (77, 120))
        share = 1 / (1 + np.exp(-raw)) if ending == "one_logit" else raw
        assert_classes(predict(image), np.concatenate([1 - share, share]), ("background", "foreground"))
        assert_shares(predict(image, score_map=True), np.maximum(share, 1 - share)[0])
        few, many = (sum(predict(image, score_threshold=t).label_map) for t in (0.87, 0.13))
        assert abs(few - (share > 0.87).sum()) <= 2 and abs(many - (share > 0.13).sum()) <= 2


# The way back through every transform


def way_back(*steps: tuple[str, tuple[int, int]]) -> Callable[[Scores], Scores]:
    """PaddleSeg's reverse_transform: sizes before each step, the last step first."""

    def back(scores: Scores) -> Scores:
        for kind, (height, width) in steps:
            scores = scores[:, :height, :width] if kind == "padding" else bilinear(scores, (height, width))
        return scores

    return back


def long_side(size: tuple[int, int], long: int) -> tuple[int, int]:
    return round(size[0] * long / max(size)), round(size[1] * long / max(size))


def prepared(image: Pixels, transforms: list[dict[str, Any]]) -> tuple[Pixels, Callable[[Scores], Scores]]:
    """What PaddleSeg's transforms make of a picture, in 8 bits, and the way back."""
    steps: list[tuple[str, tuple[int, int]]] = []
    for step in transforms:
        before = (image.shape[0], image.shape[1])
        kind, after = "resize", before
        match step["type"]:
            case "ResizeByLong":
                after = long_side(before, step["long_size"])
            case "LimitLong":
                after = long_side(before, min(max(*before, step["min_long"]), step["max_long"]))
            case "ResizeToIntMult":
                after = before[0] - before[0] % 8, before[1] - before[1] % 8
            case "Resize" if step.get("keep_ratio"):
                width, height = step["target_size"]
                ratio = min(max(width, height) / max(before), min(width, height) / min(before))
                divisor = step["size_divisor"]
                high, wide = (-(-round(side * ratio) // divisor) * divisor for side in before)
                after = high, wide
            case "Resize":
                after = step["target_size"][1], step["target_size"][0]
            case "Padding":
                kind, after = "padding", (step["target_size"][1], step["target_size"][0])
            case "PaddingByAspectRatio":
                kind, broad = "padding", before[1] / before[0] > step["aspect_ratio"]
                after = (int(before[1] / step["aspect_ratio"]), before[1]) if broad else (
                    before[0], int(before[0] * step["aspect_ratio"]))  # fmt: skip
        if kind == "padding":
            margins = ((0, after[0] - before[0]), (0, after[1] - before[1]), (0, 0))
            image = np.pad(image, margins, constant_values=step.get("im_padding_value", [128])[0])
        elif after != before:
            image = cv2.resize(image, (after[1], after[0]), interpolation=cv2.INTER_LINEAR)
        if after != before:
            steps.insert(0, (kind, before))
    return image, way_back(*steps)


TRANSFORMS: dict[str, list[dict[str, Any]]] = {
    "stretched": [{"type": "Resize", "target_size": [96, 64]}],
    "long side, padded": [{"type": "ResizeByLong", "long_size": 64}, {"type": "Padding", "target_size": [64, 64]}],
    "padded to a shape, stretched": [
        {"type": "PaddingByAspectRatio", "aspect_ratio": 1.5, "im_padding_value": [10, 10, 10]},
        {"type": "Resize", "target_size": [96, 64]},
    ],
    "in proportion, to multiples": [
        {"type": "Resize", "target_size": [96, 64], "keep_ratio": True, "size_divisor": 8},
    ],
    "limited, then to multiples": [
        {"type": "LimitLong", "max_long": 100, "min_long": 80},
        {"type": "ResizeToIntMult", "mult_int": 8},
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_deploy_yaml_prepares_and_brings_back_as_paddleseg_does(tmp_path: Path, name: str, backend: str) -> None:
    transforms = TRANSFORMS[name]
    model = segmenter(tmp_path / "model.onnx", "logits")
    deploy = {"transforms": [*transforms, {"type": "Normalize"}], "output_op": "none"}
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": deploy}))
    with served(tmp_path, backend) as predict:
        assert predict.model.source == "deploy.yaml"  # type: ignore[attr-defined]
        for seed, size in enumerate([(64, 64), (97, 61), (33, 120), (200, 150)]):
            image = tiny_models.picture(*size, seed=seed)
            small, back = prepared(image, transforms)
            scores = back(run(model, planes(small))[0].astype(np.float64))
            assert_classes(predict(image), scores)


def test_what_a_crop_left_out_is_of_class_0_and_scores_nothing() -> None:
    recipe = Recipe((Resize((60, 80)), CenterCrop((40, 40))))
    spec = FamilySpec({"x": (None, 3, 40, 40)}, {"y": (None, 2, 40, 40)}, recipe=recipe, endings={"y": "softmax"})
    family = Segmentation(spec)
    geometry = family.prepare(np.zeros((60, 80, 3), np.uint8)).geometry
    scores = np.stack([np.full((40, 40), 0.25), np.full((40, 40), 0.75)]).astype(np.float32)
    result = family.finish({"y": scores}, geometry, Options(score_map=True))
    expected = np.zeros((60, 80), int)
    expected[10:50, 20:60] = 1
    assert np.array_equal(np.array(result.label_map).reshape(60, 80), expected)
    assert np.array_equal(np.array(result.score_map).reshape(60, 80), expected * 0.75)


def test_a_picture_decoded_smaller_still_comes_back_at_its_own_size() -> None:
    recipe = Recipe((Resize((16, 16)),))
    family = Segmentation(FamilySpec({"x": (None, 3, 16, 16)}, {"y": (None, 2, 16, 16)}, recipe=recipe))
    prepared = family.prepare(np.zeros((40, 60, 3), np.uint8), Geometry(80, 120, 0.5, 0.5))
    scores = np.random.default_rng(0).random((2, 16, 16)).astype(np.float32)
    result = family.finish({"y": scores}, prepared.geometry, Options())
    assert_classes(result, bilinear(bilinear(scores.astype(float), (40, 60)), (80, 120)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_of_many_sizes_share_batches_where_they_can(tmp_path: Path, backend: str) -> None:
    """Prepared in proportion, they have five shapes: each comes back as it does alone."""
    steps = [{"resize_long": {"size": 64, "multiple": 16}}, NORMALIZE]
    write(tmp_path, "logits", steps, batching={"max_batch_size": 4}, workers=1)
    sizes = [(64, 64), (50, 100), (100, 50), (64, 64), (30, 120), (70, 71), (50, 100), (64, 64)] * 2
    images = [tiny_models.picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    with served(tmp_path, backend) as predict:
        together = predict.many(images)  # type: ignore[attr-defined]
        for image, result in zip(images, together, strict=True):
            alone = predict(image)
            assert result.shape == image.shape[:2]
            assert np.mean(np.array(result.label_map) != np.array(alone.label_map)) < 1e-3


# Many classes


def test_classes_that_cannot_win_are_passed_over_and_no_other() -> None:
    random = np.random.default_rng(5)
    for _ in range(50):
        likely = np.linspace(0, -12, 30).reshape(-1, 1, 1)
        coarse = (random.normal(0, 2, (30, 4, 5)) + likely).astype(np.float32)
        scores = np.stack([cv2.resize(plane, (20, 16), interpolation=cv2.INTER_CUBIC) for plane in coarse])
        winners = set(bilinear(scores.astype(float), (61, 83)).argmax(axis=0).ravel().tolist())
        kept = contenders(scores)
        assert winners <= set(kept) and len(kept) < 30


def test_between_two_classes_a_third_one_may_win() -> None:
    scores = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.7, 0.7]], [[0.0, 0.0]]], np.float32)
    assert list(contenders(scores)) == [0, 1, 2]
    family = Segmentation(FamilySpec({"x": (None, 3, 1, 2)}, {"y": (None, 4, 1, 2)}, recipe=Recipe((Resize((1, 2)),))))
    geometry = family.prepare(np.zeros((1, 6, 3), np.uint8)).geometry
    assert family.finish({"y": scores}, geometry, Options()).label_map == (0, 0, 2, 2, 1, 1)


def test_more_than_256_classes_have_maps_of_16_bits() -> None:
    recipe = Recipe((Resize((8, 8)),))
    family = Segmentation(FamilySpec({"x": (None, 3, 8, 8)}, {"y": (None, 300, 8, 8)}, recipe=recipe))
    geometry = family.prepare(np.zeros((8, 8, 3), np.uint8)).geometry
    scores = np.random.default_rng(0).random((300, 8, 8)).astype(np.float32)
    result = family.finish({"y": scores}, geometry, Options(compact=True))
    assert np.array_equal(map_of(result.label_map_png), scores.argmax(axis=0))
    assert result.label_map == ()


def test_many_classes_of_a_large_picture_take_the_memory_of_a_few_planes() -> None:
    recipe = Recipe((Resize((64, 64)),))
    family = Segmentation(FamilySpec({"x": (None, 3, 64, 64)}, {"y": (None, 60, 64, 64)}, recipe=recipe))
    prepared = family.prepare(np.broadcast_to(np.uint8(0), (1500, 2000, 3)))
    scores = np.random.default_rng(0).random((60, 64, 64)).astype(np.float32)
    tracemalloc.start()
    try:
        family.finish({"y": scores}, prepared.geometry, Options(compact=True, score_map=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1500 * 2000 * 4  # eight planes, and not sixty


def test_compact_maps_are_the_same_as_pngs(tmp_path: Path) -> None:
    write(tmp_path, "logits", [{"resize": [64, 96]}, NORMALIZE], size=(64, 96))
    with served(tmp_path, "openvino") as predict:
        image = tiny_models.picture(97, 61)
        plain, compact = predict(image, score_map=True), predict(image, score_map=True, compact=True)
    assert compact.label_map == compact.score_map == () and compact.contain_score_map
    assert map_of(compact.label_map_png).ravel().tolist() == list(plain.label_map)
    assert np.abs(map_of(compact.score_map_png).ravel() / 255 - np.array(plain.score_map)).max() <= 0.5 / 255 + 1e-4


# What was detected, and what is said


@pytest.mark.parametrize(
    ("ending", "said", "expected"),
    [
        ("softmax", None, "none"),
        ("softmax", "softmax", "none"),  # not twice
        ("logits", None, "softmax"),
        ("logits", "sigmoid", "sigmoid"),
        ("one_logit", None, "sigmoid"),
        ("alpha", None, "by their values"),
        ("argmax", None, "none"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_makes_scores_of_the_outputs_is_shown(
    tmp_path: Path, ending: str, said: str | None, expected: str, backend: str
) -> None:
    more = {"postprocess": {"activation": said}} if said else {}
    write(tmp_path, ending, [{"resize": [64, 96]}, NORMALIZE], size=(64, 96), **more)
    with served(tmp_path, backend) as predict:
        assert describe(predict.model)["activation"] == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"preprocess": None}, "how pictures are prepared"),
        ({"labels": ["a", "b"]}, "labels names 2 classes, and the model has 4"),
        ({"postprocess": {"output": "z"}}, "postprocess.output is 'z'"),
        ({"postprocess": {"top_k": 3}}, "top_k means nothing"),
        ({"postprocess": {"score_threshold": 0.3}}, "score_threshold means nothing"),
    ],
)
def test_a_model_yaml_that_does_not_fit_is_explained(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    segmenter(tmp_path / "s.onnx", "logits", size=(64, 96))
    config = {"family": "segmentation", "preprocess": [{"resize": [64, 96]}, NORMALIZE], **more}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({key: value for key, value in config.items() if value}))
    with pytest.raises(InvalidModel, match=says) as refusal, served(tmp_path, "openvino"):
        pass
    assert refusal.value.hint


# Over the wire


def test_all_clients_get_the_same_maps(tmp_path: Path, serve: Serve) -> None:
    write(tmp_path / "street", "logits", [{"resize": [64, 96]}, NORMALIZE], size=(64, 96), labels=["a", "b", "c", "d"])
    _, png = cv2.imencode(".png", tiny_models.picture(97, 61)[:, :, ::-1])
    server = serve(tmp_path / "street", "--precision", "f32")
    asked: list[dict[str, Any]] = [{}, {"score_map": True}, {"compact": True}, {"compact": True, "score_map": True}]
    with visionpool.Client(server.url) as http, visionpool.GrpcClient(server.grpc) as grpc:
        results = [http.predict("street", png.tobytes(), **options) for options in asked]
        assert [grpc.predict("street", png.tobytes(), **options) for options in asked] == results
    plain, scored, compact, both = results
    assert isinstance(plain, SegmentationResult) and isinstance(both, SegmentationResult)
    assert len(plain.label_map) == 97 * 61 and not plain.contain_score_map
    assert isinstance(scored, SegmentationResult) and len(scored.score_map) == 97 * 61
    assert isinstance(compact, SegmentationResult) and not compact.score_map_png and not compact.label_map
    assert map_of(both.label_map_png).ravel().tolist() == list(plain.label_map)
    assert len(both.to_json()) < len(scored.to_json()) / 4


def test_without_a_model_yaml_the_server_says_what_to_write(tmp_path: Path) -> None:
    segmenter(tmp_path / "m.onnx", "logits", size=(64, 96))
    with served(tmp_path / "m.onnx", "openvino") as predict:
        assert "family: segmentation" in (predict.model.advice or "")  # type: ignore[attr-defined]


# deploy.yaml


def test_transforms_become_steps() -> None:
    written = [
        {"type": "LimitShort", "max_short": 512},
        {"type": "ResizeByShort", "short_size": 480},
        {"type": "ResizeToMultiple", "multiple": 16},
        {"type": "ResizeRangeScaling", "min_value": 400, "max_value": 400},
        {"type": "Padding", "target_size": [500, 400], "im_padding_value": [0, 10, 20.5]},
        {"type": "Normalize", "mean": [0.1, 0.2, 0.3]},
    ]
    bundle = paddle_segmentation.segmentation({"Deploy": {"transforms": written, "output_op": "softmax"}})
    assert bundle.postprocess.activation == "none"
    expected: list[dict[str, Any]] = [
        {"limit_short": {"max": 512}},
        {"resize_short": 480},
        {"resize_to_multiple": 16},
        {"resize_long": 400},
        {"pad": {"size": [400, 500], "fill": [0, 10, 21]}},
        {"normalize": {"mean": [0.1, 0.2, 0.3], "std": 0.5}},
    ]
    assert recipe_from(bundle.preprocess or ()) == recipe_from(expected)


def test_without_normalize_the_model_takes_the_bytes() -> None:
    bundle = paddle_segmentation.segmentation({"Deploy": {"transforms": [{"type": "Resize", "target_size": [8, 4]}]}})
    recipe = recipe_from(bundle.preprocess or ())
    assert recipe.arithmetic.scale == 1.0 and recipe.output_size() == (4, 8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"Deploy": []}, "Deploy: a map of keys"),
        ({"Deploy": {"transforms": {}}}, "transforms: a list"),
        ({"Deploy": {"transforms": ["Resize"]}}, "an entry of transforms: a map"),
        ({"Deploy": {"transforms": [{"type": "Swirl"}]}}, "'Swirl' is not served"),
        ({"Deploy": {"transforms": [{"type": "Resize", "target_size": [8, 8], "interp": "RANDOM"}]}}, "interpolation"),
        ({"Deploy": {"transforms": [{"type": "Normalize"}, {"type": "Padding", "target_size": [8, 8]}]}}, "after Norm"),
        ({"Deploy": {"transforms": [{"type": "Padding", "target_size": [8, 8], "im_padding_value": 300}]}}, "colour"),
    ],
)
def test_a_deploy_yaml_that_makes_no_sense_is_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidModel, match=says):
        recipe_from(paddle_segmentation.segmentation(data).preprocess or ())


WORDS = ["type", "Resize", "ResizeByLong", "ResizeByShort", "LimitLong", "Padding", "PaddingByAspectRatio", "Normalize"]
WORDS += [
    "target_size",
    "long_size",
    "short_size",
    "max_long",
    "aspect_ratio",
    "im_padding_value",
    "mean",
    "std",
    "interp",
]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 700), st.floats(), st.sampled_from([*WORDS, "LINEAR", 10**4000])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.integers(0, 2)), inner, max_size=4),
    ),
    max_leaves=25,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(WORDS), LEAVES | st.lists(LEAVES, max_size=3), max_size=5), max_size=4),
    TREES,
)
@settings(max_examples=300, deadline=None)
def test_whatever_a_deploy_yaml_says_only_setup_errors_come_out(steps: list[Any], other: Any) -> None:
    for data in (
        {"Deploy": {"transforms": steps}},
        {"Deploy": other},
        {"Deploy": {"transforms": other, "output_op": other}},
    ):
        try:
            recipe = recipe_from(paddle_segmentation.segmentation(data).preprocess or ())
        except SetupError as error:
            assert error.message
            continue
        with suppress(TooLarge):
            recipe.prepare(tiny_models.picture(20, 30))


# Real weights


PHOTOS = ("humanseg_1.jpg", "humanseg_2.png", "humanseg_3.png", "humanseg_4.jpg")


def photo(testdata: Path, name: str) -> Pixels:
    return np.array(Image.open(testdata / "images" / "photos" / name).convert("RGB"))


@pytest.mark.parametrize(
    ("name", "backend"), [("humanseg", "openvino"), ("humanseg", "onnxruntime"), ("humanseg_paddle", "openvino")]
)
def test_humanseg_is_right_to_the_pixel(testdata: Path, name: str, backend: str) -> None:
    onnx = testdata / "models" / "humanseg" / "pphumanseg_lite.onnx"
    with served(testdata / "models" / name, backend) as predict:
        for each in PHOTOS:
            image = photo(testdata, each)
            raw = run(onnx, planes(cv2.resize(image, (398, 224))))[0]
            scores = bilinear(raw.astype(np.float64), (image.shape[0], image.shape[1]))
            result = predict(image)
            assert_classes(result, scores)
            assert 0.02 < np.mean(result.label_map) < 0.98
        assert_shares(predict(image, score_map=True), scores.max(axis=0))


def test_humanseg_that_ends_in_argmax_is_right_to_the_pixel(testdata: Path, tmp_path: Path) -> None:
    onnx = testdata / "models" / "humanseg" / "pphumanseg_lite.onnx"
    folder = tmp_path / "humanseg"
    shutil.copytree(testdata / "models" / "humanseg_argmax_paddle", folder)
    with served(folder, "openvino") as predict:
        for each in PHOTOS:
            image = photo(testdata, each)
            ids = run(onnx, planes(cv2.resize(image, (398, 224))))[0].argmax(axis=0)
            result = predict(image)
            expected = nearest(ids, (image.shape[0], image.shape[1]))
            assert (np.array(result.label_map).reshape(result.shape) != expected).mean() < 1e-4
