"""The log of `visionpool serve`: one line a record on stderr, for people or as JSON, with the id of the request it belongs to.

Lines are made where they are logged and written by a thread of their own, so that a slow reader of stderr holds up no request:
past so many lines that wait, further ones are lost, and counted. Nothing that a caller sends breaks a line.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Literal, TextIO

from pythonjsonlogger.core import LogData
from pythonjsonlogger.orjson import OrjsonFormatter

from visionpool_server.api.access_log import DETAILS
from visionpool_server.api.access_log import NAME as ACCESS
from visionpool_server.api.exchange import current

START = "visionpool_server.start"  # what is served, and where: said at every level

_WAITING = 10_000  # lines
_AT_ONCE = 500  # of them in one write
_GATHER = 0.02  # seconds in which they come together: each time the thread wakes it takes the interpreter from requests
_LAST_WORDS = 2.0  # seconds that stderr gets to take them, when the process ends


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Sends all logs of this process to stderr, in JSON also what would be printed there otherwise: warnings, tracebacks."""
    as_json = form == "json"
    writer = _Writer(sys.stderr, _Json() if as_json else _Text())
    logging.basicConfig(level=level.upper(), handlers=[_Handler(writer)], force=True)
    for noisy in ("uvicorn", "uvicorn.error", "httpx"):
        logging.getLogger(noisy).setLevel("WARNING")
    logging.getLogger(START).setLevel("INFO")
    access = logging.getLogger(ACCESS)
    access.setLevel("INFO")
    access.propagate = False  # nobody switches off the record of its own requests by KServe's log settings
    access.handlers = [_Handler(writer)]
    if as_json:
        _catch_what_is_printed()


def _catch_what_is_printed() -> None:
    logging.captureWarnings(capture=True)
    log = logging.getLogger(__name__)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        log.critical("an error that nobody caught", exc_info=(kind, error, trace))

    def in_thread(told: threading.ExceptHookArgs) -> None:
        if told.exc_value is not None and not issubclass(told.exc_type, SystemExit):
            uncaught(told.exc_type, told.exc_value, told.exc_traceback)

    def unraisable(told: Any) -> None:
        log.error("an error that nobody could catch, in %r", told.object, exc_info=told.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, in_thread, unraisable


class _Writer:
    """Takes lines from any thread, and never blocks; `close` writes what waits."""

    def __init__(self, stream: TextIO, form: logging.Formatter) -> None:
        self.form = form
        self._stream = stream
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        if not self._thread.is_alive():  # closed. Who writes before that may have to wait, and holds logging's lock
            self._write([line])
        elif self._lines.qsize() < _WAITING:
            self._lines.put(line)
        else:
            self._lost += 1

    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._lines.put(None)
            self._thread.join(_LAST_WORDS)
            if not self._thread.is_alive() and (late := self._waiting()):
                self._write(late)

    def _waiting(self) -> list[str]:
        """What came after `None`, while the thread wrote its last lines."""
        lines: list[str] = []
        with suppress(Empty):
            while line := self._lines.get_nowait():
                lines.append(line)
        return lines

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._closing.wait(_GATHER)
            lines = [line]
            with suppress(Empty):
                while len(lines) < _AT_ONCE and (line := self._lines.get_nowait()) is not None:
                    lines.append(line)
            if lost := self._lost:
                self._lost -= lost
                lines.append(self.form.format(_lost(lost)))
            self._write(lines)
            if line is None:
                return

    def _write(self, lines: list[str]) -> None:
        with suppress(OSError, ValueError):  # whoever read it has gone
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def _lost(count: int) -> logging.LogRecord:
    text = "%d lines of the log were lost: stderr is not read fast enough"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)


class _Handler(logging.Handler):
    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(writer.form)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self.format(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Called when the process ends."""
        self._writer.close()
        super().close()


class _Text(logging.Formatter):
    """A line for people. What follows it, as a traceback does, is indented: no line but the first of a record looks like one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  as logging calls it
        line = _plain(super().formatMessage(record))
        if record.name == ACCESS:
            given = record.__dict__
            line += "".join(f" {name}={_plain(str(given[name]))}" for name in DETAILS if name in given)
        exchange = current.get()
        return f"{line} [{exchange.id}]" if exchange else line

    def formatException(self, ei: Any) -> str:  # noqa: N802  likewise
        return "\n".join(f"  {_plain(line)}" for line in super().formatException(ei).splitlines())

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  likewise
        return "\n".join(f"  {_plain(line)}" for line in stack_info.splitlines())


def _plain(text: str) -> str:
    """The text with everything escaped that is no visible character or space: what ends lines, moves cursors, turns text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Json(OrjsonFormatter):
    """One object a line. Times are UTC."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"], rename_fields={"levelname": "level", "name": "logger"}, json_default=str
        )

    def add_fields(self, log_data: LogData, record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        made = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["time"] = made.replace("+00:00", "Z")
        super().add_fields(log_data, record, message_dict)
        if exchange := current.get():
            log_data["request_id"] = exchange.id
            if exchange.trace_id:
                log_data["trace_id"] = exchange.trace_id

    def jsonify_log_record(self, log_data: LogData) -> str:
        try:
            line = super().jsonify_log_record(log_data)
        except TypeError:  # half a surrogate pair, which is no Unicode
            line = super().jsonify_log_record({name: _unicode(value) for name, value in log_data.items()})
        return line if line.isascii() else line.translate(_LINE_ENDS)


_LINE_ENDS = {
    code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)
}  # of which JSON makes nothing, but some readers do


def _unicode(value: Any) -> Any:
    text = value if isinstance(value, str) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()
