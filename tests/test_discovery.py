"""Models on disk: where they are found, what their own files say of them, and what the operator reads where that fails."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from visionpool.errors import InvalidModel, SetupError
from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.imaging.recipe import (
    Arithmetic,
    CenterCrop,
    Letterbox,
    Pad,
    PadToStride,
    Recipe,
    Resize,
    ResizeShort,
)
from visionpool_server.models import paddle
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.discovery import discover
from visionpool_server.models.files import find_models
from visionpool_server.models.guess import guess_family
from visionpool_server.models.loader import Defaults, Model, load_model
from visionpool_server.models.preprocess import recipe_from
from visionpool_server.models.repository import Repository, load_all, locate

from tests import tiny_models

NAMES = {0: "cat", 1: "dog", 2: "cow"}
ULTRALYTICS = {"names": str(NAMES), "task": "detect", "stride": "32", "imgsz": "[64, 64]", "author": "Ultralytics"}
ONE_WORKER = Defaults(workers=1)


def load(path: Path, **defaults: Any) -> Model:
    (files,) = find_models(path)
    return load_model(files, Defaults(**{"workers": 1, **defaults}))


def recipe_of(model: Model) -> Recipe:
    assert model.family
    return model.family.recipe


def refusal(path: Path, **defaults: Any) -> str:
    with pytest.raises(InvalidModel) as caught:
        load(path, **defaults)
    return str(caught.value)


def config(folder: Path, content: object, name: str = "model.yaml") -> None:
    (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")


# Ultralytics


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("names", [str(NAMES), str(list(NAMES.values())), str(tuple(NAMES.values()))])
def test_an_ultralytics_onnx_needs_no_configuration(tmp_path: Path, names: str, backend: str) -> None:
    model = load(
        tiny_models.yolov8(tmp_path / "street.onnx", metadata={**ULTRALYTICS, "names": names}), backend=backend
    )
    assert (model.name, model.task, model.family_name) == ("street", "detection", "yolov8")
    assert model.labels == ("cat", "dog", "cow")
    assert recipe_of(model).steps == (Letterbox((64, 64)),)
    assert model.source == "the file's metadata"


def test_yolov5_says_names_and_stride_only(tmp_path: Path) -> None:
    metadata = {"names": str(list(NAMES.values())), "stride": "32"}
    model = load(tiny_models.yolov5(tmp_path / "old.onnx", metadata=metadata))
    assert (model.family_name, model.labels) == ("yolov5", ("cat", "dog", "cow"))


def test_an_ultralytics_classifier_is_known_by_its_task(tmp_path: Path) -> None:
    metadata = {"names": str({i: f"n{i}" for i in range(5)}), "task": "classify", "imgsz": "[32, 32]"}
    model = load(tiny_models.classifier(tmp_path / "c.onnx", metadata=metadata))
    assert (model.task, model.family_name) == ("classification", "classification")
    assert recipe_of(model).steps == (
        ResizeShort(32, antialias=True, rounding="down"),
        CenterCrop((32, 32), rounding="nearest"),
    )


def test_a_yolov5_classifier_says_names_and_stride_only_and_has_its_own_preprocessing(tmp_path: Path) -> None:
    metadata = {"names": str({i: f"n{i}" for i in range(5)}), "stride": "32"}
    model = load(tiny_models.classifier(tmp_path / "c.onnx", metadata=metadata))
    assert (model.family_name, model.labels[1]) == ("classification", "n1")
    picture = np.random.default_rng(0).integers(0, 255, (61, 100, 3), np.uint8)
    seen, _ = recipe_of(model).prepare(picture)
    assert np.array_equal(seen, cv2.resize(picture[:, 19:80], (32, 32), interpolation=cv2.INTER_LINEAR))
    assert recipe_of(model).arithmetic == Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_imgsz_gives_the_size_that_the_graph_leaves_open(tmp_path: Path) -> None:
    metadata = {"names": "['a']", "task": "classify", "imgsz": "[48, 32]"}
    model = load(tiny_models.classifier(tmp_path / "c.onnx", size=None, classes=1, metadata=metadata))
    assert recipe_of(model).output_size() == (48, 32)


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    """A YOLOv8 in OpenVINO's own format, with no metadata."""
    plain = tiny_models.yolov8(tmp_path / "plain.onnx")
    (tmp_path / "street").mkdir()
    openvino.save_model(openvino.Core().read_model(plain), tmp_path / "street" / "best.xml")
    return tmp_path / "street"


