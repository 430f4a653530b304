"""Reads what a request carries: bounded in size and time, in any of the forms that a picture comes in."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive
from visionpool.errors import Cancelled, InvalidRequest, RequestTimeout, TooLarge, UnsupportedMedia

from visionpool_server.api.budget import ByteBudget, Held
from visionpool_server.api.options import PredictOptions
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.imaging.decode import sniff

_HINT = (
    "send the picture itself (curl --data-binary @picture.jpg -H 'Content-Type: image/jpeg'), "
    'a multipart form with image parts, or JSON {"images": [{"base64": ...}]}'
)
_SWELL = 8  # times as large as on the wire is what is parsed in memory, about
_MOST_LISTS = 2**22  # and objects of a JSON body: each takes about ninety bytes in memory, and two on the wire
_BARE = {"", "application/octet-stream", "application/x-www-form-urlencoded"}  # the last is curl's default


@dataclass(frozen=True, slots=True)
class BodyLimits:
    max_bytes: int = 64 * 2**20
    timeout: float = 30.0  # seconds for the whole body, and for all URLs in it
    max_pictures: int = 64
    budget: ByteBudget = field(default_factory=lambda: ByteBudget(2**30))  # over all requests

    def check_bytes(self, size: int) -> None:
        """Raises TooLarge for more bytes than a request may have."""
        if size > self.max_bytes:
            raise TooLarge(
                f"the request is larger than {self.max_bytes / 2**20:g} MiB",
                hint="send a smaller picture, or start the server with a larger --max-body-mb",
            )

    def check_pictures(self, count: int) -> None:
        """Raises TooLarge for more pictures than a request may have."""
        if count > self.max_pictures:
            raise TooLarge(f"{count} pictures in one request", hint=f"send at most {self.max_pictures}")


LARGE_TEXT = 2**15  # bytes of JSON, or of typed values in a message, that are kept from the event loop


def swollen(size: int, budget: ByteBudget) -> int:
    """What so many bytes of JSON, or of typed values in a message, take in memory besides; what one request may ask at most."""
    return min(_SWELL * size, budget.limit // 2)


def check_json(body: bytes, size: int) -> None:
    """Raises TooLarge where the first `size` bytes of a body, which are JSON, would fill the memory once they are parsed."""
    if size > _MOST_LISTS and body.count(b"[", 0, size) + body.count(b"{", 0, size) > _MOST_LISTS:
        raise TooLarge(f"more than {_MOST_LISTS} lists and objects in one body of JSON", hint="send tensors flat")


class JsonPicture(BaseModel):
    """One picture: its bytes in base64 (a `data:` URL is fine too), or a URL where the server allows it."""

    model_config = ConfigDict(extra="forbid")
    base64: str | None = None
    url: str | None = None


class JsonPictures(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[JsonPicture], Field(min_length=1)]


async def read_body(request: Request, limits: BodyLimits, held: Held) -> bytes:
    """The whole body, as `receive_body` says."""
    return await receive_body(request.receive, request.headers.get("content-length", ""), limits, held)


async def receive_body(receive: Receive, declared: str, limits: BodyLimits, held: Held) -> bytes:
    """The whole body, of which `declared` is the Content-Length. Raises TooLarge before reading what declares itself too
    large, RequestTimeout for a slow one, QueueFull where the server holds too many bytes already."""
    if declared.isdecimal():
        limits.check_bytes(int(declared))
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(limits.timeout):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled("the client went away")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                limits.check_bytes(size)
                held.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestTimeout(f"the request was not complete after {limits.timeout:g} s") from error
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_pictures(request: Request, limits: BodyLimits, urls: UrlFetcher, held: Held) -> list[bytes]:
    """The pictures of a request, at least one. Raises InvalidRequest, UnsupportedMedia, TooLarge, RequestTimeout."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise UnsupportedMedia(
            f"a body coded as {coding[:40]} is not read", hint="send it as it is: pictures are compressed"
        )
    body = await read_body(request, limits, held)
    if kind.startswith("image/"):
        return [body]
    if kind == "multipart/form-data":
        return await _from_form(request.headers, body, limits)
    if kind == "application/json":
        return await _from_json(body, limits, urls, held)
    if not body:
        raise InvalidRequest("the body is empty", hint=_HINT)
    if kind in _BARE and (sniff(body) or kind == "application/octet-stream"):
        return [body]
    raise UnsupportedMedia(f"a body of type {kind or 'unknown'} is not read", hint=_HINT)


async def _from_form(headers: Headers, body: bytes, limits: BodyLimits) -> list[bytes]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=limits.max_pictures, max_part_size=limits.max_bytes)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise InvalidRequest(f"the multipart form cannot be read: {error}", hint=_HINT) from error
    parts = form.multi_items()
    files = [part for _, part in parts if isinstance(part, UploadFile)]
    if not files:
        raise InvalidRequest("the form has no file part", hint="curl -F image=@picture.jpg")
    if options := [name for name, part in parts if isinstance(part, str) and name in PredictOptions.model_fields]:
        raise InvalidRequest(
            f"options go into the query, not into the form: {', '.join(options)}", hint=f"?{options[0]}=..."
        )
    pictures = [await part.read() for part in files]
    await form.close()
    return pictures


async def _from_json(body: bytes, limits: BodyLimits, urls: UrlFetcher, held: Held) -> list[bytes]:
    sources = await asyncio.to_thread(_sources, body, limits)  # megabytes of base64: not on the event loop
    try:
        async with asyncio.timeout(limits.timeout):
            return [source if isinstance(source, bytes) else await urls.fetch(source, held) for source in sources]
    except TimeoutError as error:
        raise InvalidRequest(f"the URLs did not all answer within {limits.timeout:g} s") from error


def _sources(body: bytes, limits: BodyLimits) -> list[bytes | str]:
    """The pictures of a JSON body, or the URLs where they are."""
    entries = _parsed(body).images
    limits.check_pictures(len(entries))
    return [_source(entry, index) for index, entry in enumerate(entries)]


def _parsed(body: bytes) -> JsonPictures:
    try:
        return JsonPictures.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", hint=_HINT) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        if where in PredictOptions.model_fields:
            raise InvalidRequest(
                f"options go into the query, not into the body: {where}", hint=f"?{where}=..."
            ) from error
        raise InvalidRequest(f"{where}: {first['msg']}", hint=_HINT) from error


def _source(entry: JsonPicture, index: int) -> bytes | str:
    if entry.base64 is not None and entry.url is None:
        return from_base64(entry.base64, f"images.{index}.base64")
    if entry.url is not None and entry.base64 is None:
        return entry.url
    raise InvalidRequest(f"images.{index}: give either base64 or url", hint=_HINT)


def from_base64(text: str, where: str) -> bytes:
    """The bytes of a base64 text, with or without a `data:...;base64,` in front. Raises InvalidRequest."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{where} is not base64: {error}") from error
