"""Reads what PaddleSeg writes beside a model: `deploy.yaml`, and the `Deploy` part of Paddle 3's `inference.yml`.

Transforms are those of `paddleseg/transforms/transforms.py`, and of `Matting/ppmatting/transforms/transforms.py`: a list that
begins with `LoadImages` is of a matting model. Sizes are (width, height) there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.models.bundle import Bundle
from visionpool_server.models.numbers import number, shown
from visionpool_server.models.paddle_values import Items, fill, interpolation, list_of, map_of, numbers, pair

_FILE = "deploy.yaml"
_GREY = 127.5  # the usual colour of margins


def segmentation(data: Mapping[str, Any]) -> Bundle:
    """From `deploy.yaml`."""
    deploy = map_of(data.get("Deploy"), f"{_FILE}: Deploy")
    written = list_of(deploy.get("transforms"), f"{_FILE}: transforms")
    operations = [map_of(operation, f"{_FILE}: an entry of transforms") for operation in written]
    family = "matting" if _is_matting(data, operations) else "segmentation"
    settings = {"activation": "none"} if deploy.get("output_op") == "softmax" and family == "segmentation" else {}
    found = {"task": "segmentation", "family": family, "preprocess": _steps(operations), "postprocess": settings}
    return Bundle.checked(_FILE, found)


def _is_matting(data: Mapping[str, Any], operations: list[Mapping[str, Any]]) -> bool:
    about = data.get("Global")
    name = about.get("model_name") if isinstance(about, Mapping) else None
    loads = any(operation.get("type") == "LoadImages" for operation in operations)
    return loads or (isinstance(name, str) and "matting" in name.lower())


def _steps(operations: list[Mapping[str, Any]]) -> Items:
    """The geometric steps, and one `normalize`, last. Without a Normalize the model takes bytes as they are."""
    steps: Items = []
    numeric: dict[str, Any] = {"scale": 1.0}
    for operation in operations:
        kind = operation.get("type")
        if kind == "Normalize":
            numeric |= _normalization(operation)
            continue
        if kind == "LoadImages" and operation.get("to_rgb") is False:
            numeric["channels"] = "bgr"
        if kind in ("Padding", "PaddingByAspectRatio") and "mean" in numeric:
            raise InvalidModel(
                f"{_FILE}: {kind} after Normalize is not served", hint="export it with Padding before Normalize"
            )
        steps += _step(str(kind), operation)
    return [*steps, {"normalize": numeric}]


def _normalization(operation: Mapping[str, Any]) -> dict[str, Any]:
    half = (0.5, 0.5, 0.5)
    return {"scale": 1 / 255, "mean": numbers(operation.get("mean"), half), "std": numbers(operation.get("std"), half)}


def _step(kind: str, operation: Mapping[str, Any]) -> Items:
    match kind:
        case "LoadImages":
            return []
        case "Resize":
            return [_resize(operation)]
        case "ResizeByLong":
            return [{"resize_long": {"size": operation.get("long_size"), "multiple": operation.get("size_divisor")}}]
        case "ResizeByShort":
            size = {"size": operation.get("short_size"), "limit": operation.get("max_size")}
            return [{"resize_short": {**size, "multiple": operation.get("size_divisor")}}]
        case "ResizeRangeScaling" if operation.get("min_value") == operation.get("max_value"):
            return [{"resize_long": operation.get("max_value")}]
        case "LimitLong":
            return [{"limit_long": {"max": operation.get("max_long"), "min": operation.get("min_long")}}]
        case "LimitShort":
            return [{"limit_short": {"max": operation.get("max_short"), "min": operation.get("min_short")}}]
        case "ResizeToIntMult":
            return [{"resize_to_multiple": operation.get("mult_int", 32)}]
        case "ResizeToMultiple":
            return [{"resize_to_multiple": operation.get("multiple", 32)}]
        case "Padding":
            width, height = pair(operation.get("target_size"))
            return [{"pad": {"size": (height, width), "fill": fill(operation.get("im_padding_value"), _GREY)}}]
        case "PaddingByAspectRatio":
            aspect = number(operation.get("aspect_ratio", 1))
            return [{"pad_to_aspect": {"aspect": aspect, "fill": fill(operation.get("im_padding_value"), _GREY)}}]
    raise InvalidModel(
        f"{_FILE}: the transform {shown(kind)} is not served", hint="say preprocess: in a model.yaml beside it"
    )


def _resize(operation: Mapping[str, Any]) -> dict[str, Any]:
    """`keep_ratio`: the shorter side to the smaller target, the longer one at most to the larger, whichever way it lies."""
    width, height = pair(operation.get("target_size", (512, 512)))
    how = {"interpolation": interpolation(operation.get("interp", "LINEAR")), "multiple": operation.get("size_divisor")}
    if operation.get("keep_ratio"):
        return {"resize_short": {"size": min(width, height), "limit": max(width, height), **how}}
    return {"resize": {"size": (height, width), **how}}
