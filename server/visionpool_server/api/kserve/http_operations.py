"""How a handler of KServe v2 becomes a route: its errors in the protocol's form, and its bodies described for /docs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from visionpool.errors import MethodNotAllowed, NotFound, VisionpoolError

from visionpool_server.api.kserve.http_infer import error_answer, unexpected_answer
from visionpool_server.api.kserve.http_schemas import InferenceRequest, KserveError
from visionpool_server.api.schemas import inlined

Handle = Callable[[Request], Awaitable[Any]]  # the answer as JSON values, or as a Response

_STATUSES = (400, 404, 405, 408, 413, 415, 422, 429, 499, 500, 501, 503, 504)
_OPAQUE = {"schema": {"type": "string", "format": "binary"}}

INFER_EXAMPLE: dict[str, Any] = {
    "model_name": "digits",
    "model_version": "1",
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.7, 0.2]}],
}
INFER_BODY: dict[str, Any] = {
    "application/json": {
        "schema": inlined(InferenceRequest),
        "example": {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 0.5, 0.5, 1.0]}]},
    },
    "application/octet-stream": _OPAQUE,
}


@dataclass(frozen=True, slots=True)
class Operation:
    """`body`: the model of a JSON body that may be left out, or the `content` of one that may not. `shown`: in /docs."""

    method: str
    path: str
    handle: Handle
    summary: str
    answer: Any
    body: type[BaseModel] | dict[str, Any] | None = None
    example: dict[str, Any] | None = None
    shown: bool = True

    def add_to(self, router: APIRouter) -> None:
        content: dict[str, Any] = {"application/json": {"example": self.example} if self.example else {}}
        if isinstance(self.body, dict):
            content["application/octet-stream"] = _OPAQUE
        table: dict[int | str, dict[str, Any]] = {200: {"model": self.answer, "content": content}}
        router.add_api_route(
            self.path,
            _answering(self.handle),
            methods=[self.method],
            summary=self.summary,
            responses=table | {status: {"model": KserveError} for status in _STATUSES},
            openapi_extra=self._extra(),
            include_in_schema=self.shown,
        )

    def _extra(self) -> dict[str, Any]:
        """The handler reads its request by hand: what it reads is described here."""
        names = re.findall(r"{(\w+)}", self.path)
        extra: dict[str, Any] = {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        }
        if isinstance(self.body, dict):
            extra["parameters"].append(_HEAD_SIZE)
            extra["requestBody"] = {"required": True, "content": self.body}
        elif self.body is not None:
            extra["requestBody"] = {"content": {"application/json": {"schema": inlined(self.body)}}}
        return extra


_HEAD_SIZE = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "Where tensors follow the JSON in binary: the length of the JSON. 0: the body is the one input, raw.",
    "schema": {"type": "integer", "minimum": 0},
}


class Leftovers:
    """Everything else below /v2, as an ASGI application: its 404 or 405 have the protocol's form too."""

    def __init__(self, router: APIRouter) -> None:
        self._known = [route for route in router.routes if isinstance(route, APIRoute)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  as ASGI has it
        method, path = scope["method"], scope["path"]
        allowed = sorted({m for route in self._known if route.path_regex.match(path) for m in route.methods or ()})
        if allowed:
            said = MethodNotAllowed(f"{method} is not for {path}", hint=f"use {', '.join(allowed)}")
            await error_answer(said, allow=", ".join(allowed)).send(send)
        else:
            await error_answer(NotFound(f"there is nothing at {path}", hint="GET /docs lists the routes")).send(send)


def _answering(handle: Handle) -> Callable[[Request], Awaitable[Response]]:
    async def answering(request: Request) -> Response:
        try:
            said = await handle(request)
        except VisionpoolError as error:
            return error_answer(error).response()
        except Exception as error:
            return unexpected_answer(request, error).response()
        return said if isinstance(said, Response) else Response(orjson.dumps(said), media_type="application/json")

    answering.__name__ = handle.__name__
    return answering
