"""grpc.health.v1, as grpcio has it, without watchers that hold up the end of the server."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health


class Health(health.HealthServicer):  # type: ignore[misc]  # it comes without types
    """A watcher's call lasts as long as its client likes: `end_watches()` tells them all that it is over."""

    def __init__(self) -> None:
        super().__init__()
        self._over = False
        self._watches: set[asyncio.Task[Any]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802  as it is in the proto
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            if not self._over:
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        finally:
            self._watches.discard(task)

    def end_watches(self) -> None:
        self._over = True
        for watch in list(self._watches):
            watch.cancel()
