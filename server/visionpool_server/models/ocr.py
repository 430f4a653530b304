"""What PP-OCR's exports say: their dictionaries, their `inference.yml`, and by their tensors which step each of them is.

PaddleOCR's own downloads before version 3 are weights and nothing else: their names and a dictionary tell the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.labels import from_map, label
from visionpool_server.models.numbers import number, shown

FAMILY_OF = {"detect": "ocr_detection", "classify": "ocr_direction", "read": "ocr_recognition"}
_STEP_NAMES = {
    "detect": re.compile(r"(^|[^a-z])(det|detect|detection)([^a-z]|$)"),
    "classify": re.compile(r"(^|[^a-z])(cls|classify|direction|textline_ori)([^a-z]|$)"),
    "read": re.compile(r"(^|[^a-z])(rec|read|recognition)([^a-z]|$)"),
}
_OLD = re.compile(r"(v[12](\.\d)?_rec|ocrv2|ocr_v2|ocr_server_v[12])", re.IGNORECASE)
_DICTIONARY = re.compile(r"(dict|keys).*\.txt$", re.IGNORECASE)
_CONFIG = "inference.yml"

Items = list[dict[str, Any]]


def step_of(name: str) -> str | None:
    """Which step a folder or file of this name is: `ch_PP-OCRv3_det_infer` detects."""
    found = [step for step, pattern in _STEP_NAMES.items() if pattern.search(name.lower())]
    return found[0] if len(found) == 1 else None


def family_by_tensors(signature: Signature) -> str:
    """For a model of `task: ocr`. Raises InvalidModel where the outputs are those of no step."""
    shapes = [spec.shape or () for spec in signature.outputs]
    ranks = [len(shape) for shape in shapes]
    if ranks == [4] and shapes[0][1] in (1, None):
        return FAMILY_OF["detect"]
    if ranks == [3]:
        return FAMILY_OF["read"]
    hint = "say family: in model.yaml" if ranks != [2] else "say task: classification and family: ocr_direction"
    raise InvalidModel(f"which step of OCR is this? Its outputs are {[list(shape) for shape in shapes]}", hint=hint)


def line_size(weights: Path | None) -> tuple[int, int] | None:
    """(height, width) of the lines that recognisers of versions 1 and 2 read, by their name; None for all others."""
    if weights is None:
        return None
    return (32, 320) if any(_OLD.search(name) for name in (weights.name, weights.absolute().parent.name)) else None


def from_metadata(metadata: Mapping[str, str]) -> Bundle:
    """From what RapidOCR writes into its recognisers: `character`, a dictionary."""
    return Bundle(family=FAMILY_OF["read"], task="ocr", labels=_lines(metadata["character"]))


def characters(labels: str | tuple[str, ...] | Mapping[int, str] | None, folder: Path) -> tuple[str, ...]:
    """The dictionary of a recogniser: what `labels` says, else the one dictionary in its folder. Empty where there is none.

    Raises InvalidModel.
    """
    if isinstance(labels, str):
        return _read(folder / labels)
    if isinstance(labels, tuple):
        return labels
    if labels is not None:
        return from_map(labels)
    found = dictionary_in(folder)
    return _read(found) if found else ()


def dictionary_in(folder: Path) -> Path | None:
    """The one dictionary in a folder: `ppocr_keys_v1.txt`, `en_dict.txt`. Raises InvalidModel for several."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and _DICTIONARY.search(path.name))
    if len(files) > 1:
        raise InvalidModel(
            f"which dictionary? There are {', '.join(path.name for path in files)}",
            hint="say labels: FILE in model.yaml",
        )
    return files[0] if files else None


def _read(path: Path) -> tuple[str, ...]:
    """One character a line, the space among them: nothing is stripped but the ends of lines."""
    try:
        return _lines(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidModel(
            f"labels: cannot read {path.name}: {error}", hint=f"it is looked for in {path.parent}"
        ) from error


def _lines(text: str) -> tuple[str, ...]:
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return tuple(line.rstrip("\r") for line in lines)


def detection(data: Mapping[str, Any]) -> Bundle:
    """From the `inference.yml` of a text detector (PaddleOCR 3)."""
    finishing = data["PostProcess"]
    found = {
        "task": "ocr",
        "family": FAMILY_OF["detect"],
        "preprocess": [step for name, told in _operations(data) for step in _detection_step(name, told)],
        "postprocess": {
            "map_threshold": finishing.get("thresh"),
            "score_threshold": finishing.get("box_thresh"),
            "unclip_ratio": finishing.get("unclip_ratio"),
        },
    }
    return Bundle.checked(_CONFIG, found)


def _detection_step(name: str, told: Mapping[str, Any]) -> Items:
    match name:
        case "DetResizeForTest" if "resize_long" in told:
            return [{"limit_side": {"side": told["resize_long"], "by": "long"}}]
        case "DetResizeForTest" if "image_shape" in told:
            return [{"resize": told["image_shape"]}]
        case "DetResizeForTest":
            return [{"limit_side": {"side": told.get("limit_side_len", 736), "by": told.get("limit_type", "min")}}]
        case "NormalizeImage":
            return [{"normalize": _normalization(told)}]
    return []


def recognition(data: Mapping[str, Any]) -> Bundle:
    """From the `inference.yml` of a recogniser (PaddleOCR 3), which has the dictionary in it."""
    written = data["PostProcess"].get("character_dict")
    if written is not None and not isinstance(written, list):
        raise InvalidModel(f"{_CONFIG}: character_dict: a list is expected, not {shown(written)}")
    found: dict[str, Any] = {"task": "ocr", "family": FAMILY_OF["read"]}
    if written:
        found["labels"] = [label(character) for character in written]
    for name, told in _operations(data):
        if name == "RecResizeImg" and "image_shape" in told:
            found["input_size"] = _shape(told["image_shape"])
    return Bundle.checked(_CONFIG, found)


def _operations(data: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The transforms of an `inference.yml` by name, with what each is told. Raises InvalidModel."""
    preparing = data.get("PreProcess")
    operations = preparing.get("transform_ops") if isinstance(preparing, Mapping) else None
    if not isinstance(operations, list):
        raise InvalidModel(f"{_CONFIG}: PreProcess.transform_ops: a list is expected, not {shown(operations)}")
    for operation in operations:
        if not isinstance(operation, Mapping):
            raise InvalidModel(
                f"{_CONFIG}: an entry of transform_ops: a map of keys is expected, not {shown(operation)}"
            )
        for name, told in operation.items():
            yield str(name), told if isinstance(told, Mapping) else {}


def _shape(value: Any) -> tuple[int, int]:
    """[channels, height, width] as (height, width)."""
    if isinstance(value, list) and len(value) == 3 and all(type(size) is int and size > 0 for size in value):
        return value[1], value[2]
    raise InvalidModel(f"{_CONFIG}: image_shape is [channels, height, width], not {shown(value)}")


def _normalization(told: Mapping[str, Any]) -> dict[str, Any]:
    """PaddleOCR applies these to BGR, in the order in which they stand."""
    return {
        "scale": number(told["scale"]) if told.get("scale") is not None else 1 / 255,
        "mean": told.get("mean") or (0.485, 0.456, 0.406),
        "std": told.get("std") or (0.229, 0.224, 0.225),
        "channels": "bgr",
    }
