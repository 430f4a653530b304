"""One port that speaks HTTP: uvicorn's protocol on a listening socket of ours, and an orderly end of both."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine
from contextlib import suppress
from email.utils import formatdate
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from visionpool.errors import InvalidSetting

from visionpool_server.api.connection import Connection, Connections
from visionpool_server.api.stopping import Stopping

_BACKLOG = 2048
# Seconds between two requests of a connection. What is sent in the moment in which the server hangs up is lost, so that it
# waits longer than balancers do: HAProxy 5 s, nginx and those of clouds 60 s.
_IDLE = 75
_HANDSHAKE = 10.0  # seconds for TLS's
_FAREWELL = 0.5  # seconds for a last answer to leave, and for an idle client to take leave by TLS
_GLANCE = 0.1  # seconds between looks at answers that are still leaving: no event says when the last byte has left


class HttpListener:
    """`await start()`; in the end `await close()`, which takes no more connections, `await finish(seconds)`, which waits for
    the answers under way, and `await end()`. `tls`: None for plain HTTP."""

    def __init__(
        self, app: ASGIApp, listener: socket.socket, stopping: Stopping, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._config = uvicorn.Config(
            app,
            http=Connection,
            lifespan="off",
            access_log=False,
            proxy_headers=False,  # nothing here asks who the client is
            log_config=None,
            server_header=False,
            timeout_keep_alive=_IDLE,
        )
        self._listener = listener
        self._tls = tls
        self._connections = Connections(stopping)
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def host(self) -> str:
        return str(self._listener.getsockname()[0])

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    async def start(self) -> None:
        self._config.load()
        timeout = _HANDSHAKE if self._tls else None
        self._server = await asyncio.get_running_loop().create_server(
            *(self._connection,), sock=self._listener, backlog=_BACKLOG, ssl=self._tls, ssl_handshake_timeout=timeout
        )
        self._begin(self._tell_the_time())

    def _connection(self) -> Connection:
        return Connection(self._config, self._connections, {})

    async def close(self) -> None:
        """Takes no more connections; those that the system has accepted already are taken in, and what came on them read."""
        waiting = self._listener.dup()
        waiting.setblocking(False)
        self._server.close()
        self._listener.close()
        with waiting, suppress(OSError):  # BlockingIOError where there are no more
            while True:
                accepted, _ = waiting.accept()
                accepted.setblocking(False)
                self._begin(self._take_in(accepted))
        await _turn()

    async def _take_in(self, accepted: socket.socket) -> None:
        timeout = _HANDSHAKE if self._tls else None
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # ssl.SSLError is one too
            await loop.connect_accepted_socket(self._connection, accepted, ssl=self._tls, ssl_handshake_timeout=timeout)

    def let_go(self) -> None:
        """Tells the clients of what is under way that these are the last answers on their connections."""
        for connection in self._open():
            connection.let_go()

    async def finish(self, seconds: float) -> bool:
        """Waits until nothing is under way any more; False where that takes longer. Connections without a request stay."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await _turn()  # what has come is read, and so begins
                    if not self._busy():
                        return True
                    await self._change()
        return False

    async def _change(self) -> None:
        self._connections.changed.clear()
        leaving = not any(connection.busy for connection in self._open())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connections.changed.wait(), _GLANCE if leaving else None)

    async def end(self) -> None:
        """Ends all connections: requests still under way are cancelled, and what has been answered leaves first."""
        for connection in self._open():
            if not connection.busy:
                connection.transport.close()
        for task in list(self._connections.tasks):
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                while self._connections.connections:
                    await self._change()
        for connection in self._open():
            connection.transport.abort()
        for begun in self._tasks:
            begun.cancel()
        await _turn()

    def _open(self) -> list[Connection]:
        return [connection for connection in self._connections.connections if isinstance(connection, Connection)]

    def _busy(self) -> bool:
        return any(connection.busy or connection.leaving for connection in self._open())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_the_time(self) -> None:
        """Each answer has a Date, made once a second."""
        while True:
            now = formatdate(time.time(), usegmt=True).encode()
            self._connections.default_headers = [(b"date", now)]
            await asyncio.sleep(1)


async def _turn() -> None:
    """The event loop reads all that has come, and begins with it."""
    for _ in range(3):
        await asyncio.sleep(0)


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InvalidSetting, which names the `flag` of the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidSetting(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint=f"choose another {flag} (0 takes a free one) or --host",
        ) from error
    return listener