def test_metadata_yaml_beside_an_ir_speaks_for_it(ir: Path) -> None:
    config(ir, {"names": NAMES, "task": "detect", "imgsz": [64, 64], "stride": 32}, "metadata.yaml")
    for path in (ir, ir / "best.xml"):
        model = load(path)
        assert (model.name, model.source) == ("street", "metadata.yaml")
        assert model.labels == ("cat", "dog", "cow")


def test_an_ir_without_its_bin_is_refused_with_its_name(ir: Path) -> None:
    (ir / "best.bin").unlink()
    assert re.search(r"best\.(xml|bin)", refusal(ir))


HOSTILE = {
    "code": "__import__('pathlib').Path('pwned').write_text('x')",
    "code in a map": "{0: __import__('pathlib').Path('pwned').write_text('x')}",
    "lambda": "(lambda: open('pwned', 'w'))()",
    "huge id": "{1000000000000: 'cat'}",
    "negative id": "{-1: 'cat'}",
    "infinite id": "{1e999: 'cat'}",
    "named ids": "{'zero': 'cat'}",
    "a number": "3",
    "a set": "{'cat', 'dog'}",
    "a nested map": "{0: {1: {2: 'cat'}}}",
    "unhashable": "{[]: 'cat'}",
    "deep": "[" * 500,
    "deeper": "-" * 200_000 + "1",
    "garbage": "{0: 'cat'",
    "null": "\0",
    "empty": "",
    "long number": "{" + "9" * 5000 + ": 'cat'}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_refused_and_never_evaluated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    signature = Signature((), (TensorSpec("y", (1, 7, 64), "float32"),), {"names": HOSTILE[kind], "task": "detect"})
    with pytest.raises(InvalidModel, match=r"names|labels|name of a class"):
        discover(tmp_path, signature)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "imgsz", ["open('pwned', 'w')", "[640]", "[640, 0]", "[1, 2, 3]", "'x'", "{", "-1", "[1e9, 1]"]
)
def test_a_hostile_imgsz_is_refused(imgsz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    signature = Signature((), (TensorSpec("y", (1, 7, 64), "float32"),), {**ULTRALYTICS, "imgsz": imgsz})
    with pytest.raises(InvalidModel, match=r"imgsz|input_size"):
        discover(tmp_path, signature)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"names": NAMES, "task": "track"},
            r"task is 'track', which is not served yet \(served: detect, classify, .*; with task: tensor",
        ),
        ({"names": NAMES, "task": ["detect"]}, r"task is \['detect'\]"),
        ({"names": {0: "cat"}}, r"names 1 classes, but its outputs fit neither YOLOv5 nor YOLOv8: \[\(None, 7, 64\)\]"),
        ({"names": 3}, r"names"),
        ({"names": NAMES, "imgsz": "big"}, r"input_size"),
        ([1, 2], r"a map of keys is expected"),
        ("text", r"a map of keys is expected"),
        (None, r"a map of keys is expected"),
    ],
)
def test_a_metadata_yaml_that_makes_no_sense_is_refused(tmp_path: Path, content: object, says: str) -> None:
    tiny_models.yolov8(tmp_path / "m.onnx")
    config(tmp_path, content, "metadata.yaml")
    message = refusal(tmp_path)
    assert re.search(says, message), message


# What only the tensors say


