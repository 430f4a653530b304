"""One connection of a client, as uvicorn keeps it, with an end to its patience before a request has begun, and to its life once
the server is to stop."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from visionpool_server.api.stopping import Stopping

_LARGEST_HEAD = 2**16  # bytes, besides those that came in one piece with its first one
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connections(ServerState):
    """All connections of one listener. `changed` is set when one of them may have become idle, while the server stops."""

    def __init__(self, stopping: Stopping) -> None:
        super().__init__()
        self.stopping = stopping
        self.changed = asyncio.Event()


class Connection(HttpToolsProtocol):
    """Hangs up where a request line and its headers are not there in time: uvicorn waits for them for ever, and so
    clients that say nothing, or say it drop by drop, could use up all connections that the process may have. Nor does it
    keep more of them than any client needs: they are kept before anybody has looked whether he has a key.

    Once the server is to stop, each answer says `Connection: close`, so that the client asks its next one elsewhere.
    """

    seconds = 10.0
    server_state: Connections

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = self._began = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = self.server_state.stopping

    @property
    def busy(self) -> bool:
        """Whether a request has begun here, and its answer is not written yet."""
        return self._in_head or bool(self.pipeline) or not (self.cycle is None or self.cycle.response_complete)

    @property
    def leaving(self) -> bool:
        """Whether an answer is written, but has not left yet: its client reads slowly."""
        return self.transport.get_write_buffer_size() > 0

    def let_go(self) -> None:
        """The answer under way, if it has not begun, is the last one: its client learns so from its head."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._in_head = False
        super().connection_lost(exc)
        self.server_state.changed.set()

    def data_received(self, data: bytes) -> None:
        self._began = False
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_goes_on(0 if self._began else len(data))

    def _head_goes_on(self, size: int) -> None:
        if self._timer is None:
            self._arm()
        self._head_bytes += size
        if self._head_bytes > _LARGEST_HEAD:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._began = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a body is no header: nobody here asks for it, and there may be any number
            # White space behind a value is not of it (RFC 9110, 5.5), and httptools leaves it there.
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        self._in_head = False
        self._disarm()
        if self._stopping.begun:
            if before is not None and not before.response_started:
                before.keep_alive = True  # sent ahead of its answer, this request is the last one instead
            self.let_go()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._stopping.begun:
            self.server_state.changed.set()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._end)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._arm()  # the next request was begun while one is being answered: that comes first
        else:
            self._timer = None
            self.transport.close()
