"""The door of the gRPC server while it closes: calls are held until their clients know that they are the last ones.

A server of gRPC's C core that is told to stop cancels each call that it has not handed over yet, and each one that comes before
its client has read the GOAWAY: CANCELLED, which nobody asks again for. So new calls are held for the moment before, until no more
come, since their callers wait; then it is told to stop, and they are answered with all others that are in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isasyncgenfunction
from typing import Any

import grpc

from visionpool_server.api.grpc_exchange import KINDS, Method

_SILENCE, _MOST = 0.1, 10  # seconds without a new call, and how often that is waited for


class Gate(grpc.GenericRpcHandler):
    """All handlers `behind` it. `await hold()`, have the server stop, and `release()`."""

    def __init__(self, behind: grpc.GenericRpcHandler) -> None:
        self._behind = behind
        self._holds = False
        self._came = 0
        self._released = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Method | None:
        method = self._behind.service(handler_call_details)
        if self._holds and method is not None:
            self._came += 1
            return self._held(method)
        return method

    async def hold(self) -> None:
        """Returns once no new calls come; or soon, where they never end because nobody waits for an answer to his last one."""
        self._holds = True
        for _ in range(_MOST):
            before = self._came
            await asyncio.sleep(_SILENCE)
            if self._came == before:
                return

    def release(self) -> None:
        self._released.set()

    def _held(self, method: Method) -> Method:
        name, make = KINDS[method.request_streaming, method.response_streaming]
        handle: Callable[[Any, Any], Awaitable[Any]] = getattr(method, name)
        if isasyncgenfunction(handle):
            return method

        async def wait(request: Any, context: Any) -> Any:
            await self._released.wait()
            return await handle(request, context)

        return make(wait, method.request_deserializer, method.response_serializer)