@pytest.mark.parametrize(
    ("shapes", "classes", "family"),
    [
        ([(1, 25200, 85)], None, "yolov5"),
        ([(1, 25200, 85)], 80, "yolov5"),
        ([(1, 84, 8400)], None, "yolov8"),
        ([(None, 84, None)], 80, "yolov8"),
        ([(None, 84, None)], None, None),
        ([(1, 84, 8400)], 3, None),
        ([(1, 1000)], None, None),
        ([(1, 84, 8400), (1, 32, 160, 160)], 80, "yolo_segmentation"),
        ([], None, None),
    ],
)
def test_a_detector_is_known_by_the_shape_of_its_output(
    shapes: list[tuple[int | None, ...]], classes: int | None, family: str | None
) -> None:
    outputs = tuple(TensorSpec(str(i), shape, "float32") for i, shape in enumerate(shapes))
    picture = TensorSpec("images", (1, 3, 640, 640), "float32")
    assert guess_family(Signature((picture,), outputs), classes) == family


@pytest.mark.parametrize(("build", "family"), [(tiny_models.yolov5, "yolov5"), (tiny_models.yolov8, "yolov8")])
def test_a_detector_that_says_nothing_is_served_with_numbers_for_labels(
    tmp_path: Path, build: Callable[[Path], Path], family: str
) -> None:
    model = load(build(tmp_path / "m.onnx"))
    assert (model.family_name, model.labels) == (family, ("0", "1", "2"))
    assert model.source == "the shape of its outputs"


def test_where_nothing_is_known_plain_tensors_are_served_and_the_advice_says_what_to_write(tmp_path: Path) -> None:
    """And what it says to write is right: with it the model is a classifier."""
    tiny_models.classifier(tmp_path / "mystery" / "m.onnx")
    model = load(tmp_path / "mystery")
    assert (model.task, model.family_name, model.family) == ("tensor", "tensor", None)
    assert model.source == "its tensors alone"
    advice = re.search(r"beside it: (\{.*\})$", model.advice or "")
    assert advice
    written = yaml.safe_load(advice[1])
    written |= {"labels": list("abcde"), "preprocess": [{"resize_short": 36}, {"center_crop": 32}]}
    config(tmp_path / "mystery", written)
    model = load(tmp_path / "mystery")
    assert (model.family_name, model.advice) == ("classification", None)


def test_a_vision_task_that_several_families_do_is_not_guessed_at(tmp_path: Path) -> None:
    tiny_models.picodet(tmp_path / "m.onnx")
    config(tmp_path, {"task": "detection"})
    message = refusal(tmp_path)
    assert "what kind of model this is" in message
    assert "family: picodet" in message


# Paddle


def detection_config(**changes: Any) -> dict[str, Any]:
    return {
        "arch": "PicoDet",
        "draw_threshold": 0.5,
        "label_list": ["person", "bicycle", 3],
        "Preprocess": [
            {"type": "Resize", "target_size": [64, 96], "keep_ratio": False, "interp": 2},
            {"type": "NormalizeImage", "is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            {"type": "Permute"},
        ],
        **changes,
    }


def test_infer_cfg_becomes_labels_recipe_and_threshold() -> None:
    bundle = paddle.detection(detection_config())
    assert (bundle.task, bundle.family, bundle.labels) == ("detection", "paddle_detection", ("person", "bicycle", "3"))
    assert bundle.postprocess.score_threshold == 0.5
    recipe = recipe_from(bundle.preprocess or ())
    assert recipe.steps == (Resize((64, 96), interpolation="cubic"),)
    assert recipe.arithmetic == Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"type": "Resize", "target_size": 64, "interp": 1, "keep_ratio": False}, Resize((64, 64))),
        ({"type": "Resize", "target_size": [800, 1333], "keep_ratio": True}, ResizeShort(800, limit=1333)),
        ({"type": "Resize", "target_size": [1333, 800]}, ResizeShort(800, limit=1333)),
        ({"type": "PadStride", "stride": 32}, PadToStride(32)),
        ({"type": "Pad", "size": [640, 320], "fill_value": [114.0, 114.0, 114.0]}, Pad((640, 320), 114)),
        ({"type": "LetterBoxResize", "target_size": [608, 1088]}, Letterbox((608, 1088), 128, "area")),
    ],
)
def test_paddle_detections_steps_are_ours(operation: dict[str, Any], expected: object) -> None:
    bundle = paddle.detection(detection_config(Preprocess=[operation]))
    assert recipe_from(bundle.preprocess or ()).steps == (expected,)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"is_scale": False, "mean": [1, 2, 3], "std": [4, 5, 6]}, Arithmetic(1.0, (1, 2, 3), (4, 5, 6))),
        ({"norm_type": "none", "mean": [9, 9, 9], "std": [9, 9, 9]}, Arithmetic()),
        ({"norm_type": "none", "is_scale": False}, Arithmetic(1.0)),
    ],
)
def test_paddle_detections_normalisation_is_ours(operation: dict[str, Any], expected: Arithmetic) -> None:
    bundle = paddle.detection(detection_config(Preprocess=[{"type": "NormalizeImage", **operation}]))
    assert recipe_from(bundle.preprocess or ()).arithmetic == expected


