"""When the streams of a worker did what: a driver that puts an event with timing before and after each call that is watched.

    driver = TimedDriver(open_driver())
    gpu = Gpu(driver, 0)            # and all that works on it: contexts, batches of pictures
    driver.begin(stream)            # zero of the clock
    ...
    spans = driver.spans()          # once all of it is done

What is told to a stream by others, as TensorRT does, lies between the stream's wait for an event and its next record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from visionpool_server.cuda.driver import Driver, Handle


@dataclass(frozen=True, slots=True)
class Span:
    """`kind`: upload, download or compute; begin and end in milliseconds."""

    kind: str
    begin: float
    end: float


@dataclass(slots=True)
class _Mark:
    kind: str
    stream: int
    start: Handle
    end: Handle = None


class TimedDriver:
    """All else is the driver's own. Only for streams that are not captured."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._marks: list[_Mark] = []
        self._open: dict[int, _Mark] = {}
        self._zero: Handle = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def as_driver(self) -> Driver:
        return cast(Driver, self)

    def begin(self, stream: int) -> None:
        """Forgets what was, and counts from here."""
        self.forget()
        self._zero = self._event(stream)

    def upload(self, device: int, host: int, size: int, stream: int) -> None:
        with self._watched("upload", stream):
            self._driver.upload(device, host, size, stream)

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        with self._watched("download", stream):
            self._driver.download(host, device, size, stream)

    def wait(self, stream: int, event: Handle) -> None:
        self._driver.wait(stream, event)
        if self._zero is not None:
            self._open[stream] = _Mark("compute", stream, self._event(stream))

    def record(self, event: Handle, stream: int) -> None:
        mark = self._open.pop(stream, None)
        if mark is not None:
            mark.end = self._event(stream)
            self._marks.append(mark)
        self._driver.record(event, stream)

    def spans(self) -> list[Span]:
        """In the order in which they were told. What a stream of copies did between waits is the copies."""
        copying = {mark.stream for mark in self._marks if mark.kind != "compute"}
        marks = [mark for mark in self._marks if mark.kind != "compute" or mark.stream not in copying]
        return [Span(mark.kind, self._ms(mark.start), self._ms(mark.end)) for mark in marks]

    def forget(self) -> None:
        """Frees its events: nothing may be under way."""
        marks = [*self._marks, *self._open.values()]
        events = [event for mark in marks for event in (mark.start, mark.end) if event is not None]
        for event in [*events, *([self._zero] if self._zero is not None else [])]:
            self._driver.destroy_event(event)
        self._marks, self._open, self._zero = [], {}, None

    def _ms(self, event: Handle) -> float:
        return self._driver.elapsed_ms(self._zero, event)

    def _event(self, stream: int) -> Handle:
        event = self._driver.create_event(timing=True)
        self._driver.record(event, stream)
        return event

    @contextmanager
    def _watched(self, kind: str, stream: int) -> Iterator[None]:
        if self._zero is None:
            yield
            return
        mark = _Mark(kind, stream, self._event(stream))
        yield
        mark.end = self._event(stream)
        self._marks.append(mark)


def merged(spans: list[Span]) -> dict[str, list[Span]]:
    """By kind; `per` batches of several copies have one span for each copy."""
    return {kind: [span for span in spans if span.kind == kind] for kind in ("upload", "compute", "download")}
