"""The gRPC server: grpcio's asyncio one, on the event loop that serves HTTP too, with health checks and reflection."""

from __future__ import annotations

from dataclasses import dataclass

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from visionpool.errors import InvalidSetting

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
    """`await start()`, then `ready()`; `await stop()` lets calls in flight finish. Made within a running loop."""

    def __init__(self, vision: VisionGrpc, kserve: KserveGrpc, options: GrpcOptions) -> None:
        self._server = grpc.aio.server(options=options.channel())
        self._health = health.HealthServicer()
        self._server.add_generic_rpc_handlers((kserve.handlers(), vision.handlers()))  # looked up in this order
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = ("", VISION, KSERVE)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection([VISION, KSERVE, health_name, reflection.SERVICE_NAME], self._server)

    async def start(self, host: str, port: int) -> int:
        """The port that it listens on; 0 takes a free one. Raises InvalidSetting."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
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

    async def ready(self) -> None:
        """Health checks say so from now on."""
        await self._set(_SERVING)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in self._names:
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """New calls are refused, those in flight get `grace` seconds."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
