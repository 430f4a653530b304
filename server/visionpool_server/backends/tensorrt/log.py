"""What TensorRT writes to its logger: to Python's logging, and the errors into the message of what fails by them.

TensorRT says None or False where it fails, and why in its log only. It keeps one logger a process, the first: so does this.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock, get_ident
from typing import Any

from visionpool_server.backends.tensorrt.api import Api

log = logging.getLogger("visionpool_server.tensorrt")

_LEVELS = {"WARNING": logging.INFO, "INFO": logging.DEBUG, "VERBOSE": logging.DEBUG - 5}
_NOISE = ("Thread context has not been set",)  # said as an internal error by TensorRT-RTX, of nothing
_WHERE = re.compile(r"\s+In [\w:~<>]+ at /\S+:\d+")  # a place in NVIDIA's sources
_CODE = re.compile(r"^(?:\[?[\w.:]+::?\w+(?:::\d+)?\]?:?\s+)?Error Code \d+: ")
_MOST = 20  # errors of one failure: the first ones tell


class Errors:
    """What TensorRT complains of while something is tried."""

    def __init__(self) -> None:
        self.thread = get_ident()
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        if len(self.messages) < _MOST:
            self.messages.append(message)

    @property
    def reasons(self) -> list[str]:
        """Each once, in the order in which they were said."""
        return list(dict.fromkeys(map(in_short, self.messages)))

    @property
    def reason(self) -> str:
        """Of all in one line; a general one where TensorRT has said nothing."""
        return "; ".join(self.reasons)[:1000] or "TensorRT does not say why"


class _Collectors:
    """Who is to hear of errors. Those of TensorRT's own threads go to all."""

    def __init__(self) -> None:
        self._open: list[Errors] = []
        self._lock = RLock()  # what is collected as garbage meanwhile may complain, too, on this very thread

    @contextmanager
    def collected(self) -> Iterator[Errors]:
        errors = Errors()
        with self._lock:
            self._open.append(errors)
        try:
            yield errors
        finally:
            with self._lock:
                self._open.remove(errors)

    def tell(self, message: str) -> bool:
        """Whether anyone has heard it, and is going to say it."""
        with self._lock:
            mine = [errors for errors in self._open if errors.thread == get_ident()] or self._open
            for errors in mine:
                errors.add(message)
            return bool(mine)


@cache
def _logger(trt: Any) -> tuple[Any, _Collectors]:
    """An instance of a subclass of the module's own ILogger, for ever: TensorRT does not keep it alive."""
    collectors = _Collectors()

    class Logger(trt.ILogger):  # type: ignore[misc]  # its base is found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            _write(str(getattr(severity, "name", severity)), message, collectors)

    return Logger(), collectors


def _write(severity: str, message: str, collectors: _Collectors) -> None:
    if severity in _LEVELS or message.startswith(_NOISE):
        log.log(_LEVELS.get(severity, logging.DEBUG), "%s", message)
    elif collectors.tell(message):
        log.info("%s", message)
    else:
        log.error("%s", message)


def logger(api: Api) -> Any:
    """For `trt.Builder`, `trt.Runtime` and `trt.OnnxParser`."""
    return _logger(api.trt)[0]


@contextmanager
def errors(api: Api) -> Iterator[Errors]:
    """Collects what TensorRT complains of meanwhile."""
    with _logger(api.trt)[1].collected() as found:
        yield found


def in_short(message: str) -> str:
    """An error of TensorRT's without the places in its sources."""
    return _CODE.sub("", _WHERE.sub("", " ".join(message.split()))).strip()
