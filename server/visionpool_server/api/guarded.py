"""API keys over HTTP: who shows none is refused before its body is read, and the documentation says how to show one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from visionpool_server.api.api_keys import ApiKeys, refusal
from visionpool_server.api.errors import error_response
from visionpool_server.api.exchange import current
from visionpool_server.api.kserve.http_infer import error_answer

HEALTH = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})  # what probes ask
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class Guarded:
    """An ASGI application around `app`, which lets only those through who show one of `keys`, and health checks."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        caller = self._keys.caller(_text(headers.get(b"authorization")), _text(headers.get(b"x-api-key")))
        if caller is None:
            await _refuse(scope, receive, send)
            return
        if exchange := current.get():
            exchange.caller = caller
        await self._app(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    path: str = scope["path"]
    if path == "/v2" or path.startswith("/v2/"):
        await error_answer(refusal()).send(send)
    else:
        await error_response(refusal())(scope, receive, send)


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def document_keys(app: FastAPI) -> None:
    """The OpenAPI document of `app` says that keys are wanted, how they are shown, and what comes without one."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            document.setdefault("components", {})["securitySchemes"] = _SCHEMES
            document["security"] = [{name: []} for name in _SCHEMES]
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _document(operation, free=path in HEALTH)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to change the document


def _document(operation: dict[str, Any], *, free: bool) -> None:
    if free:
        operation["security"] = []
        return
    responses = operation["responses"]
    like: dict[str, Any] = next((responses[status] for status in ("404", "405", "500") if status in responses), {})
    responses["401"] = {**like, "description": "No valid API key"}