def classification_config(**changes: Any) -> dict[str, Any]:
    normalize = {
        "scale": "1.0/255.0",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "order": "",
        "channel_num": 3,
        **changes,
    }
    return {
        "Global": {"batch_size": 1},
        "PreProcess": {
            "transform_ops": [
                {"ResizeImage": {"resize_short": 36}},
                {"CropImage": {"size": 32}},
                {"NormalizeImage": normalize},
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {"main_indicator": "Topk", "Topk": {"topk": 3, "class_id_map_file": "labels.txt"}},
    }


@pytest.mark.parametrize("scale", ["1.0/255.0", "1/255", " 1. / 255. ", 1 / 255, "0.00392156862745098", None])
def test_a_scale_written_as_a_quotient_is_parsed(scale: object) -> None:
    bundle = paddle.classification(classification_config(scale=scale))
    recipe = recipe_from(bundle.preprocess or ())
    assert recipe.arithmetic.scale == pytest.approx(1 / 255)
    assert recipe.steps == (ResizeShort(36), CenterCrop((32, 32)))


@pytest.mark.parametrize(
    "scale",
    [
        "__import__('os').system('touch pwned')",
        "1/0",
        "1/255/2",
        "1e999999",
        "nan",
        "9**9**9",
        "",
        [],
        {},
        10**4000,
        -1,
    ],
)
def test_a_hostile_scale_is_refused_and_never_evaluated(
    scale: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidModel):
        recipe_from(paddle.classification(classification_config(scale=scale)).preprocess or ())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "expected"), [([64, 32], (32, 64)), (48, (48, 48))]
)  # PaddleClas writes (width, height)
def test_paddle_clas_sizes_are_width_first(size: object, expected: tuple[int, int]) -> None:
    operations = [{"ResizeImage": {"size": size, "interpolation": "bicubic"}}, {"CropImage": {"size": size}}]
    bundle = paddle.classification({"PreProcess": {"transform_ops": operations}})
    recipe = recipe_from(bundle.preprocess or ())
    assert recipe.steps == (Resize(expected, interpolation="cubic"), CenterCrop(expected))


@pytest.mark.parametrize(
    ("parse", "data", "says"),
    [
        (paddle.detection, detection_config(Preprocess=[{"type": "Warp"}]), "'Warp' is not known"),
        (paddle.detection, detection_config(Preprocess="all"), "Preprocess: a list is expected"),
        (paddle.detection, detection_config(Preprocess=["Resize"]), "a map of keys is expected"),
        (paddle.detection, detection_config(Preprocess=[{"type": "Resize"}]), "a size of one or two numbers"),
        (paddle.detection, detection_config(label_list={"a": 1}), "label_list: a list is expected"),
        (paddle.detection, detection_config(label_list=[["a"]]), "name of a class is a list"),
        (paddle.detection, detection_config(draw_threshold="high"), "postprocess.score_threshold"),
        (paddle.classification, {"PreProcess": []}, "PreProcess: a map of keys is expected"),
        (paddle.classification, {"PreProcess": {"transform_ops": [{"Swirl": {}}]}}, "'Swirl' is not known"),
        (paddle.classification, {"PreProcess": {"transform_ops": ["ToCHWImage"]}}, "a map of keys is expected"),
        (paddle.classification, {"PostProcess": {"Topk": {"topk": 0}}}, "postprocess.top_k"),
    ],
)
def test_a_paddle_file_that_makes_no_sense_is_refused(
    parse: Callable[[dict[str, Any]], Bundle], data: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidModel, match=says) as caught:
        parse(data)
    assert (
        "infer_cfg.yml" in str(caught.value)
        or "inference_cls.yaml" in str(caught.value)
        or "size" in says
        or "name" in says
    )


