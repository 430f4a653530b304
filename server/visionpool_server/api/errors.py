"""One table from our errors to what each transport says. A test proves that no class is missing."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from visionpool import errors

from visionpool_server.api.exchange import note_error

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    http: int
    grpc: str  # the name of a grpc.StatusCode


STATUS: dict[type[errors.VisionpoolError], Status] = {
    errors.VisionpoolError: Status(500, "INTERNAL"),
    errors.RequestError: Status(400, "INVALID_ARGUMENT"),
    errors.InvalidRequest: Status(400, "INVALID_ARGUMENT"),
    errors.InvalidOption: Status(422, "INVALID_ARGUMENT"),
    errors.InvalidImage: Status(422, "INVALID_ARGUMENT"),
    errors.UnsupportedMedia: Status(415, "INVALID_ARGUMENT"),
    errors.TooLarge: Status(413, "INVALID_ARGUMENT"),
    errors.Unauthenticated: Status(401, "UNAUTHENTICATED"),
    errors.NotFound: Status(404, "NOT_FOUND"),
    errors.ModelNotFound: Status(404, "NOT_FOUND"),
    errors.MethodNotAllowed: Status(405, "UNIMPLEMENTED"),
    errors.RequestTimeout: Status(408, "DEADLINE_EXCEEDED"),
    errors.Cancelled: Status(499, "CANCELLED"),  # nginx's number for a client that went away
    errors.ServiceError: Status(500, "INTERNAL"),
    errors.QueueFull: Status(429, "RESOURCE_EXHAUSTED"),
    errors.DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED"),
    errors.Unavailable: Status(503, "UNAVAILABLE"),
    errors.InferenceFailed: Status(500, "INTERNAL"),
    errors.Unimplemented: Status(501, "UNIMPLEMENTED"),
    errors.InternalError: Status(500, "INTERNAL"),
    errors.SetupError: Status(500, "FAILED_PRECONDITION"),
    errors.InvalidModel: Status(500, "FAILED_PRECONDITION"),
    errors.InvalidSetting: Status(500, "FAILED_PRECONDITION"),
    errors.BackendUnavailable: Status(500, "FAILED_PRECONDITION"),
    errors.ConnectionFailed: Status(502, "UNAVAILABLE"),
}


def status_of(error: errors.VisionpoolError) -> Status:
    """Of its class, or of the nearest one above that is in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_response(error: errors.VisionpoolError) -> Response:
    """The error as the answer over HTTP: its status, and the body `{"error": {"code", "message", "hint"}}`."""
    note_error(error.code)
    body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    headers = {}
    if isinstance(error, errors.QueueFull):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif isinstance(error, errors.Unavailable):
        headers["Retry-After"] = "1"
    elif isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status_of(error).http, headers, "application/json")


def unexpected_response(request: Request, error: Exception) -> Response:
    """An error that nobody foresaw: the log gets all of it, the caller nothing but that it was ours."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(errors.InternalError("an error of ours", hint="the server's log has the reason"))


def install(app: FastAPI) -> None:
    """Every error leaves `app` in our one form, the framework's own ones too."""

    @app.exception_handler(errors.VisionpoolError)
    async def _ours(_: Request, error: errors.VisionpoolError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> Response:
        response = error_response(_translated(request, error))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return error_response(errors.InvalidOption(f"{where}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        return unexpected_response(request, error)


def _translated(request: Request, error: HTTPException) -> errors.VisionpoolError:
    path = request.url.path
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return errors.NotFound(f"there is nothing at {path}", hint="GET /docs lists the routes")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "another method")
            return errors.MethodNotAllowed(f"{request.method} is not for {path}", hint=f"use {allowed}")
    return errors.InvalidRequest(str(error.detail))
