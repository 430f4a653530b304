"""The composition root: the only place that builds, starts and stops things, in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
from visionpool.errors import InvalidSetting

from visionpool_server.api.access_log import access_log
from visionpool_server.api.api_keys import ApiKeys
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.exchange import Observer
from visionpool_server.api.grpc_server import GrpcOptions, GrpcServer
from visionpool_server.api.grpc_vision import VisionGrpc
from visionpool_server.api.http import build_http
from visionpool_server.api.http_listener import HttpListener, listen
from visionpool_server.api.kserve.catalog import served_name
from visionpool_server.api.kserve.control import Control
from visionpool_server.api.kserve.grpc import KserveGrpc
from visionpool_server.api.kserve.protocol import Kserve
from visionpool_server.api.kserve.shared_memory import SharedMemory
from visionpool_server.api.kserve.switches import Tracing
from visionpool_server.api.metrics import Metrics
from visionpool_server.api.probes import build_probes
from visionpool_server.api.stopping import Stopping, leave, leave_within
from visionpool_server.api.tls import tls_of
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.models.files import ModelFiles
from visionpool_server.models.loader import Defaults, Model
from visionpool_server.models.repository import Repository, load_all, locate
from visionpool_server.service import Service
from visionpool_server.settings import Settings

log = logging.getLogger(__name__)

cv2.setNumThreads(1)  # the stage threads are the parallelism: OpenCV's own would only compete with them

DEMO_MODELS = Path(__file__).parent / "demo"
_LOADING = 2.0  # seconds that a model being loaded gets when the server is told to stop
_CLOSING = 10.0  # and the models, to end their workers


class App:
    """A server: `run()` until it is told to stop. `on_loaded(model)` and `on_ready(url, grpc_address, metrics_url)` report
    progress; the last is "" where metrics have no port of their own."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_loaded: Callable[[Model], None] = lambda _: None,
        on_ready: Callable[[str, str, str], None] = lambda _url, _address, _metrics: None,
    ) -> None:
        self._settings = settings
        self._on_loaded = on_loaded
        self._on_ready = on_ready
        self._models = Repository()
        self._service = Service(self._models, max_pixels=settings.max_pixels)
        self._limits = BodyLimits(settings.max_body_bytes, settings.body_timeout)
        self._urls = UrlFetcher(settings.allow_urls, settings.max_body_bytes)
        self._paths = settings.models or tuple(DEMO_MODELS / name for name in ("shapes", "digits"))
        self._stopping = Stopping()
        self._tls = tls_of(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._metrics = Metrics(self._models, ready=self._is_ready, draining=lambda: self._stopping.begun)
        self._observers: list[Observer] = [self._metrics.observe, *([access_log] if settings.access_log else [])]
        self._keys = ApiKeys(settings.api_keys) if settings.api_keys else None
        control = Control(self._models, self._paths, settings.defaults, explicit=settings.model_control == "explicit")
        tracing = Tracing(settings.trace_dir, self._models)
        shared_memory = SharedMemory(allowed=settings.system_shared_memory)
        self._kserve = Kserve(self._service, control, tracing, shared_memory, limits=self._limits, ready=self._is_ready)
        self._loaded = False
        self._loading = threading.Thread()  # which there is once it serves
        self._failure: BaseException | None = None

    def _is_ready(self) -> bool:
        return self._loaded and not self._stopping.begun

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises SetupError where it cannot start."""
        with self._stopping.on_signals():
            try:
                found = self._wanted(locate(self._paths))
                with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                    runner.run(self._serve(found))
            finally:
                self._close()
        if self._failure:
            raise self._failure

    def _close(self) -> None:
        self._service.close()
        if (
            self._loading.is_alive()
        ):  # told to stop: native code on that thread cannot be interrupted, nor safely left alone
            self._kserve.close()
            leave()
        if self._stopping.begun:
            leave_within(_CLOSING)
        self._models.close()
        self._kserve.close()
        self._metrics.close()

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

    def _http_listener(self) -> HttpListener:
        web = build_http(
            *(self._service, self._kserve, self._limits, self._urls, self._is_ready),
            stopping=self._stopping,
            observers=self._observers,
            keys=self._keys,
            metrics=self._metrics.endpoint if self._settings.metrics_port is None else None,
        )
        listener = listen(self._settings.host, self._settings.http_port, "--http-port")
        return HttpListener(web, listener, self._stopping, tls=self._tls.context if self._tls else None)

    def _probe_listener(self) -> HttpListener | None:
        """Where metrics and probes have a port of their own; it does not stop before all else has."""
        if self._settings.metrics_port is None:
            return None
        web = build_probes(self._is_ready, self._metrics.endpoint.router())
        listener = listen(self._settings.host, self._settings.metrics_port, "--metrics-port")
        return HttpListener(web, listener, Stopping())

    def _grpc_server(self) -> GrpcServer:
        vision = VisionGrpc(self._service, self._limits)
        kserve = KserveGrpc(self._kserve, self._limits.budget)
        options = GrpcOptions(self._settings.max_body_bytes, self._settings.grpc_max_connection_age)
        return GrpcServer(vision, kserve, options, observers=self._observers, keys=self._keys)

    async def _serve(self, found: list[ModelFiles]) -> None:
        """Answers health checks from the start, while the models are still loading on a thread of their own."""
        self._stopping.bind()
        self._models.loading = True
        http, probes, grpc_server = self._http_listener(), self._probe_listener(), self._grpc_server()
        credentials = self._tls.grpc_credentials() if self._tls else None
        grpc_port = await grpc_server.start(self._settings.host, self._settings.grpc_port, credentials)
        for listener in (http, probes):
            if listener:
                await listener.start()
        watching = asyncio.create_task(self._keys.watch()) if self._keys else None
        if await self._all_loaded(found):
            await grpc_server.ready()
            host = _shown(http.host)
            metrics = f"http://{host}:{probes.port}/metrics" if probes else ""
            scheme = "https" if self._tls else "http"
            self._on_ready(f"{scheme}://{host}:{http.port}", f"{host}:{grpc_port}", metrics)
            await self._stopping.asked()
        await self._stop(http, grpc_server)
        if probes:
            await probes.close()
            await probes.end()
        if watching:
            watching.cancel()

    async def _all_loaded(self, found: list[ModelFiles]) -> bool:
        """False where it is told to stop before that, or cannot load them."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def load() -> None:
            try:
                self._load(found)
            except BaseException as error:
                self._failure = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        self._loading = threading.Thread(target=load, name="load", daemon=True)
        self._loading.start()
        waits = [asyncio.create_task(ended.wait()), asyncio.create_task(self._stopping.asked())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not ended.is_set():
            await asyncio.wait(waits[:1], timeout=_LOADING)
        for wait in waits:
            wait.cancel()
        return self._is_ready()

    def _load(self, found: list[ModelFiles]) -> None:
        """Between one model and the next it looks whether the server was told to stop."""
        for model in load_all(found, self._settings.defaults):
            self._models.add(model)
            if self._stopping.begun:
                return
            self._on_loaded(model)
        self._models.loading = False
        gc.freeze()  # what is loaded stays: the collector need not look at it again and again
        self._loaded = True

    async def _stop(self, http: HttpListener, grpc_server: GrpcServer) -> None:
        """Health checks have said since the signal that it comes; what is under way is done, or cut off when its time is up."""
        delay, grace = self._settings.drain_delay if self._loaded else 0.0, self._settings.grace_period
        if not self._failure:
            log.info("told to stop: what is under way gets done; a second signal ends it")
            leave_within(delay + grace + _CLOSING)
        await grpc_server.not_ready()
        http.let_go()
        await self._stopping.pause(delay)
        until = time.monotonic() + grace
        await http.close()
        await grpc_server.close(grace)
        self._stopping.refusing = True
        if not self._failure:
            log.info("nothing new is taken any more")
        finished = asyncio.gather(http.finish(max(0.0, until - time.monotonic())), grpc_server.finish())
        hurried = asyncio.create_task(self._stopping.hurried())
        await asyncio.wait((finished, hurried), return_when=asyncio.FIRST_COMPLETED)
        self._stopping.cut = True
        await asyncio.gather(http.end(), grpc_server.end())
        hurried.cancel()
        await finished


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


def _shown(host: str) -> str:
    """The host as it stands in a URL that works on this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  compared


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop
