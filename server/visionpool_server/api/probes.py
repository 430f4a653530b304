"""What probes and Prometheus ask, for the port of their own: it answers without TLS or keys, until the very end."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp
from visionpool.errors import Unavailable

from visionpool_server.api import errors
from visionpool_server.api.wire import HeadAsGet, UnreadBodies


def build_probes(ready: Callable[[], bool], *more: APIRouter) -> ASGIApp:
    """/health, and the routes of `more`."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    errors.install(app)
    for router in (health_router(ready), *more):
        app.include_router(router)
    return HeadAsGet(UnreadBodies(app))


def health_router(ready: Callable[[], bool]) -> APIRouter:
    """`ready()`: whether all models are loaded, and the server is not stopping."""
    router = APIRouter(tags=["health"])

    @router.get("/health/live", summary="200 as long as the process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/health/ready", summary="200 once all models are loaded, else 503")
    async def is_ready() -> dict[str, str]:
        if not ready():
            raise Unavailable("the models are being loaded, or the server is stopping")
        return {"status": "ready"}

    return router
