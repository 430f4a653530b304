"""POST .../infer without a framework: ASGI in, ASGI out, since the framework's objects would cost more than all the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send
from visionpool.errors import InternalError, VisionpoolError

from visionpool_server.api.bodies import LARGE_TEXT, BodyLimits, check_json, swollen
from visionpool_server.api.budget import Held
from visionpool_server.api.errors import error_response, unexpected_response
from visionpool_server.api.http_vision import unless_gone
from visionpool_server.api.kserve.compression import compressed, read_decoded, wanted_coding
from visionpool_server.api.kserve.http_codec import head_size_of, json_bytes, read_raw, read_request, write_response
from visionpool_server.api.kserve.messages import InferRequest, InferResponse

if TYPE_CHECKING:
    from visionpool_server.api.kserve.protocol import Kserve

HEADER = b"inference-header-content-length"
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    async def send(self, send: Send) -> None:
        headers = [(b"content-length", b"%d" % len(self.body)), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def response(self) -> Response:
        """The same for the framework."""
        response = Response(self.body, self.status)
        response.raw_headers.extend(self.headers)
        return response


@dataclass(frozen=True, slots=True)
class Inference:
    """The handler of inferences; it answers its errors too."""

    kserve: Kserve
    limits: BodyLimits

    async def __call__(self, scope: Scope, receive: Receive, send: Send, model: str, version: str) -> None:
        answer = await self.answer(Request(scope, receive), model, version)
        await answer.send(send)

    async def answer(self, request: Request, model: str, version: str) -> Answer:
        try:
            with self.limits.budget.hold() as held:
                return await self._inferred(request, model, version, held)
        except VisionpoolError as error:
            return error_answer(error)
        except Exception as error:
            return unexpected_answer(request, error)

    async def _inferred(self, request: Request, model: str, version: str, held: Held) -> Answer:
        self.kserve.note(model, version)
        headers: Mapping[bytes, bytes] = dict(request.scope["headers"])
        body = await read_decoded(request.receive, headers, self.limits, held)
        header = headers.get(HEADER)
        head_size = head_size_of(header, len(body))
        check_json(body, head_size)
        if header is not None and not head_size:
            asked = read_raw(model, version, body, self.kserve.model_config(model, version).config)
        elif head_size > LARGE_TEXT:
            held.take(swollen(head_size, self.limits.budget))
            asked = await asyncio.to_thread(read_request, model, version, body, head_size)
        else:
            asked = read_request(model, version, body, head_size)
        begun = self.kserve.begin(asked)
        response = begun if isinstance(begun, InferResponse) else await unless_gone(request, begun)
        started = time.monotonic()
        answer = await _answered(asked, response, headers.get(b"accept-encoding"))
        self.kserve.encoded(response, time.monotonic() - started)
        return answer


async def _answered(asked: InferRequest, response: InferResponse, accept: bytes | None) -> Answer:
    if json_bytes(asked, response) > LARGE_TEXT:
        body, head_size = await asyncio.to_thread(write_response, asked, response)
    else:
        body, head_size = write_response(asked, response)
    headers = [_JSON] if head_size is None else [_BINARY, (HEADER, b"%d" % head_size)]
    if accept and (coding := wanted_coding(accept)):
        body, coded = await compressed(body, coding)
        if coded:
            headers.append((b"content-encoding", coded.encode()))
    return Answer(200, headers, body)


def error_answer(error: VisionpoolError, *, allow: str = "") -> Answer:
    """The error in the protocol's form, `{"error": "<message>"}`, with the status and headers that it has elsewhere."""
    known = error_response(error)
    more = [(name, known.headers.get(name, "")) for name in ("retry-after", "www-authenticate")]
    headers = [_JSON, *((name.encode(), value.encode()) for name, value in (*more, ("allow", allow)) if value)]
    return Answer(known.status_code, headers, orjson.dumps({"error": str(error)}))


def unexpected_answer(request: Request, error: Exception) -> Answer:
    """An error that nobody foresaw: the log gets all of it, the caller nothing but that it was ours."""
    unexpected_response(request, error)
    return error_answer(InternalError("an error of ours", hint="the server's log has the reason"))
