"""Triton's trace settings: their values, how they are written, and which are refused."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidRequest, Unimplemented

FILE = "trace.json"  # where none is named
_INT32 = 2**31 - 1
_NO_FOLDER, _HOW = "this server writes no traces", "start it with --trace-dir FOLDER, where trace files may be written"
_Reader = Callable[[str, Sequence[str], Path | None], Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(slots=True)
class TraceSettings:
    """What holds for one model, or for all without their own. `own`: what was said for just this model."""

    trace_level: str = "OFF"
    trace_rate: int = 1000  # every so-manieth request
    trace_count: int = -1  # how many more; -1: no end
    log_frequency: int = 0
    trace_file: str = ""
    trace_mode: str = "triton"
    own: set[str] = field(default_factory=set)
    seen: int = 0  # requests

    @property
    def on(self) -> bool:
        return self.trace_level != "OFF" and self.trace_count != 0

    def sample(self) -> bool:
        """Whether this request is one to trace."""
        if not self.on:
            return False
        self.seen += 1
        if self.seen % self.trace_rate:
            return False
        if self.trace_count > 0:
            self.trace_count -= 1
        return True

    def shown(self) -> dict[str, str]:
        """As the protocol shows them: all values are text."""
        return {name: str(getattr(self, name)) for name in _READERS}


def read_changes(changes: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """New values by setting, checked; None for one that is to be reset.

    They come as text, numbers or lists of one of those. Raises InvalidRequest, Unimplemented.
    """
    return {name: _read(name, value, folder) for name, value in changes.items()}


def _read(name: str, value: Any, folder: Path | None) -> Any:
    values = value if isinstance(value, list) else [value]
    if name not in _READERS:
        raise InvalidRequest(f"unknown trace setting {name[:80]!r}", hint=f"known: {', '.join(_READERS)}")
    if values in ([], [None]):
        return None
    if name != "trace_level" and len(values) != 1:
        raise InvalidRequest(f"{name} takes one value, not {len(values)}")
    return _READERS[name](name, [str(one) for one in values], folder)


def _mode(name: str, values: Sequence[str], _: Path | None) -> str:
    if values != ["triton"]:
        raise Unimplemented(f"{name}: only Triton's own trace files are written", hint=f"leave {name} out")
    return "triton"


def _level(name: str, values: Sequence[str], folder: Path | None) -> str:
    if "TENSORS" in values:
        raise Unimplemented(f"{name} TENSORS: the data of requests are not traced", hint="use TIMESTAMPS")
    if set(values) not in ({"OFF"}, {"TIMESTAMPS"}):
        raise InvalidRequest(f"{name} is OFF or TIMESTAMPS, not {', '.join(values)[:80]!r}")
    if values[0] != "OFF" and folder is None:
        raise InvalidRequest(_NO_FOLDER, hint=_HOW)
    return values[0]


def _whole(least: int) -> _Reader:
    def read(name: str, values: Sequence[str], _: Path | None) -> int:
        said = values[0]
        number = int(said) if re.fullmatch(r"-?[0-9]{1,10}", said) else None
        if number is None or not least <= number <= _INT32:
            raise InvalidRequest(f"{name} is a whole number from {least} to {_INT32}, not {said[:40]!r}")
        return number

    return read


def _file(name: str, values: Sequence[str], folder: Path | None) -> str:
    """A client names a file, but never its folder: that is the operator's."""
    said = values[0]
    if folder is None:
        raise InvalidRequest(_NO_FOLDER, hint=_HOW)
    inside = Path(os.path.normpath(folder / said)) if "\0" not in said else folder
    if inside.parent != folder or not _NAME.fullmatch(inside.name):
        raise InvalidRequest(
            f"{name} {said[:200]!r} is no file in the server's folder for traces",
            hint="send a plain name of letters, digits, dots and dashes, such as trace.json",
        )
    return inside.name


_READERS: dict[str, _Reader] = {
    "trace_level": _level,
    "trace_rate": _whole(1),
    "trace_count": _whole(-1),
    "log_frequency": _whole(0),
    "trace_file": _file,
    "trace_mode": _mode,
}
