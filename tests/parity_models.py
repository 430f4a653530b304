"""A small model of every family, in one repository folder, and pictures for each: what `test_parity` asks by every way.

The builders are those of the families' own tests; each model's folder has its family's name. Labels hold what JSON, a query
string, a header or a command line may spoil: letters of other scripts, a quotation mark, a tab.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from tests import detector_models, instance_models, ocr_models, segmentation_models, tiny_models

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
LABELS = ["größe", '犬 "dog"\t🐕', "plain"]
NORMAL = {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
SQUARE = [{"resize": [64, 64]}, NORMAL]
_CONFIG = {
    "label_list": LABELS,
    "Preprocess": [
        {"type": "Resize", "target_size": [96, 128], "keep_ratio": True, "interp": 1},
        {"type": "NormalizeImage", "is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        {"type": "Permute"},
        {"type": "PadStride", "stride": 32},
    ],
}

Build = Callable[[Path], object]  # writes the weights at a path


def _grids(path: Path) -> None:
    instance_models.rcnn(path, masks="grids", seed=5)


def _solo(path: Path) -> None:
    instance_models.paddle_masks(path, kind="solov2")
    _write(path.with_name("infer_cfg.yml"), {**_CONFIG, "arch": "SOLOv2"})


# family: how its weights are made, and what model.yaml says besides the family and its labels
_FAMILIES: dict[str, tuple[Build, dict[str, Any]]] = {
    "classification": (
        lambda path: tiny_models.classifier(path, classes=3),
        {"preprocess": [{"resize_short": 40}, {"center_crop": 32}, NORMAL]},
    ),
    "embedding": (
        lambda path: segmentation_models.classifier(path, "vector", classes=24),
        {"preprocess": [{"resize": 32}, NORMAL], "labels": []},
    ),
    "yolov5": (tiny_models.yolov5, {"postprocess": {"score_threshold": 0.1}}),
    "yolov8": (tiny_models.yolov8, {}),
    "yolo_end2end": (detector_models.yolo_end2end, {}),
    "yolox": (detector_models.yolox, {}),
    "yolo_segmentation": (instance_models.yolo_segmentation, {}),
    "yolo_obb": (instance_models.yolo_obb, {}),
    "yolo_pose": (instance_models.yolo_pose, {"labels": ["person"]}),
    "picodet": (tiny_models.picodet, {"preprocess": SQUARE}),
    "ppyoloe": (lambda path: detector_models.ppyoloe(path, "exclude_nms"), {"preprocess": SQUARE}),
    "paddle_detection": (tiny_models.paddle_detector, {"preprocess": SQUARE}),
    "rtdetr": (lambda path: detector_models.rtdetr(path, "found"), {}),
    "rcnn": (_grids, {"postprocess": {"score_threshold": 0.2}}),
    "solov2": (_solo, {}),
    "segmentation": (
        lambda path: segmentation_models.segmenter(path, "logits", classes=3),
        {"preprocess": SQUARE},
    ),
    "matting": (lambda path: segmentation_models.segmenter(path, "alpha"), {"preprocess": SQUARE, "labels": []}),
    "yolov5_face": (instance_models.yolov5_face, {"labels": [], "postprocess": {"score_threshold": 0.05}}),
    "scrfd": (instance_models.scrfd, {"labels": []}),
}
OCR = {"ocr_detection": "ocr.detect", "ocr_direction": "ocr.classify", "ocr_recognition": "ocr.read"}
MODELS = (*_FAMILIES, *OCR.values(), "ocr")
NOT_NUMBERS = ("nan_classification", "nan_embedding", "nan_segmentation", "nan_matting")


def write_models(folder: Path) -> Path:
    """A repository of all MODELS: the pipeline `ocr` serves the three families of its steps."""
    for family, (build, said) in _FAMILIES.items():
        build(folder / family / "model.onnx")
        content = {"family": family, "labels": LABELS, **said}
        if not content["labels"]:
            del content["labels"]
        if "infer_cfg.yml" not in {path.name for path in (folder / family).iterdir()}:
            _write(folder / family / "model.yaml", content)
    ocr_models.pipeline(folder / "ocr")
    for name in NOT_NUMBERS:
        family = name.removeprefix("nan_")
        _not_numbers(folder / name / "model.onnx", maps=family in ("segmentation", "matting"))
        _write(folder / name / "model.yaml", {"family": family, "preprocess": SQUARE})
    return folder


def _not_numbers(path: Path, *, maps: bool) -> None:
    """The logarithm of what is below 0: (N, 1, 64, 64), or (N, 1)."""
    graph = tiny_models.Graph()
    picture = graph.input("x", ["batch", 3, 64, 64])
    below = graph.add(
        "Neg", graph.add("Abs", graph.add("ReduceMean", picture, axes=[1] if maps else [1, 2, 3], keepdims=int(maps)))
    )
    below = below if maps else graph.add("Reshape", below, graph.constant([-1, 1], np.int64))
    graph.add("Log", below, output="y")
    graph.output("y", ["batch", 1, 64, 64] if maps else ["batch", 1])
    graph.save(path)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


# Pictures


def pictures_for(model: str) -> dict[str, bytes]:
    """What a model is asked: a PNG with odd sides, a grey one, and a JPEG that has to be turned by its EXIF tag."""
    if model == "ocr.classify" or model == "ocr.read":
        scenes = [ocr_models.bar(text) for text in ("FACADE", "BEAD", "DEAF")]
    elif model.startswith("ocr"):
        scenes = [ocr_models.page(ocr_models.written(seed, 3), (321, 639)) for seed in (1, 2, 3)]
    else:
        scenes = [
            tiny_models.picture(height, width, i) for i, (height, width) in enumerate([(61, 97), (75, 53), (99, 131)])
        ]
    odd, grey, turned = scenes
    return {"odd": file(odd), "grey": file(grey[:, :, 1]), "turned": file(np.rot90(turned), turned=True)}


def file(pixels: NDArray[Any], *, turned: bool = False) -> bytes:
    """A PNG, or where `turned` a JPEG whose EXIF tag says that it is to be turned by 90 degrees clockwise."""
    out, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if turned:
        picture.save(out, "JPEG", exif=exif, quality=97, subsampling=0)
    else:
        picture.save(out, "PNG")
    return out.getvalue()
