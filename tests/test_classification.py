"""Classifiers: PaddleClas' transforms and ways to finish, Pillow's way of resizing, what the end of a graph tells, multi-label.

References are ONNX Runtime, Pillow, and OpenCV's resize; `tests/test_reference.py` has the plain classifiers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from visionpool.errors import InvalidModel
from visionpool.results import ClassifyResult
from visionpool_server.api.answers import describe
from visionpool_server.backends import Source, get_backend
from visionpool_server.backends.onnxruntime.endings import endings
from visionpool_server.families import FamilySpec, Options, build_family
from visionpool_server.imaging.antialias import resampled
from visionpool_server.imaging.recipe import Arithmetic, CenterCrop, Geometry, Recipe, Resize, ResizeShort
from visionpool_server.models.labels import read_labels
from visionpool_server.models.paddle_classification import classification
from visionpool_server.models.preprocess import recipe_from

from tests import tiny_models
from tests.segmentation_models import BACKENDS, classifier, planes, run, served

Pixels = NDArray[np.uint8]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGENET: dict[str, Any] = {"normalize": {"mean": MEAN, "std": STD}}
PILLOW: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


# Resizing as Pillow does


def by_pillow(image: Pixels, size: tuple[int, int], kind: str) -> Pixels:
    """Columns first, then rows, as all versions before 13 do in one call."""
    wide = Image.fromarray(image).resize((size[1], image.shape[0]), PILLOW[kind])
    return np.asarray(wide.resize((size[1], size[0]), PILLOW[kind]))


@given(
    before=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    after=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    kind=st.sampled_from(sorted(PILLOW)),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_resampling_is_pillows_to_the_last_bit(
    before: tuple[int, int], after: tuple[int, int], kind: Any, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*before, 3), np.uint8)
    assert np.array_equal(resampled(image, after, kind), by_pillow(image, after, kind))


def test_a_large_picture_is_resampled_band_by_band_to_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 256, (900, 1300, 3), np.uint8)
    assert np.array_equal(resampled(image, (256, 369), "bilinear"), by_pillow(image, (256, 369), "bilinear"))


def test_one_call_of_any_pillow_differs_by_1_at_most() -> None:
    for seed, size in enumerate([(480, 640), (640, 480), (300, 1000), (97, 61)]):
        image = tiny_models.picture(*size, seed=seed)
        ours = resampled(image, (64, 85), "bilinear").astype(int)
        theirs = np.asarray(Image.fromarray(image).resize((85, 64), PILLOW["bilinear"])).astype(int)
        assert np.abs(ours - theirs).max() <= 1


def torchvision(image: Pixels, short: int, size: int) -> Pixels:
    """`Resize(short)`, `CenterCrop(size)` of torchvision.transforms on Pillow pictures."""
    height, width = image.shape[:2]
    tall = width <= height
    after = (int(short * height / width), short) if tall else (short, int(short * width / height))
    small = by_pillow(image, after, "bilinear")
    top, left = (round((side - size) / 2.0) for side in small.shape[:2])
    return small[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (333, 500), (224, 224), (96, 131), (501, 375)])
def test_torchvisions_preprocessing_is_right_to_the_pixel(size: tuple[int, int]) -> None:
    image = tiny_models.picture(*size)
    written = [
        {"resize_short": {"size": 256, "antialias": True, "rounding": "down"}},
        {"center_crop": {"size": 224, "rounding": "nearest"}},
    ]
    ours, geometry = recipe_from(written).prepare(image)
    assert np.array_equal(ours, torchvision(image, 256, 224))
    assert isinstance(geometry, Geometry)


# PaddleClas' transforms


def paddle_file(*transforms: dict[str, Any], finish: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"PreProcess": {"transform_ops": list(transforms)}, "PostProcess": finish}


NORMALIZE_IMAGE = {"NormalizeImage": {"scale": "1.0/255.0", "mean": MEAN, "std": STD, "order": "", "channel_num": 3}}


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        ([{"ResizeImage": {"size": [48, 32], "backend": "cv2"}}], Recipe((Resize((32, 48)),), Arithmetic(1.0))),
        (
            [{"ResizeImage": {"resize_short": 256, "interpolation": "bicubic", "backend": "pil"}}, {"CropImage": 224}],
            None,
        ),
        (
            [
                {"DecodeImage": {"to_rgb": False, "channel_first": False}},
                {"ResizeImage": {"resize_short": 256, "interpolation": "bicubic", "backend": "pil"}},
                {"CropImage": {"size": 224}},
                NORMALIZE_IMAGE,
                {"ToCHWImage": None},
            ],
            Recipe(
                (ResizeShort(256, "cubic", antialias=True), CenterCrop((224, 224))),
                Arithmetic(1 / 255, tuple(MEAN), tuple(STD), "bgr"),
            ),
        ),
        (
            [{"ResizeImage": {"size": 32, "interpolation": 2, "backend": "pil"}}, {"NormalizeImage": None}],
            Recipe((Resize((32, 32), antialias=True),), Arithmetic(1 / 255, tuple(MEAN), tuple(STD))),
        ),
        (
            [{"ResizeImage": {"size": 32, "backend": "pil"}}],  # Pillow's own habit
            Recipe((Resize((32, 32), interpolation="cubic", antialias=True),), Arithmetic(1.0)),
        ),
        (
            [{"ResizeImage": {"size": 32, "interpolation": 2}}, {"NormalizeImage": {"mean": [0.5], "scale": 1}}],
            Recipe((Resize((32, 32), interpolation="cubic"),), Arithmetic(1.0, (0.5,) * 3, tuple(STD))),
        ),
        (
            [
                {"Resize": {"size": 256}},
                {"CenterCrop": {"size": 224}},
                {"ToTensor": None},
                {"Normalize": {"mean": MEAN, "std": STD}},
            ],
            Recipe(
                (ResizeShort(256, rounding="down"), CenterCrop((224, 224), "nearest")),
                Arithmetic(1 / 255, tuple(MEAN), tuple(STD)),
            ),
        ),
        ([{"Resize": {"size": [20, 30]}}], Recipe((Resize((20, 30)),), Arithmetic(1.0))),
        ([], Recipe((), Arithmetic(1.0))),
    ],
)
def test_transform_ops_become_a_recipe(transforms: list[dict[str, Any]], expected: Recipe | None) -> None:
    if expected is None:
        with pytest.raises(InvalidModel, match="CropImage: a map of keys"):
            classification(paddle_file(*transforms))
        return
    assert recipe_from(classification(paddle_file(*transforms)).preprocess or ()) == expected


@pytest.mark.parametrize(
    ("transforms", "finish", "says"),
    [
        ([{"RandCropImage": {"size": 224}}], None, "'RandCropImage' is not known"),
        ([{"NormalizeImage": {"channel_num": 4}}], None, "channel_num 4"),
        ([{"ResizeImage": {"size": 8, "interpolation": "random"}}], None, "interpolation 'random'"),
        ([], {"VehicleAttribute": {"color_threshold": 0.5}}, "'VehicleAttribute' is not served"),
        ([], {"MultiLabelThreshOutput": {"threshold": {"default": 0.5, 3: 0.7}}}, "from class to class"),
        ([], {"ThreshOutput": {"threshold": 2}}, "score_threshold"),
        ([], {"ThreshOutput": {"default_label_index": -1}}, "default_class"),
    ],
)
def test_what_is_not_served_is_said(transforms: list[dict[str, Any]], finish: Any, says: str) -> None:
    with pytest.raises(InvalidModel, match=says):
        classification(paddle_file(*transforms, finish=finish))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_paddle_file_with_pillows_backend_is_right_to_the_pixel(tmp_path: Path, backend: str) -> None:
    """The scores would not tell a pixel that is off: so the graph gives the prepared picture's own mean and extremes."""
    resize = {"resize_short": 36, "interpolation": "bilinear", "backend": "pil"}
    data = paddle_file(
        {"DecodeImage": {"to_rgb": True, "channel_first": False}},
        {"ResizeImage": resize},
        {"CropImage": {"size": 32}},
        NORMALIZE_IMAGE,
        {"ToCHWImage": None},
        finish={"main_indicator": "Topk", "Topk": {"topk": 6}, "SavePreLabel": {"save_dir": "./pre_label/"}},
    )
    (tmp_path / "inference_cls.yaml").write_text(yaml.safe_dump(data))
    model = classifier(tmp_path / "m.onnx", "softmax")
    with served(tmp_path, backend) as predict:
        for seed, size in enumerate([(97, 61), (200, 300), (36, 36), (20, 25)]):
            image = tiny_models.picture(*size, seed=seed)
            ratio = 36 / min(size)
            small = by_pillow(image, (round(size[0] * ratio), round(size[1] * ratio)), "bilinear")
            top, left = (small.shape[0] - 32) // 2, (small.shape[1] - 32) // 2
            crop = small[top : top + 32, left : left + 32]
            prepared, _ = predict.model.family.recipe.prepare(image)  # type: ignore[attr-defined]
            assert np.array_equal(prepared, crop)
            expected = run(model, planes(crop, MEAN, STD))[0]
            assert_scores(predict(image), expected, np.argsort(-expected))


