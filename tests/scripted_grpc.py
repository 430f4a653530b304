"""A gRPC server on a real socket that answers from a script, and clients of both kinds for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
import visionpool
from visionpool.messages import write_result
from visionpool.v1 import vision_pb2 as v1

from tests.scripted_server import RESULT, TIMINGS

Connect = Callable[..., visionpool.GrpcClient]


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer; `wait` is how long the server thinks first."""

    body: bytes = b""
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    error: Mapping[str, Any] | None = None  # what a server of ours tells in its metadata
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Received:
    """What the server was sent. `time_left`: seconds until the caller's deadline."""

    method: str
    body: bytes
    metadata: Mapping[str, str | bytes]
    time_left: float | None


class ScriptedServer(grpc.GenericRpcHandler):
    """Answers request after request with `script`, whatever the method; its last line is repeated for ever."""

    def __init__(self, port: int = 0) -> None:
        self.script = [Reply()]
        self.requests: list[Received] = []
        self.closing = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4), [self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = dict(context.invocation_metadata())
            self.requests.append(Received(method, body, metadata, context.time_remaining()))
            reply = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            self.closing.wait(reply.wait)
            if reply.error is not None:
                told = json.dumps(reply.error).encode()
                context.set_trailing_metadata((("visionpool-error-bin", told),))
            if reply.code is not grpc.StatusCode.OK:
                context.abort(reply.code, reply.details)
            return reply.body

        return grpc.unary_unary_rpc_method_handler(answer)

    def close(self) -> None:
        self.closing.set()
        assert self._server.stop(1).wait(10)


@contextmanager
def serving(port: int = 0) -> Iterator[ScriptedServer]:
    """A running server, gone in the end."""
    server = ScriptedServer(port)
    try:
        yield server
    finally:
        server.close()


class Awaited:
    """An AsyncGrpcClient whose calls are run to their end, so that the tests are written once."""

    def __init__(self, client: visionpool.AsyncGrpcClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            return self._runner.run(getattr(self._client, name)(*args, **options))

        return call

    def stream(self, *args: Any, **options: Any) -> Iterator[Any]:
        results: AsyncGenerator[Any, None] = self._client.stream(*args, **options)
        try:
            while True:
                yield self._runner.run(results.asend(None))
        except StopAsyncIteration:
            return
        finally:
            self._runner.run(results.aclose())


@contextmanager
def connecting(kind: str) -> Iterator[Connect]:
    """Makes clients of a `kind`, "GrpcClient" or "AsyncGrpcClient", and closes them in the end."""
    with ExitStack() as stack:

        def make(address: str, **settings: Any) -> visionpool.GrpcClient:
            if kind == "GrpcClient":
                return stack.enter_context(visionpool.GrpcClient(address, **settings))
            runner = stack.enter_context(asyncio.Runner())
            awaited = Awaited(visionpool.AsyncGrpcClient(address, **settings), runner)
            stack.callback(awaited.aclose)
            return cast(visionpool.GrpcClient, awaited)

        yield make


def good(*results: visionpool.Result) -> Reply:
    timings = {f"{stage}_ms": ms for stage, ms in TIMINGS.items()}
    message = v1.PredictResponse(model="shapes", version="3", timings=v1.Timings(**timings))
    for result in results or (RESULT,):
        write_result(result, message.results.add())
    return Reply(message.SerializeToString())


def bad(status: str, code: str, hint: str | None = None, retry_after: float | None = None) -> Reply:
    told = {"code": code, "message": f"it is {code}", "hint": hint}
    error = told if retry_after is None else {**told, "retry_after": retry_after}
    return Reply(code=grpc.StatusCode[status], details="for people", error=error)


def busy(seconds: float) -> Reply:
    return bad("RESOURCE_EXHAUSTED", "queue_full", retry_after=seconds)


def foreign(status: str, details: str = "from elsewhere") -> Reply:
    """What a proxy or another server says."""
    return Reply(code=grpc.StatusCode[status], details=details)
