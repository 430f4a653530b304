"""The HTTP application: all routes, put together."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse, Response
from starlette.types import ASGIApp
from visionpool.errors import Unavailable

from visionpool_server.api import errors
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.devices import DevicesApi
from visionpool_server.api.fastdeploy import FastDeployApi
from visionpool_server.api.http_vision import VisionApi
from visionpool_server.api.kserve.http import KserveApi
from visionpool_server.api.kserve.protocol import Kserve
from visionpool_server.api.shortcut import ShortCut
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.api.wire import HeadAsGet, UnreadBodies
from visionpool_server.service import Service

_DESCRIPTION = "Pictures in, typed results out. Boxes and points are pixels of the original picture, x right, y down."


def build_http(
    service: Service, kserve: Kserve, limits: BodyLimits, urls: UrlFetcher, ready: Callable[[], bool]
) -> ASGIApp:
    """`ready()`: whether all models are loaded, and the server is not stopping."""
    api = KserveApi(kserve, limits)
    vision = VisionApi(service, limits, urls)
    app = FastAPI(title="visionpool", version=version("visionpool"), description=_DESCRIPTION, redirect_slashes=False)
    errors.install(app)
    app.include_router(_health(ready))
    app.include_router(vision.router())
    app.include_router(DevicesApi(service.models).router())
    app.include_router(FastDeployApi(service, limits).router())
    app.include_router(api.router())
    return HeadAsGet(UnreadBodies(ShortCut(app, vision.predict, api.inference)))


def _health(ready: Callable[[], bool]) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/docs")

    @router.get("/health/live", summary="200 as long as the process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/health/ready", summary="200 once all models are loaded, else 503")
    async def is_ready() -> dict[str, str]:
        if not ready():
            raise Unavailable("the models are being loaded, or the server is stopping")
        return {"status": "ready"}

    return router
