"""The outermost layer of gRPC: each call becomes an `Exchange`, shows its key, and takes its id back; its end is told.

It stands where the server looks up the handler of a call, which costs less than an interceptor and comes before a message is
read. The id goes back in the trailing metadata: they come with answers and errors alike, in one frame with the status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from inspect import isasyncgenfunction
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio
from visionpool.errors import MethodNotAllowed

from visionpool_server.api.api_keys import ApiKeys, refusal
from visionpool_server.api.exchange import Exchange, Observer, current
from visionpool_server.api.grpc_errors import Context, answered, code_of, status_name
from visionpool_server.api.request_id import HEADER, TRACE_HEADER, request_id, trace_id

Method: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a class that takes no parameters but in its stubs
KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Method]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
HEALTH = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)  # what probes ask, and need no key for


class Registered:
    """Stands in for a server where generated code adds its services: `handlers` are those that were added."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Method]) -> None:
        """The same once more, under full names; grpc.aio does not look at it either."""


class Exchanges(grpc.GenericRpcHandler):
    """All handlers of a server as one; the first of `handlers` that knows a method has it. `keys`: None where all may call."""

    def __init__(
        self, handlers: Sequence[grpc.GenericRpcHandler], observers: Sequence[Observer], keys: ApiKeys | None = None
    ) -> None:
        self._handlers = handlers
        self._observers = observers
        self._keys = keys
        self._known: dict[str, Method] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Method:
        """Called in the task that a call has of its own, before its handler is."""
        method: str = handler_call_details.method
        metadata: dict[str, Any] = dict(handler_call_details.invocation_metadata)
        exchange = Exchange(request_id(metadata.get(HEADER)), "grpc", method, self._observers)
        if parent := metadata.get(TRACE_HEADER):
            exchange.trace_id = trace_id(parent)
        current.set(exchange)
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(partial(_end, exchange))  # also where the caller leaves before a handler is called
        if self._keys and method not in HEALTH:
            caller = self._keys.caller(metadata.get("authorization"), metadata.get("x-api-key"))
            if caller is None:
                return _REFUSED
            exchange.caller = caller
        return self._known.get(method) or self._found(handler_call_details)

    def _found(self, details: grpc.HandlerCallDetails) -> Method:
        for handler in self._handlers:
            if method := handler.service(details):
                self._known[details.method] = observed = _observed(method)
                return observed
        return _UNKNOWN


def _end(exchange: Exchange, _: asyncio.Task[Any]) -> None:
    exchange.outcome = exchange.outcome or "cancelled"
    exchange.status = status_name(exchange.outcome)
    exchange.end()


def _observed(method: Method) -> Method:
    """The same method, which notes what it learns about its call."""
    name, make = KINDS[method.request_streaming, method.response_streaming]
    handle = getattr(method, name)
    noting = _noting_stream(handle) if isasyncgenfunction(handle) else _noting(handle, stream="stream" in name)
    return make(noting, method.request_deserializer, method.response_serializer)


def _noting(handle: Callable[[Any, Context], Any], *, stream: bool = False) -> Callable[[Any, Context], Any]:
    async def call(request: Any, context: Context) -> Any:
        exchange = _begun(request, context)
        if stream:
            exchange.kind = "stream"
        try:
            answer = await handle(request, context)
        except grpc.aio.AbortError:
            exchange.outcome = exchange.outcome or code_of(context.code())
            raise
        exchange.outcome = exchange.outcome or "ok"
        return answer

    return call


def _noting_stream(handle: Callable[[Any, Context], Any]) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        exchange = _begun(request, context)
        exchange.kind = "stream"
        async with aclosing(handle(request, context)) as answers:
            async for answer in answers:
                yield answer
        exchange.outcome = exchange.outcome or "ok"

    return call


def _begun(request: Any, context: Context) -> Exchange:
    exchange = current.get()
    assert exchange is not None  # `service` set it, in this task
    if isinstance(request, bytes):
        exchange.received_bytes = len(request)
    exchange.peer = _address(context.peer())
    context.set_trailing_metadata(((HEADER, exchange.id),))
    return exchange


def _address(peer: str) -> str:
    """ipv4:127.0.0.1:5000 and ipv6:%5B::1%5D:5000, as gRPC says it, without the kind."""
    kind, _, address = peer.partition(":")
    return address if kind == "ipv4" else unquote(address) if kind == "ipv6" else peer


@answered
async def _refuse(_: None, request: Any, context: Context) -> None:  # noqa: ARG001  a handler's signature
    raise refusal()


@answered
async def _know_nothing(_: None, request: Any, context: Context) -> None:  # noqa: ARG001  a handler's signature
    raise MethodNotAllowed("Method not found!", hint="server reflection lists the methods")


def _ending(handle: Callable[[None, Any, Context], Any]) -> Method:
    """A method for calls of any kind, none of whose messages is read."""

    async def end(request: Any, context: Context) -> None:
        await handle(None, request, context)

    return grpc.stream_stream_rpc_method_handler(_noting(end))


_REFUSED, _UNKNOWN = _ending(_refuse), _ending(_know_nothing)
