"""Trace files in Triton's format: a JSON array, whole and readable at any time, with one trace a line.

Tracing.write -> queue (bounded) -> one thread -> NAME, or NAME.0, NAME.1 ... of so many traces each
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Lock, Thread
from typing import Any

log = logging.getLogger(__name__)

_WAITING = 10_000  # traces
_BLOCK = 4096  # bytes that a file takes at least
_START, _BETWEEN, _END = b"[\n", b",\n", b"\n]\n"


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of the file `name`; `frequency`: how many a file takes before the next is begun, 0 for all."""

    name: str
    frequency: int
    content: dict[str, Any]


@dataclass(slots=True)
class _Place:
    """Which of its files a name has come to, and how many traces are in that."""

    index: int = 0
    count: int = 0


class TraceWriter:
    """Writes into `folder` on a thread of its own, which starts with the first trace. At most `max_bytes` in all: any client
    may ask for traces, and the disk is everyone's. `close()` writes what is waiting."""

    def __init__(self, folder: Path, max_bytes: int = 2**30) -> None:
        self._folder = folder
        self._left = max_bytes
        self._queue: Queue[Trace | None] = Queue(_WAITING)
        self._thread: Thread | None = None
        self._starting = Lock()
        self._places: dict[str, _Place] = {}
        self._begun: set[str] = set()  # the files of this process; others of these names are overwritten
        self._lost = 0

    def put(self, trace: Trace) -> None:
        """Never blocks: where the disk does not keep up, the trace is lost, and the log says so."""
        with self._starting:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="traces", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(trace)
        except Full:
            self._lost += 1

    def close(self, timeout: float = 5.0) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put(None, timeout=timeout)
        except Full:
            return  # the disk hangs: the thread ends with the process
        self._thread.join(timeout)

    def _run(self) -> None:
        ended = False
        while not ended:
            traces, ended = self._waiting()
            files: dict[str, list[bytes]] = {}
            for trace in traces:
                files.setdefault(self._file_of(trace), []).append(json.dumps(trace.content).encode())
            for name, lines in files.items():
                self._append(name, lines)
            if self._lost:
                log.warning("%d traces were lost: the disk does not keep up", self._lost)
                self._lost = 0

    def _waiting(self) -> tuple[list[Trace], bool]:
        """Waits for a trace and takes all that are there, and says whether that was the end."""
        traces: list[Trace] = []
        trace = self._queue.get()
        while trace is not None:
            traces.append(trace)
            try:
                trace = self._queue.get_nowait()
            except Empty:
                return traces, False
        return traces, True

    def _file_of(self, trace: Trace) -> str:
        place = self._places.setdefault(trace.name, _Place())
        if trace.frequency and place.count >= trace.frequency:
            place.index, place.count = place.index + 1, 0
        place.count += 1
        return f"{trace.name}.{place.index}" if trace.frequency else trace.name

    def _append(self, name: str, lines: list[bytes]) -> None:
        text, fresh = _BETWEEN.join(lines), name not in self._begun
        self._left -= len(text) + (_BLOCK if fresh else 0)
        if self._left < 0:
            log.warning("%d traces were not written to %s: traces have taken all the room they get", len(lines), name)
            return
        try:
            _extend(self._folder / name, text, fresh=fresh)
            self._begun.add(name)
        except OSError as error:
            log.warning("%d traces were lost: %s: %s", len(lines), name, error.strerror)


def _extend(path: Path, text: bytes, *, fresh: bool) -> None:
    """The array in a file, longer by `text`. It is opened each time, so that it may be moved away meanwhile."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags | (os.O_TRUNC if fresh else 0), 0o644), "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - len(_END)))
        file.write((_BETWEEN if end else _START) + text + _END)
