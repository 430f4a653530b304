"""The bare HTTP server of benchmarks.bare: an ASGI app in uvicorn."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import orjson
import uvicorn

from benchmarks.trivial import CONFIG, MODEL, NAME, OUTPUT, RESULT, SERVER, SHAPE, STATISTICS

Answer = Callable[[bytes, int], bytes]  # a body, and the length of the JSON in it -> the answer's JSON
Ready = Callable[[int], None]  # gets the port
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HOST = "127.0.0.1"
_OUTPUTS: list[dict[str, Any]] = [
    {"name": OUTPUT, "datatype": "FP32", "shape": [1, SHAPE[1]], "parameters": {"binary_data_size": len(RESULT)}}
]
_REST = orjson.dumps({"model_name": NAME, "model_version": "1", "outputs": _OUTPUTS})[1:]
_REQUEST_ID = re.compile(rb'"id":"([^"]*)"')


def constant(body: bytes, header: int) -> bytes:
    found = _REQUEST_ID.search(body, 0, header)
    return b'{"id":"' + (found[1] if found else b"") + b'",' + _REST


def parsed(body: bytes, header: int) -> bytes:
    request = orjson.loads(body[:header])
    np.frombuffer(body, np.float32, offset=header).reshape(request["inputs"][0]["shape"])
    return orjson.dumps({"id": request["id"], "model_name": NAME, "model_version": "1", "outputs": _OUTPUTS})


def _app(infer: Answer) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI app: `infer` for POST, the descriptions for everything else."""
    described = {"": MODEL, "config": CONFIG, "stats": STATISTICS, "ready": {}}
    answers = {f"/v2/models/{NAME}/{part}".rstrip("/"): orjson.dumps(value) for part, value in described.items()}
    answers |= {"/v2": orjson.dumps(SERVER), "/v2/health/live": b"", "/v2/health/ready": b""}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if scope["method"] == "POST":
            length = next(int(value) for name, value in scope["headers"] if name == b"inference-header-content-length")
            header = infer(body, length)
            await _send(send, header + RESULT, [(b"inference-header-content-length", b"%d" % len(header))])
        else:
            await _send(send, answers[scope["path"]], [])

    return app


async def _body(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message["body"])
        more = message["more_body"]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _send(send: Send, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers += [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(infer: Answer, port: int, ready: Ready) -> None:
    listener = socket.create_server((HOST, port))
    config = uvicorn.Config(
        _app(infer), http="httptools", loop="uvloop", lifespan="off", log_config=None, access_log=False
    )
    ready(listener.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listener])
