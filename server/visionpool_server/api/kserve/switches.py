"""What can be switched while the server runs: traces of single requests, and how much is logged (Triton's extensions)."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import InvalidRequest, InvalidSetting

from visionpool_server.api.kserve.trace_files import Trace, TraceWriter
from visionpool_server.api.kserve.trace_settings import FILE, TraceSettings, read_changes
from visionpool_server.models.repository import Repository


class Tracing:
    """Which requests are traced, and where to. `folder`: where trace files may be written, None for nowhere.

    `on`: whether any request may be traced at all; look at it before `sampled`. Raises InvalidSetting for a folder that cannot
    be written.
    """

    def __init__(self, folder: Path | None, models: Repository) -> None:
        self.on = False
        self._models = models
        self._folder = None if folder is None else _writable(folder)
        self._writer = TraceWriter(self._folder) if self._folder else None
        self._general = self._initial()
        self._single: dict[str, TraceSettings] = {}  # by model, where one has its own
        self._ids = count(1)
        self._lock = Lock()

    @property
    def possible(self) -> bool:
        """Whether traces can be written."""
        return self._writer is not None

    def update(self, model: str, changes: Mapping[str, Any]) -> Any:
        """Changes the settings of a model, or for "" those of all; without changes it just shows them.

        A value of None (or an empty list) takes a setting back to what holds for all models, or to that of the start. Raises
        ModelNotFound, InvalidRequest, Unimplemented; nothing has changed then.
        """
        if model:
            self._models.get(model)
        values = read_changes(changes, self._folder)
        with self._lock:
            if values and model:
                self._change_one(model, values)
            elif values:
                self._change_all(values)
            self._refresh()
            return _trace_response(self._of(model))

    def sampled(self, model: str) -> bool:
        """Whether to trace this request; asked once for each."""
        if not self.on:
            return False
        with self._lock:
            sampled = self._of(model).sample()
            self._refresh()
        return sampled

    def write(self, model: str, version: str, request_id: str, timestamps: Sequence[tuple[str, int]]) -> None:
        """Has one trace written; never blocks. `timestamps`: (name, nanoseconds), under Triton's names."""
        assert self._writer is not None
        settings = self._of(model)
        content = {
            "id": next(self._ids),
            "model_name": model,
            "model_version": int(version) if version.isdecimal() else version,
            "request_id": request_id,
            "timestamps": [{"name": name, "ns": ns} for name, ns in timestamps],
        }
        self._writer.put(Trace(settings.trace_file, settings.log_frequency, content))

    def close(self) -> None:
        """Writes what is waiting."""
        if self._writer:
            self._writer.close()

    def _initial(self) -> TraceSettings:
        return TraceSettings(trace_file=FILE if self._folder else "")

    def _of(self, model: str) -> TraceSettings:
        return self._single.get(model, self._general)

    def _change_one(self, model: str, values: Mapping[str, Any]) -> None:
        settings = self._single.setdefault(model, _following(self._general))
        for name, value in values.items():
            if value is None:
                settings.own.discard(name)
            else:
                settings.own.add(name)
            setattr(settings, name, getattr(self._general, name) if value is None else value)
        if not settings.own:
            del self._single[model]

    def _change_all(self, values: Mapping[str, Any]) -> None:
        start = self._initial()
        for name, value in values.items():
            new = getattr(start, name) if value is None else value
            for settings in (self._general, *(one for one in self._single.values() if name not in one.own)):
                setattr(settings, name, new)

    def _refresh(self) -> None:
        self.on = any(settings.on for settings in (self._general, *self._single.values()))


class LogSwitches:
    """Which levels of the server's own log are written, each by itself as with Triton. `close()` undoes all changes."""

    def __init__(self, name: str = "visionpool_server") -> None:
        self._logger = logging.getLogger(name)
        level = self._logger.getEffectiveLevel()
        self._level = self._logger.level
        self._filter = _Levels(name)
        self._values: dict[str, Any] = {
            "log_verbose_level": int(level <= logging.DEBUG),
            "log_info": level <= logging.INFO,
            "log_warning": level <= logging.WARNING,
            "log_error": level <= logging.ERROR,
            "log_file": "",
            "log_format": "default",
        }

    def update(self, changes: Mapping[str, Any]) -> Any:
        """Changes settings; without changes it just shows them. Raises InvalidRequest; nothing has changed then."""
        for name, value in changes.items():
            self._check(name, value)
        self._values |= changes
        if changes:
            self._apply()
        response = pb.LogSettingsResponse()
        for name, value in self._values.items():
            kind = "bool_param" if type(value) is bool else "uint32_param" if type(value) is int else "string_param"
            setattr(response.settings[name], kind, value)
        return response

    def close(self) -> None:
        self._logger.setLevel(self._level)
        for handler in _handlers(self._logger):
            handler.removeFilter(self._filter)

    def _check(self, name: str, value: Any) -> None:
        if name not in self._values:
            raise InvalidRequest(f"unknown log setting {name[:80]!r}", hint=f"known: {', '.join(self._values)}")
        own = self._values[name]
        if type(value) is not type(own):
            kind = {bool: "true or false", int: "a whole number", str: "text"}[type(own)]
            raise InvalidRequest(f"{name} is {kind}, not {str(value)[:80]!r}")
        if type(value) is int and not 0 <= value < 2**32:
            raise InvalidRequest(f"{name} is 0 or more, not {value}")
        if type(value) is str and value != own:
            raise InvalidRequest(
                f"{name} cannot be changed while the server runs",
                hint=f"leave it out, or {own!r}; the log goes to stderr",
            )

    def _apply(self) -> None:
        values = self._values
        wanted = {
            logging.DEBUG: values["log_verbose_level"] > 0,
            logging.INFO: values["log_info"],
            logging.WARNING: values["log_warning"],
            logging.ERROR: values["log_error"],
        }
        self._filter.written = {level for level, on in wanted.items() if on}
        self._logger.setLevel(min(self._filter.written, default=logging.CRITICAL + 1))
        for handler in _handlers(self._logger):
            handler.addFilter(self._filter)


class _Levels(logging.Filter):
    """Lets the records of other loggers through, and of its own those whose level is `written`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.written: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        level = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.ERROR))
        return level in self.written or not super().filter(record)


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """All that a record of this logger reaches."""
    while logger:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _following(general: TraceSettings) -> TraceSettings:
    settings = copy.copy(general)
    settings.own, settings.seen = set(), 0
    return settings


def _trace_response(settings: TraceSettings) -> Any:
    response = pb.TraceSettingResponse()
    for name, value in settings.shown().items():
        response.settings[name].value.append(value)
    return response


def _writable(folder: Path) -> Path:
    folder = folder.expanduser().resolve()
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidSetting(
            f"{folder} is no folder that traces can be written to", hint="create it, or change --trace-dir"
        )
    return folder
