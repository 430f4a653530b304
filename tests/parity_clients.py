"""All clients of one server, connected: what `parity_ways` asks by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

import httpx
import visionpool
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.kserve_models import PATIENCE, GrpcTyped, TritonGrpc, TritonHttp
from tests.real_server import Server


@dataclass(frozen=True)
class Clients:
    """`portal` runs an event loop in a thread of its own, to which the asynchronous clients belong."""

    server: Server
    web: httpx.Client
    client: visionpool.Client
    grpc: visionpool.GrpcClient
    portal: BlockingPortal
    async_client: visionpool.AsyncClient
    async_grpc: visionpool.AsyncGrpcClient
    triton_http: TritonHttp
    triton_grpc: TritonGrpc
    typed: GrpcTyped
    inputs: dict[str, str] = field(default_factory=dict)

    def picture_input(self, model: str) -> str:
        """What KServe calls the pictures of a model."""
        if model not in self.inputs:
            said = self.web.get(f"/v2/models/{model}/config").json()["parameters"]
            self.inputs[model] = said["picture_input"]["string_value"]
        return self.inputs[model]


@contextmanager
def clients_of(server: Server) -> Iterator[Clients]:
    with ExitStack() as stack:
        enter = stack.enter_context
        portal = enter(start_blocking_portal())
        yield Clients(
            server,
            enter(httpx.Client(base_url=server.url, timeout=PATIENCE)),
            enter(visionpool.Client(server.url)),
            enter(visionpool.GrpcClient(server.grpc)),
            portal,
            enter(portal.wrap_async_context_manager(visionpool.AsyncClient(server.url))),
            enter(portal.wrap_async_context_manager(visionpool.AsyncGrpcClient(server.grpc))),
            enter(closing(TritonHttp(server))),
            enter(closing(TritonGrpc(server))),
            enter(closing(GrpcTyped(server))),
        )
