"""The names of a model's classes, from whichever place tells them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from visionpool.errors import InvalidModel


def resolve_labels(source: str | tuple[str, ...] | Mapping[int, str] | None, folder: Path) -> tuple[str, ...]:
    """Labels by class id. `source`: a file beside the model (one name a line), a list, or a map from id to name."""
    if source is None:
        return ()
    if isinstance(source, Mapping):
        return from_map(source)
    if isinstance(source, tuple):
        return source
    return read_labels(folder / source)


def from_map(names: Mapping[int, str]) -> tuple[str, ...]:
    """A map from id to name as a tuple; an id that the map leaves out is named by its number."""
    if not names:
        return ()
    if min(names) < 0 or max(names) > 1_000_000:
        raise InvalidModel(f"labels: class ids from {min(names)} to {max(names)} make no sense")
    return tuple(names.get(index, str(index)) for index in range(max(names) + 1))


def read_labels(path: Path) -> tuple[str, ...]:
    """One name a line. Lines that are all led by their own number (PaddleClas) lose it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(
            f"labels: cannot read {path.name}: {error}", hint=f"it is looked for in {path.parent}"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    numbered = [line.partition(" ") for line in lines]
    if lines and all(number == str(i) and name for i, (number, _, name) in enumerate(numbered)):
        return tuple(name.strip() for _, _, name in numbered)
    return tuple(line.strip() for line in lines)


def parse_names(text: str) -> tuple[str, ...]:
    """The `names` entry of an Ultralytics export: a Python literal, a map or a list; parsed, never evaluated."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise InvalidModel(f"the export's metadata has names that cannot be read: {text[:80]!r}") from error
    if isinstance(names, dict):
        return from_map({int(key): str(value) for key, value in names.items()})
    if isinstance(names, (list, tuple)):
        return tuple(str(name) for name in names)
    raise InvalidModel(f"the export's metadata has names that are neither a map nor a list: {text[:80]!r}")
