"""Reads `inference.yml`, which Paddle 3's exporters (PaddleX 3, PaddleOCR 3) write beside every model, whatever it does.

It has four forms, told apart by their keys: PaddleDetection's `Preprocess`, PaddleSeg's `Deploy`, and `PreProcess` with
`PostProcess`, whose names say what the model is. Each is that of an older file, and read by who reads that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from visionpool.errors import InvalidModel

from visionpool_server.models.bundle import Bundle
from visionpool_server.models.numbers import shown

NAME = "inference.yml"
# Who reads which form, "module:function": one line each. First by a key at the top, then by the name of the post-processing.
READERS_BY_KEY = {
    "Preprocess": "visionpool_server.models.paddle:detection",
    "Deploy": "visionpool_server.models.paddle_segmentation:segmentation",
}
READERS_BY_POSTPROCESS = {
    **dict.fromkeys(
        ("Topk", "ThreshOutput", "MultiLabelThreshOutput", "NormalizeFeatures"),
        "visionpool_server.models.paddle_classification:classification",
    ),
    "DBPostProcess": "visionpool_server.models.ocr:detection",
    "CTCLabelDecode": "visionpool_server.models.ocr:recognition",
}
_OLDER = ("infer_cfg.yml", "inference_cls.yaml", "deploy.yaml")  # what the readers call the file


def bundle_from(data: Mapping[str, Any]) -> Bundle:
    """Raises InvalidModel for a file that makes no sense, or is about a kind of model that is not served."""
    read = _reader(data)
    try:
        return read(data)
    except InvalidModel as error:
        message = error.message
        for name in _OLDER:
            message = message.removeprefix(f"{name}: ")
        raise InvalidModel(f"{NAME}: {message}", hint=error.hint) from error


def _reader(data: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Bundle]:
    finishing = _postprocessing(data)
    place = next((place for key, place in READERS_BY_KEY.items() if key in data), None)
    place = place or next((READERS_BY_POSTPROCESS[name] for name in finishing if name in READERS_BY_POSTPROCESS), None)
    if place is None:
        raise InvalidModel(
            f"{NAME}: {_model_name(data)} ends in {' and '.join(map(shown, finishing)) or 'nothing'}, which is not served",
            hint=f"served: {', '.join(READERS_BY_POSTPROCESS)}, and what PaddleDetection and PaddleSeg write; with task: tensor "
            "in a model.yaml, any as plain tensors",
        )
    module, _, name = place.partition(":")
    return cast(Callable[[Mapping[str, Any]], Bundle], getattr(import_module(module), name))


def _postprocessing(data: Mapping[str, Any]) -> list[str]:
    """The names in `PostProcess`: its `name`, as PaddleOCR writes, or its keys, as PaddleClas does."""
    finishing = data.get("PostProcess") or {}
    if not isinstance(finishing, Mapping):
        raise InvalidModel(f"{NAME}: PostProcess: a map of keys is expected, not {shown(finishing)}")
    names = [finishing["name"]] if "name" in finishing else list(finishing)
    return [name for name in names if isinstance(name, str)]


def _model_name(data: Mapping[str, Any]) -> str:
    about = data.get("Global")
    name = about.get("model_name") if isinstance(about, Mapping) else None
    return name[:80] if isinstance(name, str) else "the model"
