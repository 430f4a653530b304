"""What HTTP is asked while the server stops: refused once it takes no more, and answered even where it is cut off."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send
from visionpool.errors import Unavailable

from visionpool_server.api.errors import error_response
from visionpool_server.api.guarded import HEALTH
from visionpool_server.api.kserve.http_infer import error_answer
from visionpool_server.api.stopping import Stopping


class Stoppable:
    """An ASGI application around `app`. Once the server refuses, it answers 503 in its place, but for health checks; and so it
    does for requests that are cut off."""

    def __init__(self, app: ASGIApp, stopping: Stopping) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stopping.refusing and scope["type"] == "http" and scope["path"] not in HEALTH:
            error = Unavailable("the server is stopping", hint="ask again: another one may answer")
            await _refuse(scope, receive, send, error)
            return
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._stopping.cut or scope["type"] != "http":
                raise
            with suppress(RuntimeError):  # the answer has begun already
                await _refuse(scope, receive, send, Unavailable("the server has stopped before this was done"))


async def _refuse(scope: Scope, receive: Receive, send: Send, error: Unavailable) -> None:
    if f"{scope['path']}/".startswith("/v2/"):
        await error_answer(error).send(send)
    else:
        await error_response(error)(scope, receive, send)
