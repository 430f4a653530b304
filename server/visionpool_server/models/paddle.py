"""Reads what Paddle's exporters write beside a model: `infer_cfg.yml` (PaddleDetection), `inference_cls.yaml` (PaddleClas).

Both describe the preprocessing; it comes out as a bundle's `preprocess` list. Numbers given as expressions are parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.models.bundle import Bundle, Postprocess

_INTERPOLATIONS = {0: "nearest", 1: "linear", 2: "cubic", 3: "area"}  # OpenCV's numbers
_NAMED_INTERPOLATIONS = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic", "area": "area"}
_QUOTIENT = re.compile(r"^\s*([0-9.eE+-]+)\s*/\s*([0-9.eE+-]+)\s*$")
_RAW_HEADS = {"PicoDet": "picodet"}

Items = list[dict[str, Any]]


def number(value: Any) -> float:
    """A number, or a string such as `1.0/255.0`. Raises InvalidModel for anything else: nothing is evaluated."""
    if isinstance(value, (int, float)):
        return float(value)
    try:
        if quotient := _QUOTIENT.match(str(value)):
            return float(quotient[1]) / float(quotient[2])
        return float(str(value))
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidModel(f"{value!r} is not a number, nor a quotient of two") from error


def detection(data: Mapping[str, Any]) -> Bundle:
    """From PaddleDetection's `infer_cfg.yml`."""
    steps: Items = []
    for operation in data.get("Preprocess") or []:
        steps += _detection_step(operation)
    return Bundle(
        task="detection",
        family="paddle_detection",
        labels=tuple(str(label) for label in data.get("label_list") or ()),
        preprocess=tuple(steps),
        postprocess=Postprocess(score_threshold=data.get("draw_threshold")),
    )


def _detection_step(operation: Mapping[str, Any]) -> Items:
    kind = operation.get("type")
    match kind:
        case "Resize":
            return [
                {
                    "resize": {
                        "size": _pair(operation.get("target_size")),
                        "keep_ratio": bool(operation.get("keep_ratio", False)),
                        "interpolation": _interpolation(operation.get("interp", 1)),
                    }
                }
            ]
        case "LetterBoxResize":
            return [{"letterbox": {"size": _pair(operation.get("target_size")), "fill": 128}}]
        case "NormalizeImage":
            return [{"normalize": _normalization(operation)}]
        case "Pad":
            return [
                {
                    "pad": {
                        "size": _pair(operation.get("size")),
                        "fill": int(_first(operation.get("fill_value", 114))),
                    }
                }
            ]
        case "PadStride":
            return [{"pad_to_stride": int(operation.get("stride", 32))}]
        case "Permute":
            return []  # the layout is the engine's affair
    raise InvalidModel(f"infer_cfg.yml: the Preprocess step {kind!r} is not known")


def _normalization(operation: Mapping[str, Any]) -> dict[str, Any]:
    bare = operation.get("norm_type", "mean_std") == "none"
    return {
        "scale": 1 / 255 if operation.get("is_scale", True) else 1.0,
        "mean": (0.0, 0.0, 0.0) if bare else tuple(number(v) for v in operation.get("mean") or (0, 0, 0)),
        "std": (1.0, 1.0, 1.0) if bare else tuple(number(v) for v in operation.get("std") or (1, 1, 1)),
    }


def classification(data: Mapping[str, Any]) -> Bundle:
    """From PaddleClas' `inference_cls.yaml`."""
    steps: Items = []
    for operation in (data.get("PreProcess") or {}).get("transform_ops") or []:
        name, arguments = next(iter(operation.items()))
        steps += _classification_step(name, arguments or {})
    finishing = data.get("PostProcess") or {}
    top = finishing.get("Topk") or {}
    return Bundle(
        task="classification",
        family="classification",
        labels=top.get("class_id_map_file") or None,
        preprocess=tuple(steps),
        postprocess=Postprocess(top_k=top.get("topk")),
    )


def _classification_step(name: str, arguments: Mapping[str, Any]) -> Items:
    interpolation = _interpolation(arguments.get("interpolation") or "bilinear")
    match name:
        case "ResizeImage" if arguments.get("resize_short"):
            return [{"resize_short": {"size": int(arguments["resize_short"]), "interpolation": interpolation}}]
        case "ResizeImage":
            width, height = _pair(arguments.get("size"))
            return [{"resize": {"size": (height, width), "interpolation": interpolation}}]
        case "CropImage":
            width, height = _pair(arguments.get("size"))
            return [{"center_crop": (height, width)}]
        case "NormalizeImage":
            scale = number(arguments["scale"]) if arguments.get("scale") is not None else 1 / 255
            mean, std = (
                arguments.get("mean") or (0.485, 0.456, 0.406),
                arguments.get("std") or (0.229, 0.224, 0.225),
            )
            return [
                {
                    "normalize": {
                        "scale": scale,
                        "mean": tuple(map(number, mean)),
                        "std": tuple(map(number, std)),
                    }
                }
            ]
        case "ToCHWImage" | "DecodeImage":
            return []  # the engine's affair, and done already
    raise InvalidModel(f"inference_cls.yaml: the transform {name!r} is not known")


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    raise InvalidModel(f"a size of one or two numbers is expected, not {value!r}")


def _first(value: Any) -> float:
    return number(value[0] if isinstance(value, (list, tuple)) else value)


def _interpolation(value: Any) -> str:
    known = _INTERPOLATIONS.get(value) if isinstance(value, int) else _NAMED_INTERPOLATIONS.get(str(value))
    if known is None:
        raise InvalidModel(
            f"the interpolation {value!r} is not known", hint=f"known: {', '.join(_NAMED_INTERPOLATIONS)}"
        )
    return known
