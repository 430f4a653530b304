"""Reads what PaddleClas writes beside a model: `inference_cls.yaml`, `inference_rec.yaml`, and Paddle 3's `inference.yml`.

Its transforms are those of `deploy/python/preprocess.py`, its ways to finish those of `deploy/python/postprocess.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.models.bundle import Bundle
from visionpool_server.models.labels import label
from visionpool_server.models.numbers import number, shown
from visionpool_server.models.paddle_values import Items, interpolation, list_of, map_of, numbers, pair

_FILE, _FEATURES = "inference_cls.yaml", "inference_rec.yaml"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_ASIDE = {"main_indicator", "SavePreLabel"}  # keys of PostProcess that say nothing of the result


def classification(data: Mapping[str, Any]) -> Bundle:
    """From PaddleClas' `inference_cls.yaml`. Features without classes, to be normalised, are an embedding."""
    preparing = map_of(data.get("PreProcess"), f"{_FILE}: PreProcess")
    finishing = map_of(data.get("PostProcess"), f"{_FILE}: PostProcess")
    kinds = [kind for kind in finishing if kind not in _ASIDE]
    if kinds == ["NormalizeFeatures"]:
        return _embedding(preparing, _FILE)
    labels, settings = (
        _finishing(kinds[0], map_of(finishing[kinds[0]], f"{_FILE}: {kinds[0]}")) if kinds else (None, {})
    )
    found = {
        "task": "classification",
        "family": "classification",
        "labels": labels,
        "preprocess": _steps(preparing, _FILE),
        "postprocess": settings,
    }
    return Bundle.checked(_FILE, found)


def features(data: Mapping[str, Any]) -> Bundle:
    """From PaddleClas' `inference_rec.yaml`: a model that makes a vector of a picture."""
    return _embedding(map_of(data.get("RecPreProcess"), f"{_FEATURES}: RecPreProcess"), _FEATURES)


def _embedding(preparing: Mapping[str, Any], file: str) -> Bundle:
    return Bundle.checked(file, {"task": "embedding", "family": "embedding", "preprocess": _steps(preparing, file)})


def _finishing(kind: str, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The labels, and the family's settings."""
    named = [label(name) for name in list_of(arguments.get("label_list"), f"{_FILE}: label_list")]
    labels = arguments.get("class_id_map_file") or named or None
    match kind:
        case "Topk":
            return labels, {"top_k": arguments.get("topk")}
        case "MultiLabelThreshOutput":
            return labels, {"multi_label": True, "score_threshold": _threshold(arguments.get("threshold"), 0.5)}
        case "ThreshOutput":
            two = [label(arguments[key]) for key in ("label_0", "label_1") if key in arguments]
            default = arguments.get("default_label_index", 0)
            threshold = _threshold(arguments.get("threshold"), 0.0)
            return labels or (two if len(two) == 2 else None), {"default_class": default, "score_threshold": threshold}
    raise InvalidModel(
        f"{_FILE}: PostProcess: {shown(kind)} is not served",
        hint="served: Topk, ThreshOutput, MultiLabelThreshOutput; with task: tensor in a model.yaml, its plain tensors",
    )


def _threshold(value: Any, default: float) -> float:
    """PaddleX gives one for each class, or a default and exceptions: one for all is what is served."""
    if isinstance(value, Mapping):
        value = value.get("default") if set(value) == {"default"} else ""
    if isinstance(value, list):
        value = value[0] if len(set(map(str, value))) == 1 else ""
    if value == "":
        raise InvalidModel(
            f"{_FILE}: thresholds that differ from class to class are not served",
            hint="say postprocess.score_threshold in model.yaml, one for all",
        )
    return default if value is None else number(value)


def _steps(preparing: Mapping[str, Any], file: str) -> Items:
    """The geometric steps, and all that is said of numbers as one `normalize`, last."""
    geometric: Items = []
    numeric: dict[str, Any] = {"scale": 1.0}  # what no transform touches stays as it is decoded
    for operation in list_of(preparing.get("transform_ops"), f"{file}: transform_ops"):
        for name, written in map_of(operation, f"{file}: an entry of transform_ops").items():
            arguments = map_of(written, f"{file}: {name}")
            if name == "DecodeImage" and arguments.get("to_rgb") is False:
                numeric["channels"] = "bgr"
            for step in _step(name, arguments, file):
                numeric |= step.get("normalize", {})
                geometric += [] if "normalize" in step else [step]
    return [*geometric, {"normalize": numeric}]


def _step(name: str, arguments: Mapping[str, Any], file: str) -> Items:
    match name:
        case "ResizeImage":
            return [_resize(arguments)]
        case "Resize":
            return [_vision_resize(arguments)]
        case "CropImage":
            width, height = pair(arguments.get("size"))
            return [{"center_crop": (height, width)}]
        case "CenterCrop":
            return [{"center_crop": {"size": pair(arguments.get("size")), "rounding": "nearest"}}]
        case "NormalizeImage":
            return [{"normalize": _normalization(arguments, file)}]
        case "Normalize":
            mean, std = numbers(arguments.get("mean"), (0.0,) * 3), numbers(arguments.get("std"), (1.0,) * 3)
            return [{"normalize": {"mean": mean, "std": std}}]
        case "ToTensor":
            return [{"normalize": {"scale": 1 / 255}}]
        case "ToCHWImage" | "DecodeImage":
            return []  # the engine's affair, and done already
    raise InvalidModel(f"{file}: the transform {shown(name)} is not known")


def _resize(arguments: Mapping[str, Any]) -> dict[str, Any]:
    pillow = str(arguments.get("backend") or "cv2").lower() == "pil"
    written = arguments.get("interpolation")
    usual = "bicubic" if pillow else "bilinear"  # what Image.resize and cv2.resize do unless they are told
    how = {
        "interpolation": interpolation(usual if written is None else written, pillow=pillow),
        "antialias": pillow,
    }
    if arguments.get("resize_short"):
        return {"resize_short": {"size": arguments["resize_short"], **how}}
    width, height = pair(arguments.get("size"))
    return {"resize": {"size": (height, width), **how}}


def _vision_resize(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`paddle.vision.transforms.Resize`: (height, width), or the shorter side, the longer one rounded down."""
    size = arguments.get("size")
    pillow = str(arguments.get("backend") or "cv2").lower() == "pil"
    how = {"interpolation": interpolation(arguments.get("interpolation") or "bilinear"), "antialias": pillow}
    if isinstance(size, int):
        return {"resize_short": {"size": size, "rounding": "down", **how}}
    return {"resize": {"size": pair(size), **how}}


def _normalization(arguments: Mapping[str, Any], file: str) -> dict[str, Any]:
    if arguments.get("channel_num") not in (None, 3):
        raise InvalidModel(
            f"{file}: NormalizeImage: channel_num {shown(arguments['channel_num'])}: pictures have three channels here",
            hint="export the model with a three-channel input",
        )
    mean, std = _IMAGENET
    return {
        "scale": number(arguments["scale"]) if arguments.get("scale") is not None else 1 / 255,
        "mean": numbers(arguments.get("mean"), mean),
        "std": numbers(arguments.get("std"), std),
    }
