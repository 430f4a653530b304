"""Our errors as gRPC says them, by the one table in `errors.py`; for every handler of every service."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import grpc
import grpc.aio
import orjson
from visionpool.errors import InternalError, QueueFull, Unavailable, VisionpoolError

from visionpool_server.api.errors import STATUS
from visionpool_server.api.exchange import current
from visionpool_server.api.request_id import HEADER

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")  # of a stream, the iterator of its messages
Answer = TypeVar("Answer")
Servicer = TypeVar("Servicer")
Handler = Callable[[Servicer, Request, Context], Awaitable[Answer]]

ERROR_KEY = "visionpool-error-bin"  # trailing metadata: JSON, in UTF-8
_LONGEST = 500  # characters of a text: all metadata together must stay under 8 KiB, or clients refuse the answer
_CODES = {kind: grpc.StatusCode[status.grpc] for kind, status in STATUS.items()}
_NAMES = {kind.code: status.grpc for kind, status in STATUS.items()}
_BY_STATUS = {code: kind.code for kind, code in reversed(_CODES.items())}  # the first of those that share one


def answered(handler: Handler[Servicer, Request, Answer]) -> Handler[Servicer, Request, Answer]:
    """Around a handler that raises our errors: each ends the call with its status. What nobody foresaw is logged, and
    the caller learns no more than that it was ours."""

    @wraps(handler)
    async def answer(servicer: Servicer, request: Request, context: Context) -> Answer:
        try:
            return await handler(servicer, request, context)
        except VisionpoolError as error:
            refused = error
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            log.error("%s failed", handler.__qualname__, exc_info=error)
            refused = unforeseen()
        told = _CODES[type(refused)], _short(str(refused)), _trailing(refused)
        del refused  # its traceback holds this frame, and so the request
        await context.abort(*told)
        raise AssertionError("abort() raises")

    return answer


def _trailing(error: VisionpoolError) -> tuple[tuple[str, str | bytes], ...]:
    """What comes with the status of a call that ends with `error`, which its exchange is told of."""
    exchange = current.get()
    if exchange is None:
        return ((ERROR_KEY, packed(error)),)
    exchange.outcome = error.code
    return (ERROR_KEY, packed(error)), (HEADER, exchange.id)


def status_name(outcome: str) -> str:
    """The name of the status that a call with this outcome ends with."""
    return "OK" if outcome == "ok" else _NAMES.get(outcome, "UNKNOWN")


def code_of(status: grpc.StatusCode) -> str:
    """The code of the error that a status stands for, where a handler that is not ours ended a call with it."""
    return _BY_STATUS.get(status, InternalError.code)


def unforeseen() -> InternalError:
    """What a caller is told of an error that nobody foresaw."""
    return InternalError("an error of ours", hint="the server's log has the reason")


def packed(error: VisionpoolError) -> bytes:
    """The error as JSON: code, message, hint, and retry_after where the same request may succeed later."""
    told = {"code": error.code, "message": _short(error.message), "hint": error.hint and _short(error.hint)}
    seconds = retry_after(error)
    return orjson.dumps(told if seconds is None else {**told, "retry_after": seconds})


def retry_after(error: VisionpoolError) -> float | None:
    """Seconds after which the same request may succeed, None where that does not help."""
    if isinstance(error, QueueFull):
        return error.retry_after
    return 1.0 if isinstance(error, Unavailable) else None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
