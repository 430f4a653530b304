"""The `preprocess:` list of model.yaml: one-key maps, such as `- resize_short: 256`, as the steps of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from visionpool.errors import InvalidModel

from visionpool_server.imaging.recipe import (
    Arithmetic,
    CenterCrop,
    Gray,
    Letterbox,
    Pad,
    PadToStride,
    Recipe,
    Resize,
    ResizeShort,
    Step,
)
from visionpool_server.imaging.sizes import CropSquare, LimitLong, LimitShort, PadToAspect, ResizeLong, ResizeToMultiple
from visionpool_server.imaging.text_lines import LimitSide, TextLine
from visionpool_server.models.numbers import number

STEPS: dict[str, type[Step]] = {
    "resize": Resize,
    "resize_short": ResizeShort,
    "resize_long": ResizeLong,
    "limit_long": LimitLong,
    "limit_short": LimitShort,
    "resize_to_multiple": ResizeToMultiple,
    "center_crop": CenterCrop,
    "crop_square": CropSquare,
    "letterbox": Letterbox,
    "pad": Pad,
    "pad_to_stride": PadToStride,
    "pad_to_aspect": PadToAspect,
    "gray": Gray,
    "limit_side": LimitSide,
    "text_line": TextLine,
}
_NORMALIZE = "normalize"


def recipe_from(items: Sequence[Mapping[str, Any] | str]) -> Recipe:
    """The recipe that a `preprocess:` list says. Raises InvalidModel, naming the step and what it allows."""
    steps: list[Step] = []
    arithmetic = Arithmetic()
    for index, written in enumerate(items):
        item = {written: None} if isinstance(written, str) else written
        if len(item) != 1:
            raise InvalidModel(f"preprocess[{index}] is one step: a map with one key, not {list(item)}")
        name, value = next(iter(item.items()))
        if name == _NORMALIZE:
            arithmetic = cast(Arithmetic, _build(Arithmetic, value, f"preprocess[{index}].{name}"))
        elif name in STEPS:
            steps.append(cast(Step, _build(STEPS[name], value, f"preprocess[{index}].{name}")))
        else:
            raise InvalidModel(
                f"preprocess[{index}]: unknown step {name!r}",
                hint=f"allowed: {', '.join([*STEPS, _NORMALIZE])}",
            )
    return Recipe(tuple(steps), arithmetic)


def _build(kind: type, value: Any, where: str) -> Any:
    """A step from its map, or from the bare value of its first field."""
    names = [field.name for field in fields(kind)]
    data = dict(value) if isinstance(value, Mapping) else {names[0]: value} if names and value is not None else {}
    if unknown := set(data) - set(names):
        raise InvalidModel(f"{where}: unknown key {', '.join(sorted(unknown))}", hint=f"allowed: {', '.join(names)}")
    if isinstance(data.get("size"), int) and "size" in names and kind not in (ResizeShort, ResizeLong):
        data["size"] = (data["size"], data["size"])
    if isinstance(data.get("scale"), str):
        data["scale"] = number(data["scale"])
    for name in ("mean", "std"):
        if name in data:
            data[name] = _for_three(data[name], f"{where}.{name}")
    try:
        return TypeAdapter(with_config(ConfigDict(extra="forbid"))(kind)).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidModel(f"{where}.{path}: {first['msg']}") from error


def _for_three(value: Any, where: str) -> Any:
    """One number for each channel; a single one counts for all."""
    if isinstance(value, (int, float)):
        return (value,) * 3
    if isinstance(value, (list, tuple)) and len(value) not in (1, 3):
        raise InvalidModel(f"{where}: one number is expected, or one for each of three channels, not {len(value)}")
    return tuple(value) * 3 if isinstance(value, (list, tuple)) and len(value) == 1 else value
