"""`inference.yml`, which Paddle 3's exporters write beside every model: read as what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from visionpool.errors import InvalidModel, SetupError
from visionpool_server.imaging.recipe import Arithmetic, CenterCrop, Resize, ResizeShort
from visionpool_server.models import paddlex
from visionpool_server.models.discovery import discover
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, load_model
from visionpool_server.models.preprocess import recipe_from

from tests import tiny_models
from tests.test_discovery import STEPS, TREES, detection_config

NORMALIZE = {
    "channel_num": 3,
    "mean": [0.485, 0.456, 0.406],
    "order": "",
    "scale": 0.00392156862745098,
    "std": [0.229, 0.224, 0.225],
}


def classifier(*operations: dict[str, Any], **finishing: Any) -> dict[str, Any]:
    return {
        "Global": {"model_name": "PP-LCNet_x1_0"},
        "Hpi": {"backend_configs": {}},
        "PreProcess": {"transform_ops": [*operations, {"NormalizeImage": NORMALIZE}, {"ToCHWImage": None}]},
        "PostProcess": finishing or {"Topk": {"topk": 5, "label_list": ["cat", "dog", 3]}},
    }


@pytest.mark.parametrize(
    ("operations", "steps"),
    [
        (
            [{"ResizeImage": {"resize_short": 256}}, {"CropImage": {"size": 224}}],
            (ResizeShort(256), CenterCrop((224, 224))),
        ),
        ([{"ResizeImage": {"size": [160, 80]}}], (Resize((80, 160)),)),  # width first
    ],
)
def test_a_classifiers_labels_and_preparation_are_ours(
    operations: list[dict[str, Any]], steps: tuple[object, ...]
) -> None:
    bundle = paddlex.bundle_from(classifier(*operations))
    assert (bundle.task, bundle.family, bundle.labels) == ("classification", "classification", ("cat", "dog", "3"))
    assert bundle.postprocess.top_k == 5
    recipe = recipe_from(bundle.preprocess or ())
    assert recipe.steps == steps
    assert recipe.arithmetic == Arithmetic(0.00392156862745098, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_detectors_is_an_infer_cfg_of_another_name() -> None:
    data = {"Global": {"model_name": "PicoDet-S"}, "Hpi": {}, **detection_config()}
    bundle = paddlex.bundle_from(data)
    assert (bundle.task, bundle.family, bundle.labels) == ("detection", "paddle_detection", ("person", "bicycle", "3"))
    assert bundle.postprocess.score_threshold == 0.5


DET = [
    {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
    {"DetLabelEncode": None},
    {"DetResizeForTest": {"resize_long": 960}},
    {
        "NormalizeImage": {
            "mean": [0.485, 0.456, 0.406],
            "order": "hwc",
            "scale": "1./255.",
            "std": [0.229, 0.224, 0.225],
        }
    },
    {"ToCHWImage": None},
    {"KeepKeys": {"keep_keys": ["image", "shape"]}},
]
REC = [
    {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
    {"MultiLabelEncode": {"gtc_encode": "NRTRLabelEncode"}},
    {"RecResizeImg": {"image_shape": [3, 48, 320]}},
    {"KeepKeys": {"keep_keys": ["image"]}},
]
SEG = [
    {"type": "Resize", "target_size": [512, 256], "interp": "LINEAR"},
    {"type": "Normalize", "mean": [0.5] * 3, "std": [0.5] * 3},
]


@pytest.mark.parametrize(
    ("data", "task", "family"),
    [
        (
            {
                "Global": {"model_name": "PP-OCRv5_mobile_det"},
                "PreProcess": {"transform_ops": DET},
                "PostProcess": {
                    "name": "DBPostProcess",
                    "thresh": 0.3,
                    "box_thresh": 0.6,
                    "max_candidates": 1000,
                    "unclip_ratio": 1.5,
                },
            },
            "ocr",
            "ocr_detection",
        ),
        (
            {
                "Global": {"model_name": "PP-OCRv5_mobile_rec"},
                "PreProcess": {"transform_ops": REC},
                "PostProcess": {"name": "CTCLabelDecode", "character_dict": ["a", "b", 1]},
            },
            "ocr",
            "ocr_recognition",
        ),
        ({"Global": {"model_name": "PP-LiteSeg-T"}, "Deploy": {"transforms": SEG}}, "segmentation", "segmentation"),
        (classifier(NormalizeFeatures=None), "embedding", "embedding"),
        (
            classifier(MultiLabelThreshOutput={"threshold": 0.5, "label_list": ["a"]}),
            "classification",
            "classification",
        ),
    ],
)
def test_what_else_paddle_exports_is_read_by_who_knows_it(data: dict[str, Any], task: str, family: str) -> None:
    bundle = paddlex.bundle_from(data)
    assert (bundle.task, bundle.family) == (task, family)
    recipe_from(bundle.preprocess or ())


def test_it_stands_beside_a_model_of_any_format(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "m" / "inference.onnx", classes=3)
    data = classifier({"ResizeImage": {"size": [32, 32]}})
    (tmp_path / "m" / "inference.yml").write_text(yaml.safe_dump(data), encoding="utf-8")
    (files,) = find_models(tmp_path / "m")
    model = load_model(files, Defaults(workers=1))
    assert (model.name, model.task, model.source, model.labels) == (
        "m",
        "classification",
        "inference.yml",
        ("cat", "dog", "3"),
    )


def test_an_infer_cfg_beside_it_speaks_first(tmp_path: Path) -> None:
    tiny_models.paddle_detector(tmp_path / "m.onnx")
    for name, data in (("infer_cfg.yml", detection_config()), ("inference.yml", classifier())):
        (tmp_path / name).write_text(yaml.safe_dump(data), encoding="utf-8")
    (files,) = find_models(tmp_path)
    from visionpool_server.backends import Source, get_backend

    signature = get_backend("openvino").read(Source(files.weights))
    assert discover(tmp_path, signature).source == "infer_cfg.yml"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"Global": {"model_name": "UVDoc"}, "PostProcess": {"name": "DocTr"}},
            "inference.yml: UVDoc ends in 'DocTr', which is not",
        ),
        ({"PostProcess": {"A": None, "B": {}}}, "the model ends in 'A' and 'B', which is not served"),
        ({"PostProcess": None}, "the model ends in nothing, which is not served"),
        ({}, "the model ends in nothing, which is not served"),
        ({"PostProcess": ["Topk"]}, "inference.yml: PostProcess: a map of keys is expected"),
        ({"PostProcess": {"name": {}}}, "ends in nothing"),
        ({"Preprocess": [{"type": "Warp"}]}, "inference.yml: the Preprocess step 'Warp' is not known"),
        ({**classifier({"Swirl": {}})}, "inference.yml: the transform 'Swirl' is not known"),
        (classifier(Topk={"topk": 1, "label_list": {"a": 1}}), "inference.yml: label_list: a list is expected"),
        (classifier(Topk={"topk": 1, "label_list": [["a"]]}), "name of a class is a list"),
    ],
)
def test_what_makes_no_sense_or_is_not_served_is_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        paddlex.bundle_from(data)
    assert says in str(caught.value)


def test_what_is_not_served_is_served_as_plain_tensors_on_demand(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "m" / "inference.onnx")
    (tmp_path / "m" / "inference.yml").write_text("PostProcess: {name: DocTr}")
    (files,) = find_models(tmp_path / "m")
    with pytest.raises(InvalidModel, match=r"with task: tensor in a model\.yaml, any as plain tensors"):
        load_model(files, Defaults(workers=1))
    (tmp_path / "m" / "model.yaml").write_text("task: tensor")
    (files,) = find_models(tmp_path / "m")
    assert load_model(files, Defaults(workers=1)).task == "tensor"


NAMES = st.sampled_from(["Preprocess", "PreProcess", "PostProcess", "Global", "label_list", "draw_threshold"])
FINISHES = st.one_of(TREES, st.dictionaries(st.sampled_from(["Topk", "name", "NormalizeFeatures"]), TREES, max_size=2))


@given(st.dictionaries(NAMES, st.one_of(TREES, STEPS), max_size=4), STEPS, FINISHES)
@settings(max_examples=300, deadline=None)
def test_whatever_it_says_only_setup_errors_come_out(data: dict[str, Any], steps: list[Any], finish: object) -> None:
    for said in (data, {**data, "PreProcess": {"transform_ops": steps}, "PostProcess": finish}):
        try:
            recipe_from(paddlex.bundle_from(said).preprocess or ())
        except SetupError as error:
            assert error.message
