"""The HTTP application: all routes, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from visionpool_server.api import errors
from visionpool_server.api.api_keys import ApiKeys
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.devices import DevicesApi
from visionpool_server.api.exchange import Observer
from visionpool_server.api.fastdeploy import FastDeployApi
from visionpool_server.api.guarded import Guarded, document_keys
from visionpool_server.api.http_vision import VisionApi
from visionpool_server.api.kserve.http import KserveApi
from visionpool_server.api.kserve.protocol import Kserve
from visionpool_server.api.metrics.endpoint import MetricsEndpoint
from visionpool_server.api.observed import Observed
from visionpool_server.api.probes import health_router
from visionpool_server.api.shortcut import ShortCut
from visionpool_server.api.stoppable import Stoppable
from visionpool_server.api.stopping import Stopping
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.api.wire import HeadAsGet, UnreadBodies
from visionpool_server.service import Service

_DESCRIPTION = "Pictures in, typed results out. Boxes and points are pixels of the original picture, x right, y down."


def build_http(
    service: Service,
    kserve: Kserve,
    limits: BodyLimits,
    urls: UrlFetcher,
    ready: Callable[[], bool],
    *,
    stopping: Stopping | None = None,
    observers: Sequence[Observer] = (),
    keys: ApiKeys | None = None,
    metrics: MetricsEndpoint | None = None,
) -> ASGIApp:
    """`ready()`: whether all models are loaded, and the server is not stopping. `keys`: None where all may call. `metrics`:
    None where they have a port of their own."""
    api = KserveApi(kserve, limits)
    vision = VisionApi(service, limits, urls)
    app = FastAPI(title="visionpool", version=version("visionpool"), description=_DESCRIPTION, redirect_slashes=False)
    errors.install(app)
    app.include_router(_home())
    app.include_router(health_router(ready))
    app.include_router(vision.router())
    app.include_router(DevicesApi(service.models).router())
    app.include_router(FastDeployApi(service, limits).router())
    app.include_router(api.router())
    if metrics:
        app.include_router(metrics.router())
    web: ASGIApp = ShortCut(app, vision.predict, api.inference)
    if keys:
        document_keys(app)
        web = Guarded(web, keys)
    if stopping:
        web = Stoppable(web, stopping)
    return Observed(HeadAsGet(UnreadBodies(web)), observers)


def _home() -> APIRouter:
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/docs")

    return router
