"""The outermost layer of HTTP: each request becomes an `Exchange`, its answer carries the request's id, and its end is told."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visionpool_server.api.exchange import Exchange, Observer, current
from visionpool_server.api.request_id import HEADER, TRACE_HEADER, request_id, trace_id

_ID, _TRACE = HEADER.encode(), TRACE_HEADER.encode()
_LONGEST_SIZE = 18  # digits of a Content-Length that is taken for one


class Observed:
    """An ASGI application around `app`, which tells `observers` of each request once it has ended."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _exchange_of(scope, self._observers)
        named = (_ID, exchange.id.encode())

        def answer(message: Message) -> Awaitable[None]:  # passes `send` on instead of awaiting it: one frame less
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), named]
            elif not message.get("more_body", False):
                exchange.answered()
            return send(message)

        token = current.set(exchange)
        try:
            await self._app(scope, receive, answer)
            exchange.outcome = exchange.outcome or _outcome_of(exchange.status)
        except Exception:
            exchange.outcome = exchange.outcome or "internal_error"
            raise
        finally:
            exchange.end()
            current.reset(token)


def _exchange_of(scope: Scope, observers: Sequence[Observer]) -> Exchange:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    given = headers.get(_ID, b"")
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    exchange = Exchange(
        request_id(given.decode("latin-1")),
        "http",
        f"{scope['method']} {path.decode('ascii', 'backslashreplace')}",
        observers,
    )
    if client := scope.get("client"):
        exchange.peer = f"[{client[0]}]:{client[1]}" if ":" in client[0] else f"{client[0]}:{client[1]}"
    if size := headers.get(b"content-length"):
        exchange.received_bytes = int(size) if size.isdigit() and len(size) <= _LONGEST_SIZE else 0
    if parent := headers.get(_TRACE):
        exchange.trace_id = trace_id(parent.decode("latin-1"))
    return exchange


def _outcome_of(status: int | str) -> str:
    """For answers of which no handler has said how they end: those that are no errors."""
    if isinstance(status, str):
        return ""
    return "ok" if status < 400 else "internal_error" if status >= 500 else "invalid_request"
