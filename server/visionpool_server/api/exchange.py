"""One request and its answer, as those see it who count and log them: what each transport and handler adds, in one place.

A transport (`observed.py` for HTTP, `grpc_exchange.py`) makes an `Exchange` when a request comes, puts it into `current`, and
ends it once, whatever became of the request. Handlers on the way write into it what only they know: `note_model`,
`note_pictures`, and where errors become answers `note_error`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Literal

log = logging.getLogger(__name__)

Transport = Literal["http", "grpc"]
Kind = Literal["call", "stream", "frame"]
Observer = Callable[["Exchange"], None]
"""Is told of each exchange once, on the event loop, when it has ended: never slow, raises nothing."""


class Exchange:
    """`id`: the caller's own (X-Request-ID) or one of ours. `call`: the method and path, or gRPC's full method name; whoever
    calls may have invented it. `model`: one that is served and was asked for results, else "". `outcome`: "ok", or the code
    of an error in visionpool.errors; "" until it is known. `status`: HTTP's number, or the name of gRPC's code.

    A stream of gRPC is an exchange (`kind` "stream"), and each request in it another (`kind` "frame") that ends before it.
    """

    __slots__ = (
        *("_ended", "caller", "call", "failed", "frames", "id", "kind", "model", "observers", "outcome", "peer"),
        *("pictures", "received_bytes", "seconds", "started", "status", "trace_id", "transport", "version"),
    )

    def __init__(
        self, name: str, transport: Transport, call: str, observers: Sequence[Observer] = (), *, kind: Kind = "call"
    ) -> None:
        self.id = name
        self.transport: Transport = transport
        self.call = call
        self.observers = observers
        self.kind: Kind = kind
        self.trace_id = ""  # of W3C's traceparent, where the caller sent one
        self.peer = ""  # its address
        self.caller = ""  # the name of its API key, where that has one
        self.model = self.version = ""
        self.outcome = ""
        self.status: int | str = ""
        self.pictures = 0
        self.received_bytes = 0  # bytes of its body or message, as far as they are known
        self.frames = self.failed = 0  # of a stream: how many it had, and how many of them ended with an error
        self.started = time.monotonic()
        self.seconds = 0.0  # once it has ended
        self._ended = False

    @property
    def counts(self) -> bool:
        """Whether it is a request of its own: a stream is not, where its frames have been counted, but for what ended it."""
        return self.kind != "stream" or self.outcome not in ("ok", "cancelled")

    def frame(self) -> Exchange:
        """One more request of this stream."""
        frame = Exchange(self.id, self.transport, self.call, self.observers, kind="frame")
        frame.trace_id, frame.peer, frame.caller = self.trace_id, self.peer, self.caller
        self.frames += 1
        return frame

    def answered(self) -> None:
        """The answer is complete, or handed over; what comes later (a connection that lingers) is not of this request."""
        self.seconds = self.seconds or time.monotonic() - self.started

    def end(self) -> None:
        """Tells the observers, the first time. Without an outcome the caller went away before there was one."""
        if self._ended:
            return
        self._ended = True
        self.seconds = self.seconds or time.monotonic() - self.started
        self.outcome = self.outcome or "cancelled"
        for tell in self.observers:
            try:
                tell(self)
            except Exception as error:  # whoever counts must not be what fails a request
                log.error("an observer of requests failed", exc_info=error)


current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def note_model(name: str, version: str = "") -> None:
    """The request is for this model, which is served: names that callers invent must not get here."""
    if exchange := current.get():
        exchange.model, exchange.version = name, version


def note_pictures(count: int) -> None:
    """The request brought so many pictures."""
    if exchange := current.get():
        exchange.pictures += count


def note_error(code: str) -> None:
    """It ends with this error."""
    if exchange := current.get():
        exchange.outcome = code


class Frame:
    """`with Frame():` around the answer to one request of a stream, in a task of its own."""

    __slots__ = ("_exchange", "_stream")

    def __enter__(self) -> None:
        self._stream = current.get()
        self._exchange = self._stream.frame() if self._stream else None
        current.set(self._exchange)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        frame, stream = self._exchange, self._stream
        if frame is None or stream is None:
            return
        if kind is None:
            frame.outcome = frame.outcome or "ok"
        if frame.model:
            stream.model, stream.version = frame.model, frame.version
        stream.pictures += frame.pictures
        frame.end()
        stream.failed += frame.outcome != "ok"
        current.set(stream)
