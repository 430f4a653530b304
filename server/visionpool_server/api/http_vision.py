"""Our REST interface: pictures in, results or annotated pictures out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from visionpool.errors import Cancelled, InvalidRequest

from visionpool_server.api.accept import preferred
from visionpool_server.api.answers import describe, result_fields, slowest, summary
from visionpool_server.api.bodies import BodyLimits, JsonPictures, read_pictures
from visionpool_server.api.exchange import note_model, note_pictures
from visionpool_server.api.options import PredictOptions, read_ask
from visionpool_server.api.schemas import (
    PREDICT_EXAMPLE,
    ErrorResponse,
    ModelDescription,
    ModelList,
    PredictResponse,
    inlined,
)
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.models.loader import Model
from visionpool_server.service import Ask, PictureType, Prediction, Service

T = TypeVar("T")
_PICTURE_TYPES: dict[str, PictureType] = {
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/png": "png",
    "image/*": "jpeg",
}
_STATUSES = (400, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class VisionApi:
    """The handlers; `router()` binds them to their paths."""

    service: Service
    limits: BodyLimits
    urls: UrlFetcher

    async def predict(self, request: Request) -> Response:
        model = self.service.models.get(request.path_params["model"])
        note_model(model.name, model.version)
        picture_type = _wanted_picture(request.headers.get("accept"))
        given = request.query_params
        said = {name: ",".join(given.getlist(name)) for name in given}  # classes=a&classes=b is classes=a,b
        ask = read_ask(said)
        with self.limits.budget.hold() as held:
            pictures = await read_pictures(request, self.limits, self.urls, held)
            note_pictures(len(pictures))
            model = self.service.models.get(model.name)  # it may have been loaded anew while the body came
            if picture_type:
                return await self._drawn(request, model, pictures, ask, picture_type)
            predictions = await unless_gone(request, self.service.predict_many(model, pictures, ask))
        started = time.monotonic()
        response = Response(
            _encoded(model, predictions), 200, {"Server-Timing": server_timing(predictions)}, "application/json"
        )
        model.pool.statistics.encoded(time.monotonic() - started)
        return response

    async def _drawn(
        self, request: Request, model: Model, pictures: list[bytes], ask: Ask, kind: PictureType
    ) -> Response:
        if len(pictures) > 1:
            raise InvalidRequest(
                "an annotated picture is made of one picture", hint="send them one by one, or ask for JSON"
            )
        prediction, body = await unless_gone(request, self.service.annotate(model, pictures[0], ask, kind))
        return Response(body, 200, {"Server-Timing": server_timing([prediction])}, f"image/{kind}")

    async def models(self) -> Response:
        return _json({"models": [summary(model) for model in self.service.models]})

    async def model(self, model: str) -> Response:
        return _json(describe(self.service.models.get(model)))

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(
            "/v1/models/{model}/predict",
            self.predict,
            methods=["POST"],
            summary="Predict",
            description=_PREDICT_TEXT,
            tags=["vision"],
            responses=responses(PredictResponse, PREDICT_EXAMPLE, pictures=True),
            openapi_extra=_predict_parameters(),
        )
        router.add_api_route(
            "/v1/models",
            self.models,
            methods=["GET"],
            summary="The models",
            tags=["models"],
            responses=responses(ModelList),
        )
        router.add_api_route(
            "/v1/models/{model}",
            self.model,
            methods=["GET"],
            summary="One model",
            tags=["models"],
            responses=responses(ModelDescription),
        )
        return router


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Awaits `work`, and cancels it where the client hangs up meanwhile. The body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    gone = asyncio.ensure_future(request.receive())
    hung_up, over = False, False

    def stop(done: asyncio.Future[Any]) -> None:
        nonlocal hung_up
        if not over and not done.cancelled():
            hung_up = True
            task.cancel()

    gone.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not hung_up:
            raise
        task.uncancel()
        raise Cancelled("the client went away") from None
    finally:
        over = True  # `stop` may be due already, and what follows is not to be cancelled
        gone.remove_done_callback(stop)
        gone.cancel()


def server_timing(predictions: Sequence[Prediction]) -> str:
    """The standard header (W3C Server Timing): milliseconds per stage, of several pictures the slowest."""
    return ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in slowest(predictions).items())


def _encoded(model: Model, predictions: Sequence[Prediction]) -> bytes:
    return orjson.dumps(
        {
            "model": model.name,
            "version": model.version,
            "results": [result_fields(prediction.result) for prediction in predictions],
            "timings_ms": {stage: round(ms, 3) for stage, ms in slowest(predictions).items()},
        }
    )


def _wanted_picture(accept: str | None) -> PictureType | None:
    """The kind of annotated picture that an Accept header prefers over JSON, if it does (RFC 9110, 12.5.1)."""
    if accept is None or "image/" not in accept.lower():
        return None
    best = next((m for m in preferred(accept) if m in _PICTURE_TYPES or m in ("application/json", "*/*")), "")
    return _PICTURE_TYPES.get(best)


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


_PREDICT_TEXT = """The body is the picture itself (`image/*`), a multipart form with one or more `image` parts, or JSON
`{"images": [{"base64": "..."}, {"url": "..."}]}` (URLs only where the server was started with `--allow-urls`). The answer
holds one result for each picture. With `Accept: image/jpeg` or `image/png` it is the annotated picture instead."""


def responses(
    model: type, example: dict[str, Any] | None = None, *, pictures: bool = False
) -> dict[int | str, dict[str, Any]]:
    content: dict[str, Any] = {"application/json": {"example": example} if example else {}}
    if pictures:
        binary = {"schema": {"type": "string", "format": "binary"}}
        content |= {"image/jpeg": binary, "image/png": binary}
    table: dict[int | str, dict[str, Any]] = {200: {"model": model, "content": content}}
    return table | {status: {"model": ErrorResponse} for status in _STATUSES}


def _predict_parameters() -> dict[str, Any]:
    """The handler reads the request by hand, for speed: what it reads is described here, from the same models."""
    options = PredictOptions.model_json_schema()["properties"]
    return {
        "parameters": [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "example": "shapes",
            },
            *(
                {
                    "name": name,
                    "in": "query",
                    "required": False,
                    "description": schema.get("description", ""),
                    "schema": {"type": "string"} if name == "classes" else schema,
                }
                for name, schema in options.items()
            ),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    }
                },
                "application/json": {
                    "schema": inlined(JsonPictures),
                    "example": {"images": [{"base64": "/9j/4AAQSkZJRg..."}]},
                },
            },
        },
    }
