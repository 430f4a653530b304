"""What HTTP asks of every route alike, put around the application: HEAD, and bodies that nobody read."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visionpool_server.api.exchange import current

_SOON, _SMALL = 0.1, 2**20  # seconds and bytes: a body that ends within both is read to keep its connection
_LINGER = 3.0  # seconds that a client gets to stop sending and read why


class HeadAsGet:
    """HEAD is GET without the body (RFC 9110, 9.3.2), which the server below leaves out by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class UnreadBodies:
    """An answer that leaves before its request was read ends the connection, so that a client which sends for ever,
    or drop by drop, holds nothing. It lingers before it hangs up: closed at once, the answer could be lost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
                exchange = _Exchange(receive, send, expects=b"expect" in headers)
                receive, send = exchange.receive, exchange.send
        await self._app(scope, receive, send)


class _Exchange:
    """One request with a body, and its answer. `expects`: the client sends nothing before it is told to."""

    def __init__(self, receive: Receive, send: Send, *, expects: bool) -> None:
        self._receive = receive
        self._send = send
        self._silent = expects
        self._unread = True
        self._closing = False

    async def receive(self) -> Message:
        self._silent = False
        message = await self._receive()
        self._unread = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._unread:
            await self._read_on(_SOON, _SMALL)
            if self._unread:
                self._closing = True
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        elif self._closing and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            if exchange := current.get():
                exchange.answered()
            await self._read_on(_LINGER)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _read_on(self, seconds: float, limit: float = float("inf")) -> None:
        """Reads what still comes, and drops it."""
        if self._silent:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._unread and limit > 0:
                    limit -= len((await self.receive()).get("body", b""))
