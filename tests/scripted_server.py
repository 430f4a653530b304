"""A server on a real socket of 127.0.0.1 that answers from a script, and clients of both kinds for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import visionpool

Connect = Callable[..., visionpool.Client]

JPEG = b"\xff\xd8\xff\xe0 a picture, as far as a client can tell"
PNG = b"\x89PNG\r\n\x1a\n another one"
RESULT = visionpool.ClassifyResult(label_ids=(2,), scores=(0.75,), labels=("circle",))
TIMINGS = {"decode": 1.5, "prepare": 0.5, "queue": 0.0, "infer": 7.25, "finish": 0.125}


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer. A status of 0 hangs up without one, `wait` is how long the server thinks first."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """What the server was sent."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


class FakeServer(ThreadingHTTPServer):
    """Answers request after request with `script`; its last line is repeated for ever."""

    daemon_threads = True
    request_queue_size = 64  # connections that wait to be taken; 5 are too few for a burst

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = [Reply()]
        self.requests: list[Request] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: that a client leaves early is a part of the script."""

    def next_reply(self) -> Reply:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        server = cast(FakeServer, self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.requests.append(Request(self.command, parts.path, parse_qs(parts.query), headers, body))
        reply = server.next_reply()
        server.closing.wait(reply.wait)
        self.close_connection = reply.status == 0
        if reply.status:
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

    do_GET = do_POST = handle_any  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing: the test's own assertions say what matters."""


@contextmanager
def serving() -> Iterator[FakeServer]:
    """A running server, gone in the end."""
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield fake
        fake.closing.set()
        fake.shutdown()
        thread.join(5)


class Awaited:
    """An AsyncClient whose calls are run to their end, so that the tests are written once."""

    def __init__(self, client: visionpool.AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            return self._runner.run(getattr(self._client, name)(*args, **options))

        return call


@contextmanager
def connecting(kind: str) -> Iterator[Connect]:
    """Makes clients of a `kind`, "Client" or "AsyncClient", and closes them in the end."""
    with ExitStack() as stack:

        def make(url: str, **settings: Any) -> visionpool.Client:
            if kind == "Client":
                return stack.enter_context(visionpool.Client(url, **settings))
            runner = stack.enter_context(asyncio.Runner())
            awaited = Awaited(visionpool.AsyncClient(url, **settings), runner)
            stack.callback(awaited.aclose)
            return cast(visionpool.Client, awaited)

        yield make


def good(*results: visionpool.Result) -> Reply:
    items = [result.to_dict() for result in results or (RESULT,)]
    body = {"model": "shapes", "version": "3", "results": items, "timings_ms": TIMINGS, "unknown": 1}
    return Reply(body=json.dumps(body).encode())


def bad(status: int, code: str, hint: str | None = None, **headers: str) -> Reply:
    body = {"error": {"code": code, "message": f"it is {code}", "hint": hint}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **named})


def busy(seconds: str) -> Reply:
    return bad(429, "queue_full", Retry_After=seconds)


def page(status: int, **headers: str) -> Reply:
    return Reply(status, b"<html>\n <h1>No\n way</h1></html>", {"Content-Type": "text/html", **headers})
