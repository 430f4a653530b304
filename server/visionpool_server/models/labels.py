"""The names of a model's classes, from whichever place tells them."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidModel

_NUMBERED = re.compile(r"\s*(\d{1,7})(?:[ \t]|[,:;][ \t]*)(\S.*)")  # the separators that PaddleClas' `delimiter` may be


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
    """One name a line. Lines that are all led by a number of their own, from 0 on (PaddleClas), go by it, and lose it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidModel(
            f"labels: cannot read {path.name}: {error}", hint=f"it is looked for in {path.parent}"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    numbered = [_NUMBERED.match(line) for line in lines]
    names = {int(found[1]): found[2].strip() for found in numbered if found}
    if lines and sorted(names) == list(range(len(lines))):
        return tuple(names[i] for i in range(len(lines)))
    return tuple(line.strip() for line in lines)


def labels_from(names: Any) -> tuple[str, ...]:
    """The `names` of an Ultralytics export: a map from id to name, or a list. Raises InvalidModel for anything else."""
    try:
        if isinstance(names, Mapping):
            return from_map({int(key): label(name) for key, name in names.items()})
        if isinstance(names, (list, tuple)):
            return tuple(label(name) for name in names)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidModel(f"the export's names are no map from number to name: {error}") from error
    raise InvalidModel(f"the export's names are neither a map nor a list but of type {type(names).__name__}")


def label(name: Any) -> str:
    """A name that a file gives to a class, which YAML may have read as a number. Raises InvalidModel for a collection."""
    if not isinstance(name, (str, int, float)) or (isinstance(name, int) and abs(name) >= 10**18):
        raise InvalidModel(f"the name of a class is a {type(name).__name__}, not a text")
    return str(name)


def literal(text: str, key: str) -> Any:
    """The value of a Python literal in a file's metadata: parsed, never evaluated. Raises InvalidModel."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InvalidModel(f"the export's metadata has {key} that cannot be read: {text[:80]!r}") from error
