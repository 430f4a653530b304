"""FastDeploy's simple_serving format, so that its clients go on working.

`POST /fd/{model}` with `{"data": {"image": "<base64>"}, "parameters": {}}` answers `{"result": "<JSON string>"}`, the
string being what `fd_result_to_json` wrote (FastDeploy `python/fastdeploy/serving`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from visionpool.errors import InvalidRequest

from visionpool_server.api.answers import result_fields
from visionpool_server.api.bodies import BodyLimits, from_base64, read_body
from visionpool_server.api.exchange import note_model, note_pictures
from visionpool_server.api.http_vision import responses, unless_gone
from visionpool_server.api.options import read_ask
from visionpool_server.api.schemas import inlined
from visionpool_server.service import Service


class FastDeployData(BaseModel):
    image: str


class FastDeployRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")
    data: FastDeployData
    parameters: dict[str, Any] | None = None


class FastDeployResponse(BaseModel):
    result: str


@dataclass(frozen=True, slots=True)
class FastDeployApi:
    service: Service
    limits: BodyLimits

    async def predict(self, request: Request) -> Response:
        model = self.service.models.get(request.path_params["model"])
        note_model(model.name, model.version)
        with self.limits.budget.hold() as held:
            body = await read_body(request, self.limits, held)
            picture, parameters = await asyncio.to_thread(_parsed, body)  # megabytes of base64: not on the event loop
            note_pictures(1)
            prediction = await unless_gone(request, self.service.predict(model, picture, read_ask(parameters)))
        started = time.monotonic()
        result = orjson.dumps(result_fields(prediction.result)).decode()
        answer = orjson.dumps({"result": result})
        model.pool.statistics.encoded(time.monotonic() - started)
        return Response(answer, media_type="application/json")

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(
            "/fd/{model}",
            self.predict,
            methods=["POST"],
            summary="Predict, in FastDeploy's simple_serving format",
            tags=["fastdeploy"],
            responses=responses(FastDeployResponse),
            openapi_extra={
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": inlined(FastDeployRequest),
                            "example": {"data": {"image": "/9j/4AAQSkZJRg..."}, "parameters": {}},
                        }
                    },
                },
            },
        )
        return router


def _parsed(body: bytes) -> tuple[bytes, dict[str, Any]]:
    """The picture and the parameters of a request. Raises InvalidRequest."""
    try:
        asked = FastDeployRequest.model_validate(orjson.loads(body))
    except (orjson.JSONDecodeError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InvalidRequest(
            f"the body is not in FastDeploy's format: {reason}",
            hint='send {"data": {"image": "<base64>"}, "parameters": {}}',
        ) from error
    return from_base64(asked.data.image, "data.image"), asked.parameters or {}
