"""The composition root: the only place that builds, starts and stops things, in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import cv2
import uvicorn
from visionpool.errors import InvalidSetting, SetupError

from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.connection import Connection
from visionpool_server.api.grpc_server import GrpcOptions, GrpcServer
from visionpool_server.api.grpc_vision import VisionGrpc
from visionpool_server.api.http import build_http
from visionpool_server.api.kserve.catalog import served_name
from visionpool_server.api.kserve.control import Control
from visionpool_server.api.kserve.grpc import KserveGrpc
from visionpool_server.api.kserve.protocol import Kserve
from visionpool_server.api.kserve.shared_memory import SharedMemory
from visionpool_server.api.kserve.switches import Tracing
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.models.files import ModelFiles
from visionpool_server.models.loader import Defaults, Model
from visionpool_server.models.repository import Repository, load_all, locate
from visionpool_server.service import Service
from visionpool_server.settings import Settings

log = logging.getLogger(__name__)

cv2.setNumThreads(1)  # the stage threads are the parallelism: OpenCV's own would only compete with them

DEMO_MODELS = Path(__file__).parent / "demo"
_GRACE = 30  # seconds that requests in flight get when the server stops


class App:
    """A server: `run()` until it is told to stop. `on_loaded(model)` and `on_ready(url, grpc_address)` report progress."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_loaded: Callable[[Model], None] = lambda _: None,
        on_ready: Callable[[str, str], None] = lambda _url, _address: None,
    ) -> None:
        self._settings = settings
        self._on_loaded = on_loaded
        self._on_ready = on_ready
        self._models = Repository()
        self._service = Service(self._models, max_pixels=settings.max_pixels)
        self._limits = BodyLimits(settings.max_body_bytes, settings.body_timeout)
        self._urls = UrlFetcher(settings.allow_urls, settings.max_body_bytes)
        self._paths = settings.models or tuple(DEMO_MODELS / name for name in ("shapes", "digits"))
        control = Control(self._models, self._paths, settings.defaults, explicit=settings.model_control == "explicit")
        tracing = Tracing(settings.trace_dir, self._models)
        shared_memory = SharedMemory(allowed=settings.system_shared_memory)
        self._kserve = Kserve(
            self._service, control, tracing, shared_memory, limits=self._limits, ready=lambda: self._ready
        )
        self._ready = False
        self._failure: SetupError | None = None

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises SetupError where it cannot start."""
        found = self._wanted(locate(self._paths))
        listener = _listen(self._settings.host, self._settings.http_port)
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve(listener, found))
        finally:
            self._service.close()
            self._models.close()
            self._kserve.close()
        if self._failure:
            raise self._failure

    def _wanted(self, found: list[ModelFiles]) -> list[ModelFiles]:
        """The models to load at the start. Raises InvalidSetting for a name that is not among them."""
        names = set(self._settings.load_models)
        if self._settings.model_control == "none":
            if names:
                raise InvalidSetting("--load-model is for explicit control", hint="say --model-control-mode explicit")
            return found
        if "*" in names:
            return found
        there = {served_name(files): files for files in found}
        if unknown := names - there.keys():
            raise InvalidSetting(
                f"--load-model: no model {sorted(unknown)[0]!r}", hint=f"there are: {', '.join(there)}"
            )
        return [files for name, files in there.items() if name in names]

    def _http_server(self, on_stop: Callable[[], Awaitable[None]]) -> uvicorn.Server:
        config = uvicorn.Config(
            build_http(self._service, self._kserve, self._limits, self._urls, lambda: self._ready),
            http=Connection,
            access_log=False,
            proxy_headers=False,  # nothing here asks who the client is
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
            backlog=2048,
        )
        return _Server(config, on_stop)

    def _grpc_server(self) -> GrpcServer:
        vision = VisionGrpc(self._service, self._limits)
        kserve = KserveGrpc(self._kserve, self._limits.budget)
        options = GrpcOptions(self._settings.max_body_bytes, self._settings.grpc_max_connection_age)
        return GrpcServer(vision, kserve, options)

    async def _serve(self, listener: socket.socket, found: list[ModelFiles]) -> None:
        """Answers health checks from the start, while the models are still loading on a thread of their own."""
        self._models.loading = True
        grpc_server = self._grpc_server()

        async def stop() -> None:
            self._ready = False
            await grpc_server.stop(_GRACE)

        http_server = self._http_server(stop)
        port = await grpc_server.start(self._settings.host, self._settings.grpc_port)
        serving = asyncio.create_task(http_server.serve(sockets=[listener]))
        try:
            loaded = await asyncio.to_thread(self._load, found, lambda: http_server.should_exit)
            if loaded:
                await grpc_server.ready()
                host, http_port = listener.getsockname()[:2]
                self._on_ready(f"http://{_shown(host)}:{http_port}", f"{_shown(host)}:{port}")
        except SetupError as error:
            self._failure = error
        finally:
            http_server.should_exit = http_server.should_exit or not self._ready
            await serving

    def _load(self, found: list[ModelFiles], stopped: Callable[[], bool]) -> bool:
        """Whether all models are there; between one and the next it looks whether the server was told to stop."""
        for model in load_all(found, self._settings.defaults):
            self._models.add(model)
            if stopped():
                return False
            self._on_loaded(model)
        self._models.loading = False
        gc.freeze()  # what is loaded stays: the collector need not look at it again and again
        self._ready = True
        return True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What else serves stops together with it."""
        await asyncio.gather(super().shutdown(sockets), self._on_stop())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  a handler's signature
        """Stops in order, and on a second Ctrl-C at once. uvicorn's own would raise the signal again when it is done,
        and so end the process before the models are closed, and with the status of a crash."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


@contextmanager
def offline(paths: list[Path], defaults: Defaults, *, max_pixels: int) -> Iterator[Service]:
    """The same service without a server, for the command line. Raises SetupError."""
    models = Repository()
    service = Service(models, max_pixels=max_pixels)
    try:
        for model in load_all(locate(paths), defaults):
            models.add(model)
        yield service
    finally:
        service.close()
        models.close()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InvalidSetting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidSetting(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --http-port (0 takes a free one) or --host",
        ) from error
    return listener


def _shown(host: str) -> str:
    """The host as it stands in a URL that works on this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  compared


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop
