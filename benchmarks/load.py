"""A load generator that costs little: one process, raw sockets, prebuilt requests. Used by benchmarks.http."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast


class Caller(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, done: asyncio.Event, until: float) -> None:
        self._request = request
        self._done = done
        self._until = until
        self._sent = 0.0
        self._need = 0
        self._buffer = b""
        self.seconds: list[float] = []
        self.errors = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._ask()

    def _ask(self) -> None:
        if time.perf_counter() >= self._until:
            self._transport.close()
            self._done.set()
            return
        self._sent, self._buffer, self._need = time.perf_counter(), b"", 0
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._need:
            head, found, _ = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            self._need = len(head) + 4 + int(length.split(b":")[1])
        if len(self._buffer) >= self._need:
            self.seconds.append(time.perf_counter() - self._sent)
            self.errors += not self._buffer.startswith(b"HTTP/1.1 200")
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  a protocol's signature
        self._done.set()


async def load(host: str, port: int, request: bytes, concurrency: int, seconds: float) -> dict[str, float]:
    """Pictures a second and latencies in milliseconds over `seconds`, with so many connections."""
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + seconds
    callers = []
    started = time.perf_counter()
    events = []
    for _ in range(concurrency):
        done = asyncio.Event()
        _, caller = await loop.create_connection(lambda d=done: Caller(request, d, until), host, port)  # type: ignore[misc]
        callers.append(caller)
        events.append(done)
    await asyncio.gather(*(event.wait() for event in events))
    elapsed = time.perf_counter() - started
    times = sorted(value for caller in callers for value in caller.seconds)
    return {
        "per_second": len(times) / elapsed,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "errors": sum(caller.errors for caller in callers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5)
    asked = parser.parse_args()
    body = asked.picture.read_bytes()
    head = f"POST {asked.path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(
            runner.run(load(asked.host, asked.port, head.encode() + body, asked.concurrency, asked.seconds)), sys.stdout
        )


if __name__ == "__main__":
    main()
