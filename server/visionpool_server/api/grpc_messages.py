"""Messages are parsed here and not by gRPC, whose answer to bytes that are none is INTERNAL, as if it were our fault."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from visionpool.errors import InvalidRequest

from visionpool_server.api.grpc_errors import Context, Handler, Servicer

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)


def parsed(kind: type[Request], raw: bytes) -> Request:
    """Raises InvalidRequest for bytes that are no message of this kind."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest(
            f"this is no {kind.DESCRIPTOR.name}", hint="send what the code generated from the proto file makes"
        ) from error


def reading(
    kind: type[Request],
) -> Callable[[Handler[Servicer, Request, Answer]], Handler[Servicer, bytes, bytes]]:
    """Around a handler of messages: it takes the bytes of one of this kind, and gives those of its answer."""

    def decorate(handler: Handler[Servicer, Request, Answer]) -> Handler[Servicer, bytes, bytes]:
        @wraps(handler)
        async def read(servicer: Servicer, raw: bytes, context: Context) -> bytes:
            return (await handler(servicer, parsed(kind, raw), context)).SerializeToString()

        return read

    return decorate