WORDS = ["Preprocess", "type", "Resize", "NormalizeImage", "Pad", "PadStride", "LetterBoxResize", "target_size", "size"]
WORDS += ["PreProcess", "transform_ops", "ResizeImage", "CropImage", "mean", "std", "scale", "interp", "interpolation"]
WORDS += ["label_list", "draw_threshold", "PostProcess", "Topk", "topk", "class_id_map_file", "fill_value", "stride"]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 700), st.floats(), st.sampled_from([*WORDS, "1.0/0", "1/255", 10**4000])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.integers(0, 2)), inner, max_size=4),
    ),
    max_leaves=25,
)
STEPS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(WORDS)}, optional=dict.fromkeys(WORDS[5:], TREES)),
        st.dictionaries(st.sampled_from(WORDS), st.one_of(TREES, st.fixed_dictionaries({"size": TREES})), max_size=2),
        TREES,
    ),
    max_size=3,
)


@given(st.one_of(TREES.map(lambda tree: {"Preprocess": tree}), STEPS.map(lambda steps: {"Preprocess": steps})), TREES)
@settings(max_examples=300, deadline=None)
def test_whatever_infer_cfg_says_only_setup_errors_come_out(data: dict[str, Any], more: object) -> None:
    try:
        bundle = paddle.detection({**data, "label_list": more})
        recipe_from(bundle.preprocess or ())
    except SetupError as error:
        assert error.message


@given(STEPS, TREES, TREES)
@settings(max_examples=300, deadline=None)
def test_whatever_inference_cls_says_only_setup_errors_come_out(
    steps: list[Any], other: object, finish: object
) -> None:
    for data in (
        {"PreProcess": {"transform_ops": steps}, "PostProcess": finish},
        {"PreProcess": other, "PostProcess": {"Topk": finish}},
    ):
        try:
            bundle = paddle.classification(data)
            recipe_from(bundle.preprocess or ())
        except SetupError as error:
            assert error.message


@given(st.dictionaries(st.sampled_from(["names", "task", "imgsz", "stride"]), TREES))
@settings(max_examples=300, deadline=None)
def test_whatever_metadata_say_only_setup_errors_come_out(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "metadata"
    folder.mkdir(exist_ok=True)
    outputs = (TensorSpec("y", (1, 7, 64), "float32"),)
    (folder / "metadata.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    for signature, place in (
        (Signature((), outputs), folder),
        (Signature((), outputs, {key: repr(value) for key, value in data.items()}), folder / ".."),
    ):
        try:
            discover(place, signature)
        except SetupError as error:
            assert error.message


def test_a_paddle_folder_needs_no_configuration(testdata: Path) -> None:
    model = load(testdata / "models" / "picodet_s_320_paddle")
    assert (model.family_name, model.source) == ("paddle_detection", "infer_cfg.yml")
    assert model.labels[:2] == ("person", "bicycle")
    model = load(testdata / "models" / "squeezenet_paddle")
    assert (model.family_name, model.source) == ("classification", "inference_cls.yaml")
    assert model.labels[0].startswith("tench")


def test_pdmodel_without_its_pdiparams_is_refused_with_its_name(testdata: Path, tmp_path: Path) -> None:
    for name in ("inference.pdmodel", "inference_cls.yaml", "imagenet1k_label_list.txt"):
        shutil.copy(testdata / "models" / "squeezenet_paddle" / name, tmp_path)
    assert "inference.pd" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["squeezenet_saved_model", "squeezenet_tf", "squeezenet_ir", "lenet_tf"])