def assert_scores(result: Any, scores: NDArray[Any], ids: Any) -> None:
    assert isinstance(result, ClassifyResult)
    assert sorted(result.label_ids) == sorted(int(i) for i in ids)
    assert list(result.scores) == sorted(result.scores, reverse=True)
    assert np.abs(np.array(result.scores) - scores[list(result.label_ids)]).max(initial=0) < 1e-3


# What the end of a graph tells


def softmax(values: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def write(folder: Path, ending: str, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"task": "classification", "preprocess": [{"resize": 32}, IMAGENET], **more}
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    return classifier(folder / "m.onnx", ending)


def prepared(image: Pixels) -> NDArray[np.float32]:
    return planes(cv2.resize(image, (32, 32)), MEAN, STD)


IMAGES = [tiny_models.picture(*size, seed=seed) for seed, size in enumerate([(32, 32), (97, 61), (20, 200), (64, 64)])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("ending", "said", "shown"),
    [
        ("logits", {}, "softmax"),
        ("softmax", {}, "none"),
        ("softmax", {"activation": "softmax"}, "none"),  # not twice
        ("sigmoid", {}, "none"),
        ("sigmoid", {"activation": "sigmoid"}, "none"),
        ("averaged", {}, "by their values"),
        ("averaged", {"activation": "softmax"}, "softmax"),
        ("averaged", {"activation": "none"}, "none"),
        ("vector", {}, "by their values"),
        ("logits", {"activation": "sigmoid"}, "sigmoid"),
        ("logits", {"multi_label": True}, "sigmoid"),
        ("averaged", {"multi_label": True}, "by their values"),
    ],
)
def test_what_makes_scores_of_the_outputs_is_found_out_and_shown(
    tmp_path: Path, ending: str, said: dict[str, Any], shown: str, backend: str
) -> None:
    model = write(tmp_path, ending, postprocess=said)
    several = ending == "sigmoid" or "multi_label" in said or said.get("activation") == "sigmoid"
    with served(tmp_path, backend) as predict:
        assert describe(predict.model)["activation"] == shown  # type: ignore[attr-defined]
        for image in IMAGES:
            raw = run(model, prepared(image)).ravel()
            if shown == "none":
                scores = raw
            elif several:
                scores = 1 / (1 + np.exp(-raw))
            else:
                scores = softmax(raw)
            best = np.flatnonzero(scores > 0.5) if several else np.argsort(-scores)[:5]
            assert_scores(predict(image), scores, best)
            assert_scores(
                predict(image, score_threshold=0.0, top_k=2),
                scores,
                np.argsort(-scores)[:2][scores[np.argsort(-scores)[:2]] > 0],
            )


@pytest.mark.parametrize(
    ("ending", "shown"), [("logits", "sigmoid"), ("averaged", "by their values"), ("sigmoid", "none")]
)
def test_one_class_alone_is_scored_by_sigmoid(tmp_path: Path, ending: str, shown: str) -> None:
    """Its share of all classes would be 1 in every picture."""
    write(tmp_path, ending)
    model = classifier(tmp_path / "m.onnx", ending, classes=1)
    with served(tmp_path, "openvino") as predict:
        assert describe(predict.model)["activation"] == shown  # type: ignore[attr-defined]
        for image in IMAGES:
            raw = run(model, prepared(image)).ravel()
            logits_seen = ending == "logits" or (ending == "averaged" and not -0.5 <= raw[0] <= 1.5)
            scores = 1 / (1 + np.exp(-raw)) if logits_seen else raw
            assert_scores(predict(image), scores, [0] if scores[0] > 0.5 else [])


def test_of_several_outputs_model_yaml_says_which_has_the_scores() -> None:
    shapes: dict[str, tuple[int | None, ...]] = {"features": (1, 64), "scores": (1, 1, 1, 3)}
    spec = FamilySpec({"x": (1, 3, 8, 8)}, shapes, recipe=Recipe((Resize((8, 8)),)), endings={"scores": "softmax"})
    with pytest.raises(InvalidModel, match="one output") as refused:
        build_family("classification", spec)
    assert "postprocess.output" in (refused.value.hint or "")
    model = build_family("classification", replace(spec, settings={"output": "scores"}))
    assert model.class_count == 3
    outputs = {"features": np.ones(64, np.float32), "scores": np.array([[[0.25, 0.5, 0.25]]], np.float32)}
    result = model.finish(outputs, Geometry(8, 8), Options(top_k=1))
    assert isinstance(result, ClassifyResult)
    assert (result.label_ids, result.scores) == ((1,), (0.5,))


def test_a_distribution_from_a_graph_that_tells_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    graph = tiny_models.Graph()
    pooled = graph.add("GlobalAveragePool", graph.input("x", ["batch", 3, 8, 8]))
    powers = graph.add("Exp", graph.add("Flatten", pooled))
    total = graph.add("ReduceSum", powers, graph.constant([1], np.int64), keepdims=1)
    graph.add("Div", powers, total, output="y")
    graph.output("y", ["batch", 3])
    model = graph.save(tmp_path / "m.onnx")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"task": "classification", "preprocess": [{"resize": 8}]}))
    image = tiny_models.picture(8, 8)
    scores = run(model, planes(image, 0, 1))[0]
    with served(tmp_path, "openvino") as predict:
        assert_scores(predict(image), scores, range(3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_behind_a_softmax_makes_it_none(tmp_path: Path, backend: str) -> None:
    graph = tiny_models.Graph()
    flat = graph.add("Flatten", graph.input("x", ["batch", 3, 8, 8]))
    linear = graph.add("Add", graph.add("MatMul", flat, graph.weights(192, 4)), graph.weights(4))
    graph.add("Identity", linear, output="linear")
    shares = graph.add("Softmax", linear, axis=1)
    graph.add("Add", shares, graph.constant([1.0]), output="shifted")
    graph.add("Cast", graph.add("ArgMax", linear, axis=1), output="best", to=1)
    graph.add("Relu", linear, output="positive")
    for name in ("linear", "shifted", "positive"):
        graph.output(name, ["batch", 4])
    graph.output("best", ["batch", 1])
    model = graph.save(tmp_path / "m.onnx")
    known = dict(get_backend(backend).read(Source(model)).endings)
    assert known == {"linear": "logits", "best": "argmax"}


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_whatever_a_file_holds_its_end_is_just_not_known(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "m.onnx"
    path.write_bytes(data)
    assert endings(path, ["y"]) == {}


@pytest.mark.parametrize("name", ["mnist", "lenet_tf"])
def test_real_exports_tell_it_too(testdata: Path, name: str) -> None:
    (weights,) = [path for path in (testdata / "models" / name).iterdir() if path.suffix in (".onnx", ".pb")]
    (ending,) = get_backend("openvino").read(Source(weights)).endings.values()
    assert ending == {"mnist": "logits", "lenet_tf": "softmax"}[name]


# PaddleClas' ways to finish


def finished(folder: Path, ending: str, finish: dict[str, Any], classes: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = paddle_file({"ResizeImage": {"size": 32}}, NORMALIZE_IMAGE, finish=finish)
    (folder / "inference_cls.yaml").write_text(yaml.safe_dump(data))
    return classifier(folder / "m.onnx", ending, classes=classes)


def test_topk_takes_its_labels_from_a_list_or_a_file(tmp_path: Path) -> None:
    finished(tmp_path / "a", "softmax", {"Topk": {"topk": 2, "label_list": ["a", "b", "c"]}}, 3)
    finished(tmp_path / "b", "softmax", {"Topk": {"topk": 1, "class_id_map_file": "../ppcls/utils/names.txt"}}, 3)
    (tmp_path / "b" / "names.txt").write_text("1, cat\n0, dog with a hat\n2, cow\n")
    with served(tmp_path / "a", "openvino") as predict:
        assert predict.model.labels == ("a", "b", "c")  # type: ignore[attr-defined]
        assert len(predict(IMAGES[0]).labels) == 2
    with served(tmp_path / "b", "openvino") as predict:
        assert predict.model.labels == ("dog with a hat", "cat", "cow")  # type: ignore[attr-defined]


def test_a_file_of_labels_that_is_not_there_leaves_numbers(tmp_path: Path) -> None:
    finished(tmp_path, "softmax", {"Topk": {"topk": 1, "class_id_map_file": "../ppcls/utils/names.txt"}}, 3)
    with served(tmp_path, "openvino") as predict:
        assert "whose labels '../ppcls/utils/names.txt' are not there" in predict.model.source  # type: ignore[attr-defined]
        result = predict(IMAGES[0])
        assert result.labels == (str(result.label_ids[0]),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 a b\n1 c\n", ("a b", "c")),
        ("1\tx\n0\ty\n", ("y", "x")),
        ("0:x\n1:y\n", ("x", "y")),
        ("1 a\n2 b\n", ("1 a", "2 b")),  # no numbering from 0: names that begin with a number
        ("a\nb\n", ("a", "b")),
        ("0\n1\n", ("0", "1")),
    ],
)
def test_numbered_lines_lose_their_numbers(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "labels.txt").write_text(text)
    assert read_labels(tmp_path / "labels.txt") == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_multi_label_gives_every_class_over_the_threshold(tmp_path: Path, backend: str) -> None:
    names = [f"n{i}" for i in range(12)]
    model = finished(tmp_path, "sigmoid", {"MultiLabelThreshOutput": {"threshold": 0.4, "label_list": names}}, 12)
    with served(tmp_path, backend) as predict:
        counts = set()
        for image in IMAGES:
            scores = run(model, prepared(image)).ravel()
            over = np.flatnonzero(scores > 0.4)
            result = predict(image)
            assert_scores(result, scores, over)
            assert result.labels == tuple(names[i] for i in result.label_ids)
            counts.add(len(over))
            assert_scores(predict(image, score_threshold=0.9), scores, np.flatnonzero(scores > 0.9))
            assert len(predict(image, top_k=1).label_ids) == 1
        assert len(counts) > 1


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
def test_a_binary_threshold_answers_with_one_of_two_labels(tmp_path: Path, threshold: float) -> None:
    finish = {"ThreshOutput": {"threshold": threshold, "label_0": "nobody", "label_1": "someone"}}
    model = finished(tmp_path, "softmax", finish, 2)
    with served(tmp_path, "openvino") as predict:
        for image in IMAGES:
            scores = run(model, prepared(image)).ravel()
            wanted = int(scores[1] >= threshold)
            result = predict(image)
            assert (result.label_ids, result.labels) == ((wanted,), (("nobody", "someone")[wanted],))
            assert result.scores[0] == pytest.approx(scores[wanted], abs=1e-3)


def test_of_several_classes_the_best_counts_only_over_the_threshold(tmp_path: Path) -> None:
    model = finished(tmp_path, "softmax", {"ThreshOutput": {"threshold": 0.6, "default_label_index": 2}}, 4)
    with served(tmp_path, "openvino") as predict:
        for image in IMAGES:
            scores = run(model, prepared(image)).ravel()
            wanted = int(scores.argmax()) if scores.max() > 0.6 else 2
            assert predict(image).label_ids == (wanted,)


def test_a_default_class_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "softmax", postprocess={"default_class": 6})
    with (
        pytest.raises(InvalidModel, match="default_class is 6, and the model has 6 classes"),
        served(tmp_path, "openvino"),
    ):
        pass
