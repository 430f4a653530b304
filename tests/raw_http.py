"""HTTP by hand over a socket, for what no well-behaved client does."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.real_server import Server

SECONDS = 20.0  # that any answer may take at most


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error of the body, which must have our one form."""
        return error_of(self.body, self.headers.get("content-type", ""))


def error_of(body: bytes, content_type: str) -> dict[str, Any]:
    assert content_type == "application/json"
    said = json.loads(body)
    assert set(said) == {"error"}
    error = said["error"]
    assert set(error) == {"code", "message", "hint"}
    assert isinstance(error["code"], str) and isinstance(error["message"], str)
    assert error["code"] and error["message"]
    assert error["hint"] is None or isinstance(error["hint"], str)
    assert "Traceback" not in error["message"]
    return dict(error)


class Connection:
    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, method: str, path: str, *headers: str) -> None:
        """A request line and headers, without a body."""
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())

    def post(self, path: str, body: bytes, *headers: str) -> None:
        self.head("POST", path, f"Content-Length: {len(body)}", *headers)
        self.send(body)

    def answer(self, method: str = "POST") -> Answer:
        response = http.client.HTTPResponse(self.socket, method=method)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            response.close()

    def closed_by_server(self) -> bool:
        """Waits until the server hangs up; whatever it still sends is dropped."""
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    def vanish(self) -> None:
        self.socket.close()


@contextmanager
def connected(server: Server) -> Iterator[Connection]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as made:
        yield Connection(made)