def test_tensorflow_and_ir_exports_load_with_a_few_lines_of_yaml(testdata: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(testdata / "models" / name, tmp_path / name)
    side = 28 if name == "lenet_tf" else 224
    config(
        tmp_path / name,
        {
            "task": "classification",
            "preprocess": [{"resize": side}],
            "runtime": {"shapes": {}},
        },
    )
    model = load(tmp_path / name)
    assert recipe_of(model).output_size() == (side, side)
    assert len(recipe_of(model).arithmetic.mean) == (1 if name == "lenet_tf" else 3)


# model.yaml over what was found


def test_model_yaml_overrides_what_was_discovered(tmp_path: Path) -> None:
    tiny_models.yolov8(tmp_path / "m" / "street.onnx", metadata=ULTRALYTICS)
    config(
        tmp_path / "m",
        {
            "name": "other",
            "labels": ["x", "y", "z"],
            "postprocess": {"iou_threshold": 0.3},
            "batching": {"sizes": [1, 2]},
        },
    )
    model = load(tmp_path / "m")
    assert (model.name, model.family_name, model.source) == ("other", "yolov8", "model.yaml")
    assert model.labels == ("x", "y", "z")
    assert model.bundle.postprocess.iou_threshold == 0.3
    assert model.bundle.task == "detection"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weights": "gone.onnx"}, r"weights: gone.onnx is not in"),
        ({"weights": "a\0b"}, r"weights: "),
        ({"labels": "gone.txt"}, r"labels: cannot read gone.txt"),
        ({"family": "picodet"}, r"pairs of 3-D outputs"),
        (
            {"family": "classification"},
            r"an output of \(pictures, numbers\) is expected; 'output0' is \(None, 7, 64\)",
        ),
        ({"preprocess": []}, r"leaves the size of pictures open, and input 'images' takes 64x64 .*resize: \[64, 64\]"),
        ({"preprocess": [{"resize_short": 64}]}, r"leaves the size of pictures open"),
        ({"preprocess": [{"letterbox": 32}]}, r"ends in pictures of 32x32 .* input 'images' takes 64x64 \(change"),
        (
            {"preprocess": [{"resize": 64}, {"gray": None}]},
            r"makes pictures grey, and input 'images' takes three channels",
        ),
        (
            {"runtime": {"shapes": {"image": [1, 3, 64, 64]}}},
            r"runtime.shapes names 'image'; the model's inputs are images",
        ),
        ({"runtime": {"shapes": {"images": [1, 3, 64]}}}, r"3 dimensions"),
        ({"runtime": {"device": "GPU.7"}}, r"no device 'GPU.7' on this machine; it finds CPU"),
        ({"runtime": {"options": {"NO_SUCH_OPTION": 1}}}, r"NO_SUCH_OPTION"),
        ({"lables": []}, r"unknown key 'lables'; allowed here: name"),
    ],
)
def test_a_model_yaml_that_does_not_fit_the_file_is_explained(tmp_path: Path, content: Any, says: str) -> None:
    tiny_models.yolov8(tmp_path / "m" / "street.onnx", metadata=ULTRALYTICS)
    config(tmp_path / "m", content)
    (files,) = find_models(tmp_path / "m")
    with pytest.raises(SetupError) as caught:
        load_model(files, ONE_WORKER)
    assert caught.value.message.startswith("m: ")
    assert re.search(says, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    "preprocess", [None, [{"resize": 32}], [{"resize": 32}, {"gray": None}, {"normalize": {"mean": 0.5}}]]
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_model_of_one_channel_gets_grey_pictures(tmp_path: Path, layout: str, preprocess: Any) -> None:
    tiny_models.classifier(tmp_path / "m.onnx", channels=1, layout=layout)
    config(tmp_path, {"task": "classification", **({"preprocess": preprocess} if preprocess else {})})
    model = load(tmp_path)
    assert model.family
    prepared = model.family.prepare(tiny_models.picture(40, 50))
    assert prepared.tensors["x"].shape == (32, 32, 1)
    assert len(recipe_of(model).arithmetic.mean) == 1


# Where models are found


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def found(path: Path) -> list[tuple[str, str, str | None]]:
    return [(m.name, m.version, m.weights.name if m.weights else None) for m in find_models(path)]


@pytest.mark.parametrize(
    ("names", "path", "expected"),
    [
        (["yolo.onnx"], "yolo.onnx", [("yolo", "1", "yolo.onnx")]),
        (["a/yolo.onnx"], "a", [("a", "1", "yolo.onnx")]),
        (["a/model.onnx"], "a/model.onnx", [("a", "1", "model.onnx")]),
        (["a/inference.pdmodel", "a/inference.pdiparams"], "a", [("a", "1", "inference.pdmodel")]),
        (["a/best.xml", "a/best.bin"], "a/best.xml", [("a", "1", "best.xml")]),
        (["a/saved_model.pb", "a/variables/x"], "a", [("a", "1", "a")]),
        (["a/saved_model.pb", "a/variables/x"], "a/saved_model.pb", [("a", "1", "a")]),
        (
            ["r/a/x.onnx", "r/b/y.tflite", "r/c.pb"],
            "r",
            [("a", "1", "x.onnx"), ("b", "1", "y.tflite"), ("c", "1", "c.pb")],
        ),
        (["r/x.onnx", "r/y.onnx"], "r", [("x", "1", "x.onnx"), ("y", "1", "y.onnx")]),
        (["a/1/m.onnx", "a/2/m.onnx", "a/10/m.onnx"], "a", [("a", "10", "m.onnx")]),
        (["a/1/m.onnx", "a/2/notes.txt"], "a", [("a", "1", "m.onnx")]),
        (["r/a/1/model.onnx", "r/b/3/model.xml"], "r", [("a", "1", "model.onnx"), ("b", "3", "model.xml")]),
        (["a/3/model.onnx"], "a/3", [("a", "3", "model.onnx")]),
        (["a/3/model.onnx"], "a/3/model.onnx", [("a", "3", "model.onnx")]),
        (["a/model.yaml"], "a", [("a", "1", None)]),
        (["a/model.yaml", "a/m.onnx"], "a/model.yaml", [("a", "1", "m.onnx")]),
        (["r/.hidden/x.onnx", "r/a/x.onnx", "r/notes.txt"], "r", [("a", "1", "x.onnx")]),
    ],
)
def test_models_are_found(
    tmp_path: Path, names: list[str], path: str, expected: list[tuple[str, str, str | None]]
) -> None:
    assert found(touch(tmp_path, *names) / path) == expected


@pytest.mark.parametrize(
    ("names", "path", "says"),
    [
        ([], "gone.onnx", r"gone.onnx does not exist \(check the path; a model is an .onnx"),
        (["notes.txt"], "notes.txt", r"notes.txt is not a model that can be read \(a model is an .onnx"),
        (["r/notes.txt"], "r", r"no model in .*r \(a model is"),
        (["r/a/notes.txt"], "r", r"no model in "),
    ],
)
def test_where_there_is_no_model_the_message_says_what_one_is(
    tmp_path: Path, names: list[str], path: str, says: str
) -> None:
    with pytest.raises(InvalidModel) as caught:
        find_models(touch(tmp_path, *names) / path)
    assert re.search(says, str(caught.value))


def test_several_weights_in_one_folder_must_be_chosen_from(tmp_path: Path) -> None:
    metadata = {"names": str(NAMES), "task": "detect"}
    for name in ("small", "large"):
        tiny_models.yolov8(tmp_path / f"{name}.onnx", metadata=metadata)
    config(tmp_path, {"task": "detection"})
    assert "There: large.onnx, small.onnx (say weights: FILE in model.yaml)" in refusal(tmp_path)
    config(tmp_path, {"weights": "large.onnx"})
    assert load(tmp_path).labels == ("cat", "dog", "cow")


def test_a_models_yaml_beside_several_files_is_about_none_of_them(tmp_path: Path) -> None:
    for name in ("small", "large"):
        tiny_models.yolov8(tmp_path / f"{name}.onnx")
    config(tmp_path, {"weights": "large.onnx", "labels": ["x", "y", "z"]})
    assert load(tmp_path / "small.onnx").labels == ("0", "1", "2")


def test_the_newest_version_is_loaded_with_the_configuration_above_it(tmp_path: Path) -> None:
    for version in ("1", "2"):
        tiny_models.yolov8(tmp_path / "m" / version / "model.onnx")
    config(tmp_path / "m", {"labels": ["x", "y", "z"]})
    model = load(tmp_path / "m")
    assert (model.name, model.version, model.labels) == ("m", "2", ("x", "y", "z"))


def test_a_saved_model_is_named_by_its_folder_or_its_file(testdata: Path, tmp_path: Path) -> None:
    shutil.copytree(testdata / "models" / "squeezenet_saved_model", tmp_path / "m")
    for weights in (None, ".", "saved_model.pb"):
        written = {"task": "classification", "preprocess": [{"resize": 224}], "weights": weights}
        config(tmp_path / "m", {key: value for key, value in written.items() if value})
        assert load(tmp_path / "m").family_name == "classification"


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tiny_models.yolov8(tmp_path / folder / "same.onnx") for folder in ("a", "b")]
    repository = Repository()
    with pytest.raises(InvalidModel, match="two models are called 'same'") as caught:
        for model in load_all(locate(paths), ONE_WORKER):
            repository.add(model)
    repository.close()
    assert "name" in str(caught.value.hint)


