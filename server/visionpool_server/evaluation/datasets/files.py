"""What the readers of data sets share: finding pictures, reading small files, and complaining in one way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.truth import Sample

SUFFIXES = frozenset(
    {  # of the formats that are decoded
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib"),
        *(".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k"),
    }
)
_SHOWN = 3


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def pictures_in(folder: Path, *, deep: bool = True) -> list[Path]:
    """The pictures of a folder, and with `deep` of those in it, sorted by name."""
    return sorted(path for path in (folder.rglob("*") if deep else folder.glob("*")) if is_picture(path))


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_text(path: Path) -> str:
    """Raises InvalidSetting for a file that cannot be read, or is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"{path} cannot be read: {error}", hint="a data set's lists are text in UTF-8") from error


def read_yaml_map(path: Path) -> dict[Any, Any]:
    """Raises InvalidSetting for what is no map in YAML."""
    try:
        data = yaml.safe_load(read_text(path))
    except Exception as error:  # PyYAML lets through whatever the values' own constructors raise
        raise InvalidSetting(f"{path} is not readable as YAML: {error}".splitlines()[0]) from error
    if not isinstance(data, dict):
        raise InvalidSetting(f"{path}: a map of keys is expected")
    return data


def class_names(folder: Path) -> dict[int, str]:
    """What a file beside the pictures names the classes, one a line: classes.txt, labels.txt or obj.names."""
    for name in ("classes.txt", "labels.txt", "class_names.txt", "obj.names"):
        if (folder / name).is_file():
            lines = [line.strip() for line in read_text(folder / name).splitlines()]
            return {index: line for index, line in enumerate(lines) if line}
    return {}


def present(samples: Iterable[Sample], where: Path) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """The samples whose picture is there, and a note about those that are not. Raises InvalidSetting where none is."""
    listed = list(samples)
    there = tuple(sample for sample in listed if sample.path.is_file())
    missing = [sample.name for sample in listed if not sample.path.is_file()]
    if not there:
        looked = f"; the first would be {listed[0].path}" if listed else ""
        raise InvalidSetting(
            f"{where} lists {len(listed)} pictures, and none of them is there{looked}",
            hint="say with --images which folder they are in",
        )
    if not missing:
        return there, ()
    return there, (f"{len(missing)} of the {len(listed)} pictures listed are not there: {some(missing)}",)


def some(items: Sequence[str], count: int = _SHOWN) -> str:
    """The first few, and how many there are beside them."""
    shown = ", ".join(items[:count])
    return f"{shown} and {len(items) - count} more" if len(items) > count else shown
