"""The gRPC server: grpcio's asyncio one, on the event loop that serves HTTP too, with health checks and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server
from visionpool.errors import InvalidSetting

from visionpool_server.api.api_keys import ApiKeys
from visionpool_server.api.exchange import Observer
from visionpool_server.api.grpc_exchange import Exchanges, Registered
from visionpool_server.api.grpc_gate import Gate
from visionpool_server.api.grpc_health import Health
from visionpool_server.api.grpc_vision import SERVICE_NAME as VISION
from visionpool_server.api.grpc_vision import VisionGrpc
from visionpool_server.api.kserve.grpc import SERVICE_NAME as KSERVE
from visionpool_server.api.kserve.grpc import KserveGrpc

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_ENVELOPE = 2**16  # bytes of a message besides its pictures: so that who is near the limit gets our own error


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """`max_message_bytes` bounds a request; `max_connection_age`: seconds after which clients are asked to connect anew, so
    that new servers behind a name get their share (None: never)."""

    max_message_bytes: int = 64 * 2**20
    max_connection_age: float | None = None

    def channel(self) -> list[tuple[str, int]]:
        options = [
            ("grpc.max_receive_message_length", self.max_message_bytes + _ENVELOPE),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not shared with another server
            ("grpc.keepalive_time_ms", 60_000),  # finds clients that are gone without a word
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),  # between calls too, from both sides
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients may ask as often
        ]
        if self.max_connection_age is not None:
            options.append(("grpc.max_connection_age_ms", round(self.max_connection_age * 1000)))
            options.append(("grpc.max_connection_age_grace_ms", 60_000))
        return options


class GrpcServer:
    """`await start()`, then `ready()`. In the end `not_ready()`; `close()`, after which there are no new calls; `finish()`, which
    waits for those in flight; and `end()`. Made within a running loop."""

    def __init__(
        self,
        vision: VisionGrpc,
        kserve: KserveGrpc,
        options: GrpcOptions,
        *,
        observers: Sequence[Observer] = (),
        keys: ApiKeys | None = None,
    ) -> None:
        self._server = grpc.aio.server(options=options.channel())
        self._health = Health()
        others = Registered()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, others)
        self._names = ("", VISION, KSERVE)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        names = [VISION, KSERVE, health_name, reflection.SERVICE_NAME]
        add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), others)
        handlers = kserve.handlers(), vision.handlers(), *others.handlers  # looked up in this order
        self._gate = Gate(Exchanges(handlers, observers, keys))
        self._server.add_generic_rpc_handlers((self._gate,))
        self._stopped: asyncio.Task[None]

    async def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """The port that it listens on; 0 takes a free one. `credentials`: None for no TLS. Raises InvalidSetting."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._bind(address, credentials)
        except RuntimeError as error:
            bound = 0
            reason: RuntimeError | None = error
        else:
            reason = None
        if not bound:
            raise InvalidSetting(
                f"cannot listen on {address} for gRPC", hint="choose another --grpc-port (0 takes a free one) or --host"
            ) from reason
        await self._set(_NOT_SERVING)
        await self._server.start()
        return bound

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        if credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, credentials)

    async def ready(self) -> None:
        """Health checks say so from now on."""
        await self._set(_SERVING)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in self._names:
            await self._health.set(name, status)

    async def not_ready(self) -> None:
        """Health checks say so from now on, for good."""
        await self._health.enter_graceful_shutdown()

    async def close(self, grace: float) -> None:
        """Clients are told to go, and what they have asked before is done; from now on there are `grace` seconds for it."""
        await self._gate.hold()
        self._stopped = asyncio.create_task(self._server.stop(grace))
        await asyncio.sleep(0)  # it has told them
        self._gate.release()
        self._health.end_watches()

    async def finish(self) -> None:
        await asyncio.shield(self._stopped)

    async def end(self) -> None:
        """Cuts off what is in flight."""
        await self._server.stop(None)
