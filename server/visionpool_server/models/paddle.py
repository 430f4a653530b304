"""Reads what PaddleDetection writes beside a model: `infer_cfg.yml`. Its preprocessing becomes a bundle's `preprocess` list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.models.bundle import Bundle
from visionpool_server.models.labels import label
from visionpool_server.models.numbers import shown
from visionpool_server.models.paddle_classification import classification
from visionpool_server.models.paddle_values import Items, first, interpolation, list_of, map_of, numbers, pair

__all__ = ["classification", "detection"]

_DETECTION = "infer_cfg.yml"


def detection(data: Mapping[str, Any]) -> Bundle:
    """From PaddleDetection's `infer_cfg.yml`."""
    steps: Items = []
    for operation in list_of(data.get("Preprocess"), f"{_DETECTION}: Preprocess"):
        steps += _detection_step(map_of(operation, f"{_DETECTION}: a step of Preprocess"))
    found = {
        "task": "detection",
        "family": "paddle_detection",
        "labels": [label(name) for name in list_of(data.get("label_list"), f"{_DETECTION}: label_list")],
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
            return [{"letterbox": {"size": pair(operation.get("target_size")), "fill": 128, "interpolation": "area"}}]
        case "NormalizeImage":
            return [{"normalize": _normalization(operation)}]
        case "Pad":
            return [
                {
                    "pad": {
                        "size": pair(operation.get("size")),
                        "fill": first(operation.get("fill_value", 114)),
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
    size = pair(operation.get("target_size"))
    how = interpolation(operation.get("interp", 1))
    if not operation.get("keep_ratio", True):
        return {"resize": {"size": size, "interpolation": how}}
    return {"resize_short": {"size": min(size), "limit": max(size), "interpolation": how}}


def _normalization(operation: Mapping[str, Any]) -> dict[str, Any]:
    bare = operation.get("norm_type", "mean_std") == "none"
    return {
        "scale": 1 / 255 if operation.get("is_scale", True) else 1.0,
        "mean": (0.0, 0.0, 0.0) if bare else numbers(operation.get("mean"), (0, 0, 0)),
        "std": (1.0, 1.0, 1.0) if bare else numbers(operation.get("std"), (1, 1, 1)),
    }
