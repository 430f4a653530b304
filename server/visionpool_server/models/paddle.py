"""Reads what Paddle's exporters write beside a model: `infer_cfg.yml` (PaddleDetection), `inference_cls.yaml` (PaddleClas).

Both describe the preprocessing; it comes out as a bundle's `preprocess` list. Numbers given as expressions are parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.models.bundle import Bundle
from visionpool_server.models.labels import label
from visionpool_server.models.numbers import number, shown

_INTERPOLATIONS = {0: "nearest", 1: "linear", 2: "cubic", 3: "area"}  # OpenCV's numbers
_NAMED_INTERPOLATIONS = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic", "area": "area"}
_DETECTION, _CLASSIFICATION = "infer_cfg.yml", "inference_cls.yaml"

Items = list[dict[str, Any]]


def detection(data: Mapping[str, Any]) -> Bundle:
    """From PaddleDetection's `infer_cfg.yml`."""
    steps: Items = []
    for operation in _list(data.get("Preprocess"), f"{_DETECTION}: Preprocess"):
        steps += _detection_step(_map(operation, f"{_DETECTION}: a step of Preprocess"))
    found = {
        "task": "detection",
        "family": "paddle_detection",
        "labels": [label(name) for name in _list(data.get("label_list"), f"{_DETECTION}: label_list")],
        "preprocess": steps,
        "postprocess": {"score_threshold": data.get("draw_threshold")},
    }
    return Bundle.checked(_DETECTION, found)


def _detection_step(operation: Mapping[str, Any]) -> Items:
    kind = operation.get("type")
    match kind:
        case "Resize":
            return [_resize(operation)]
        case "LetterBoxResize":
            return [{"letterbox": {"size": _pair(operation.get("target_size")), "fill": 128, "interpolation": "area"}}]
        case "NormalizeImage":
            return [{"normalize": _normalization(operation)}]
        case "Pad":
            return [
                {
                    "pad": {
                        "size": _pair(operation.get("size")),
                        "fill": _first(operation.get("fill_value", 114)),
                    }
                }
            ]
        case "PadStride":
            return [{"pad_to_stride": operation.get("stride", 32)}]
        case "Permute":
            return []  # the layout is the engine's affair
    raise InvalidModel(f"infer_cfg.yml: the Preprocess step {shown(kind)} is not known")


def _resize(operation: Mapping[str, Any]) -> dict[str, Any]:
    """`keep_ratio`, the default: the shorter side to the smaller target, the longer one at most to the larger
    (PaddleDetection `deploy/python/preprocess.py`, `generate_scale`)."""
    size = _pair(operation.get("target_size"))
    interpolation = _interpolation(operation.get("interp", 1))
    if not operation.get("keep_ratio", True):
        return {"resize": {"size": size, "interpolation": interpolation}}
    return {"resize_short": {"size": min(size), "limit": max(size), "interpolation": interpolation}}


def _normalization(operation: Mapping[str, Any]) -> dict[str, Any]:
    bare = operation.get("norm_type", "mean_std") == "none"
    return {
        "scale": 1 / 255 if operation.get("is_scale", True) else 1.0,
        "mean": (0.0, 0.0, 0.0) if bare else _numbers(operation.get("mean"), (0, 0, 0)),
        "std": (1.0, 1.0, 1.0) if bare else _numbers(operation.get("std"), (1, 1, 1)),
    }


def classification(data: Mapping[str, Any]) -> Bundle:
    """From PaddleClas' `inference_cls.yaml`."""
    steps: Items = []
    preparing = _map(data.get("PreProcess"), f"{_CLASSIFICATION}: PreProcess")
    for operation in _list(preparing.get("transform_ops"), f"{_CLASSIFICATION}: transform_ops"):
        for name, arguments in _map(operation, f"{_CLASSIFICATION}: an entry of transform_ops").items():
            steps += _classification_step(name, _map(arguments, f"{_CLASSIFICATION}: {name}"))
    finishing = _map(data.get("PostProcess"), f"{_CLASSIFICATION}: PostProcess")
    top = _map(finishing.get("Topk"), f"{_CLASSIFICATION}: Topk")
    found = {
        "task": "classification",
        "family": "classification",
        "labels": top.get("class_id_map_file") or None,
        "preprocess": steps,
        "postprocess": {"top_k": top.get("topk")},
    }
    return Bundle.checked(_CLASSIFICATION, found)


def _classification_step(name: str, arguments: Mapping[str, Any]) -> Items:
    interpolation = _interpolation(arguments.get("interpolation") or "bilinear")
    match name:
        case "ResizeImage" if arguments.get("resize_short"):
            return [{"resize_short": {"size": arguments["resize_short"], "interpolation": interpolation}}]
        case "ResizeImage":
            width, height = _pair(arguments.get("size"))
            return [{"resize": {"size": (height, width), "interpolation": interpolation}}]
        case "CropImage":
            width, height = _pair(arguments.get("size"))
            return [{"center_crop": (height, width)}]
        case "NormalizeImage":
            scale = number(arguments["scale"]) if arguments.get("scale") is not None else 1 / 255
            return [
                {
                    "normalize": {
                        "scale": scale,
                        "mean": _numbers(arguments.get("mean"), (0.485, 0.456, 0.406)),
                        "std": _numbers(arguments.get("std"), (0.229, 0.224, 0.225)),
                    }
                }
            ]
        case "ToCHWImage" | "DecodeImage":
            return []  # the engine's affair, and done already
    raise InvalidModel(f"inference_cls.yaml: the transform {shown(name)} is not known")


def _map(value: Any, where: str) -> Mapping[str, Any]:
    """A map; nothing at all counts as an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidModel(f"{where}: a map of keys is expected, not {shown(value)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidModel(f"{where}: a list is expected, not {shown(value)}")
    return value


def _numbers(value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(map(number, value if isinstance(value, list) else [value])) if value else default


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    raise InvalidModel(f"a size of one or two numbers is expected, not {shown(value)}")


def _first(value: Any) -> float:
    return number(value[0] if isinstance(value, (list, tuple)) and value else value)


def _interpolation(value: Any) -> str:
    known = (
        _INTERPOLATIONS.get(value)
        if isinstance(value, int)
        else _NAMED_INTERPOLATIONS.get(value if isinstance(value, str) else "")
    )
    if known is None:
        raise InvalidModel(
            f"the interpolation {shown(value)} is not known", hint=f"known: {', '.join(_NAMED_INTERPOLATIONS)}"
        )
    return known