def test_all_broken_models_are_named_and_the_good_ones_are_loaded_first(tmp_path: Path) -> None:
    tiny_models.yolov8(tmp_path / "good" / "m.onnx")
    touch(tmp_path, "broken/m.onnx", "worse/m.xml")
    loaded = []
    with pytest.raises(InvalidModel) as caught:
        for model in load_all(locate([tmp_path]), ONE_WORKER):
            loaded.append(model.name)
    assert loaded == ["good"]
    assert "broken: " in str(caught.value)
    assert "worse: " in str(caught.value)


def test_a_model_that_takes_bytes_gets_the_picture_as_it_is(tmp_path: Path) -> None:
    graph = tiny_models.Graph()
    picture = graph.input("image", (1, 3, 8, 8), TensorProto.UINT8)
    numbers = graph.add("Cast", picture, to=TensorProto.FLOAT)
    means = graph.add("GlobalAveragePool", numbers)
    graph.add("Flatten", means, output="means")
    graph.output("means", (1, 3))
    graph.save(tmp_path / "m.onnx")
    (tmp_path / "model.yaml").write_text("{task: classification, input_size: [8, 8], labels: [r, g, b]}")
    model = load_model(find_models(tmp_path)[0], Defaults())
    context = model.pool.groups[0].engine.clone()
    image = np.broadcast_to(np.array([200, 100, 50], np.uint8), (1, 8, 8, 3)).copy()
    assert context.infer({"image": image})["means"][0] == pytest.approx([200, 100, 50])
    (tmp_path / "model.yaml").write_text(
        "{task: classification, preprocess: [{resize: 8}, {normalize: {mean: 0.5, std: 0.5}}]}"
    )
    with pytest.raises(InvalidModel, match="takes uint8"):
        load_model(find_models(tmp_path)[0], Defaults())


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"task": "segmentation"}, "is not what the family"),
        ({"postprocess": {"top_k": 3}}, "postprocess.top_k means nothing"),
        ({"labels": ["a", "b"]}, "labels names 2 classes"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path: Path, said: dict[str, Any], complaint: str) -> None:
    tiny_models.yolov8(tmp_path / "m.onnx")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"family": "yolov8", **said}))
    with pytest.raises(InvalidModel, match=complaint):
        load_model(find_models(tmp_path)[0], Defaults())


def test_nothing_of_a_repository_is_passed_over_in_silence(tmp_path: Path) -> None:
    tiny_models.yolov8(tmp_path / "good" / "m.onnx")
    tiny_models.yolov8(tmp_path / "two" / "a.onnx")
    tiny_models.yolov8(tmp_path / "two" / "b.onnx")
    with pytest.raises(InvalidModel, match=r"several models: a\.onnx, b\.onnx"):
        find_models(tmp_path)
    shutil.rmtree(tmp_path / "two")
    (tmp_path / "pir").mkdir()
    (tmp_path / "pir" / "inference.json").write_text("{}")
    for path in (tmp_path, tmp_path / "pir"):
        with pytest.raises(InvalidModel, match="Paddle 3 program without its weights"):
            find_models(path)
