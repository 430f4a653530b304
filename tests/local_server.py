"""The service on both transports, in this process: real sockets and models of the fake backend, and a look inside."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc.aio
import uvicorn
import uvloop
from fastapi import FastAPI
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from visionpool_server.api import errors
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.grpc_errors import Context
from visionpool_server.api.grpc_vision import VisionGrpc
from visionpool_server.api.http_vision import VisionApi
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.models.loader import Defaults
from visionpool_server.models.repository import Repository, load_all, locate
from visionpool_server.service import Service

Channel = Sequence[tuple[str, int]]


class Watched(VisionGrpc):
    """Knows how many frames its streams have read, and how many at most without having answered them."""

    frames_read = frames_answered = most_ahead = 0

    async def predict_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async def counted() -> AsyncIterator[bytes]:
            async for frame in requests:
                self.frames_read += 1
                self.most_ahead = max(self.most_ahead, self.frames_read - self.frames_answered)
                yield frame

        await super().predict_stream(counted(), cast(Context, CountedAnswers(context, self)))


class CountedAnswers:
    """A handler's context, which tells `watched` of what is written."""

    def __init__(self, context: Context, watched: Watched) -> None:
        self._context, self._watched = context, watched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: bytes) -> None:
        await self._context.write(message)
        self._watched.frames_answered += 1


class LocalServer:
    """`http` and `grpc` are its addresses once it has started; `health` can be set to 1 (serving) or 2 (not)."""

    def __init__(self, folder: Path, limits: BodyLimits, max_pixels: int, channel: Channel) -> None:
        self.models = Repository()
        self.service = Service(self.models, max_pixels=max_pixels)
        self.vision = Watched(self.service, limits)
        self.limits = limits
        self.http = self.grpc = ""
        self._folder = folder
        self._channel = channel
        self._health = health.HealthServicer()
        self._started = threading.Event()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        for model in load_all(locate([self._folder]), Defaults()):
            self.models.add(model)
        self._thread.start()
        assert self._started.wait(30)
        if self._failure:
            raise self._failure

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self.service.close()
        self.models.close()
        assert not self._thread.is_alive()

    def set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        asyncio.run_coroutine_threadsafe(self._health.set("", status), self._loop).result(10)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", self.limits.max_bytes * 2), *self._channel]
        )
        server.add_generic_rpc_handlers((self.vision.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.grpc = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        web = FastAPI()
        errors.install(web)
        web.include_router(VisionApi(self.service, self.limits, UrlFetcher((), 1)).router())
        http_server = uvicorn.Server(uvicorn.Config(web, log_config=None))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.http = f"http://127.0.0.1:{listener.getsockname()[1]}"
            serving = asyncio.create_task(http_server.serve(sockets=[listener]))
            self._started.set()
            await self._stop.wait()
            await server.stop(5)
            http_server.should_exit = True
            await serving


@contextmanager
def local_server(
    folder: Path, limits: BodyLimits | None = None, max_pixels: int = 50_000_000, channel: Channel = ()
) -> Iterator[LocalServer]:
    """A server of all models in `folder`, stopped in the end. `channel`: more options of its gRPC connections."""
    server = LocalServer(folder, limits or BodyLimits(), max_pixels, channel)
    try:
        server.start()
        yield server
    finally:
        server.close()
