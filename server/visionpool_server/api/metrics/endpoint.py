"""GET /metrics: Prometheus's text format, or OpenMetrics where it is asked for; compressed where that is accepted.

A plain ASGI application, for a listener of its own, and a router with the same answer for the main one.
"""

from __future__ import annotations

import asyncio
import gzip

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.types import Receive, Scope, Send

from visionpool_server.api.accept import preferred

PATH = "/metrics"
_FAST = 1  # gzip's level: a tenth of the size already
_OPEN_METRICS, _TEXT = "application/openmetrics-text", ("text/plain", "text/*", "*/*")


class MetricsEndpoint:
    """For one event loop. What is told is put together on a thread, one scrape after the other: who asks a hundred times at
    once holds up himself, and not the requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application, whatever the path."""
        if scope["type"] != "http":
            return
        response = Response("use GET\n", 405, {"Allow": "GET, HEAD"})
        if scope["method"] in ("GET", "HEAD"):
            response = await self.respond(Request(scope))
        await response(scope, receive, send)

    async def respond(self, request: Request) -> Response:
        accepted = [*preferred(",".join(request.headers.getlist("accept"))), "*/*"]
        best = next(kind for kind in accepted if kind == _OPEN_METRICS or kind in _TEXT)
        compressed = "gzip" in preferred(",".join(request.headers.getlist("accept-encoding")))
        async with self._turn:
            body, content_type = await asyncio.to_thread(self._told, best, compressed=compressed)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        return Response(body, 200, {**headers, **({"Content-Encoding": "gzip"} if compressed else {})})

    def _told(self, kind: str, *, compressed: bool) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(kind if kind == _OPEN_METRICS else "")
        text: bytes = encode(self._registry)
        return gzip.compress(text, _FAST) if compressed else text, content_type

    def router(self) -> APIRouter:
        router = APIRouter(tags=["health"])
        router.add_api_route(
            PATH,
            self.respond,
            methods=["GET"],
            summary="Figures for Prometheus",
            response_class=Response,
            responses={
                200: {"content": {kind: {"schema": {"type": "string"}} for kind in ("text/plain", _OPEN_METRICS)}}
            },
        )
        return router
