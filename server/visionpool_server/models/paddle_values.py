"""Values as Paddle's files write them: lists, sizes, numbers, interpolations. What makes no sense raises InvalidModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.models.numbers import number, shown

Items = list[dict[str, Any]]  # of a bundle's `preprocess`

_BY_OPENCV_NUMBER = {0: "nearest", 1: "linear", 2: "cubic", 3: "area", 4: "lanczos"}
_BY_PILLOW_NUMBER = {0: "nearest", 1: "lanczos", 2: "linear", 3: "cubic", 4: "area"}
_BY_NAME = {
    **{"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic", "area": "area", "lanczos": "lanczos"},
    **{"linear": "linear", "cubic": "cubic", "box": "area", "lanczos4": "lanczos"},
}


def map_of(value: Any, where: str) -> Mapping[str, Any]:
    """A map; nothing at all counts as an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidModel(f"{where}: a map of keys is expected, not {shown(value)}")
    return value


def list_of(value: Any, where: str) -> list[Any]:
    """A list; nothing at all counts as an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidModel(f"{where}: a list is expected, not {shown(value)}")
    return value


def numbers(value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(map(number, value if isinstance(value, list) else [value])) if value else default


def pair(value: Any) -> tuple[int, int]:
    """One number counts for both sides."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    raise InvalidModel(f"a size of one or two numbers is expected, not {shown(value)}")


def first(value: Any) -> float:
    return number(value[0] if isinstance(value, (list, tuple)) and value else value)


def fill(value: Any, default: float) -> int | tuple[int, ...]:
    """The colour of a margin, in whole numbers: pictures are padded as 8 bits a channel."""
    values = numbers(value, (default,))
    if not all(0 <= each <= 255 for each in values):
        raise InvalidModel(f"a colour of 0 to 255 is expected, not {shown(value)}")
    whole = tuple(int(each + 0.5) for each in values)
    return whole[0] if len(set(whole)) == 1 else whole


def interpolation(value: Any, *, pillow: bool = False) -> str:
    """By OpenCV's number, or Pillow's, or by name."""
    by_number = _BY_PILLOW_NUMBER if pillow else _BY_OPENCV_NUMBER
    known = by_number.get(value) if isinstance(value, int) else None
    if isinstance(value, str):
        known = _BY_NAME.get(value.lower())
    if known is None:
        raise InvalidModel(f"the interpolation {shown(value)} is not known", hint=f"known: {', '.join(_BY_NAME)}")
    return known
