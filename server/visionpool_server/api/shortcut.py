"""Predictions go straight to their handler, everything else through the framework.

FastAPI routes, validates and documents; on the way to a handler that reads its request by hand anyway, that costs more
than the rest of the server's own work (benchmarks/results has the figures). The route stays registered there for /docs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from visionpool.errors import VisionpoolError

from visionpool_server.api.errors import error_response, unexpected_response

_PREFIX, _SUFFIX = "/v1/models/", "/predict"


class ShortCut:
    """An ASGI application around `app`; `predict` takes the POSTs to /v1/models/{model}/predict."""

    def __init__(self, app: ASGIApp, predict: Callable[[Request], Awaitable[Response]]) -> None:
        self._app = app
        self._predict = predict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = _model_of(scope) if scope["type"] == "http" and scope["method"] == "POST" else ""
        if not model:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = {"model": model}
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._predict(request)
        except VisionpoolError as error:
            return error_response(error)
        except Exception as error:
            return unexpected_response(request, error)


def _model_of(scope: Scope) -> str:
    """The model that a path names, or nothing where the path is another one."""
    path: str = scope["path"]
    if not (path.startswith(_PREFIX) and path.endswith(_SUFFIX)):
        return ""
    name = path[len(_PREFIX) : -len(_SUFFIX)]
    return "" if "/" in name else unquote(name) if "%" in name else name
