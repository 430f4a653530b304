"""Predictions and inferences go straight to their handlers, everything else through the framework.

FastAPI routes, validates and documents; on the way to a handler that reads its request by hand anyway, that costs more
than the rest of the server's own work (benchmarks/results has the figures). The routes stay registered there for /docs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from visionpool.errors import VisionpoolError

from visionpool_server.api.errors import error_response, unexpected_response

Infer = Callable[[Scope, Receive, Send, str, str], Awaitable[None]]  # the last two: model and version, "" for any

_PREDICT = ("/v1/models/", "/predict")
_INFER = ("/v2/models/", "/infer")


class ShortCut:
    """An ASGI application around `app`. `predict` takes the POSTs to /v1/models/{model}/predict, `infer` those to
    /v2/models/{model}/infer and /v2/models/{model}/versions/{version}/infer, and answers its errors itself."""

    def __init__(self, app: ASGIApp, predict: Callable[[Request], Awaitable[Response]], infer: Infer) -> None:
        self._app = app
        self._predict = predict
        self._infer = infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            if target := _target_of(path):
                return await self._infer(scope, receive, send, *target)
            if model := _between(path, _PREDICT):
                scope["path_params"] = {"model": model}
                response = await self._answer(Request(scope, receive, send))
                return await response(scope, receive, send)
        return await self._app(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._predict(request)
        except VisionpoolError as error:
            return error_response(error)
        except Exception as error:
            return unexpected_response(request, error)


def _target_of(path: str) -> tuple[str, str] | None:
    """The model and the version that a path asks to infer; None where the path is another one."""
    if not (path.startswith(_INFER[0]) and path.endswith(_INFER[1])):
        return None
    model, slash, rest = path[len(_INFER[0]) : -len(_INFER[1])].partition("/")
    version = rest.removeprefix("versions/") if slash else ""
    if not model or "/" in version or (slash and version in ("", rest)):
        return None
    return model, version


def _between(path: str, ends: tuple[str, str]) -> str:
    """The one segment of a path between its two `ends`, or nothing where the path is another one."""
    prefix, suffix = ends
    if not (path.startswith(prefix) and path.endswith(suffix)):
        return ""
    name = path[len(prefix) : -len(suffix)]
    return "" if "/" in name else name
