"""Our typed service over gRPC; protos/visionpool/v1/vision.proto says what each call means."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import orjson
from visionpool.errors import InvalidOption, InvalidRequest
from visionpool.messages import write_result
from visionpool.v1 import vision_pb2 as v1

from visionpool_server.api.answers import describe, slowest, summary
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.budget import Held
from visionpool_server.api.exchange import note_model, note_pictures
from visionpool_server.api.grpc_errors import Context, answered
from visionpool_server.api.grpc_frames import FrameStream, read_options, within, write_timings
from visionpool_server.api.grpc_messages import parsed, reading
from visionpool_server.models.loader import Model
from visionpool_server.service import PictureType, Service

SERVICE_NAME = v1.DESCRIPTOR.services_by_name["Vision"].full_name
_PICTURE_TYPES: dict[int, PictureType] = {
    v1.PICTURE_FORMAT_UNSPECIFIED: "jpeg",
    v1.PICTURE_FORMAT_JPEG: "jpeg",
    v1.PICTURE_FORMAT_PNG: "png",
}
_FORMATS = {"jpeg": v1.PICTURE_FORMAT_JPEG, "png": v1.PICTURE_FORMAT_PNG}


class VisionGrpc:
    """The handlers, for a server of grpc.aio: all run on its event loop. `handlers()` binds them to the names of the proto."""

    def __init__(self, service: Service, limits: BodyLimits) -> None:
        self._service = service
        self._limits = limits

    def handlers(self) -> grpc.GenericRpcHandler:
        unary = {
            "Predict": self.predict,
            "Annotate": self.annotate,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
        }
        methods: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in unary.items()}
        methods["PredictStream"] = grpc.stream_stream_rpc_method_handler(self.predict_stream)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    @answered
    @reading(v1.PredictRequest)
    async def predict(self, request: v1.PredictRequest, context: Context) -> v1.PredictResponse:
        model = self._asked(request)
        ask = read_options(request.options)
        with self._limits.budget.hold() as held:
            pictures = self._pictures(request.pictures, held)
            predictions = await self._service.predict_many(model, pictures, within(context, ask, model))
        started = time.monotonic()
        response = v1.PredictResponse(model=model.name, version=model.version)
        for prediction in predictions:
            write_result(prediction.result, response.results.add())
        write_timings(slowest(predictions), response.timings)
        model.pool.statistics.encoded(time.monotonic() - started)
        return response

    @answered
    async def predict_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        frames = (parsed(v1.PredictStreamRequest, raw) async for raw in requests)
        await FrameStream(self._service, self._limits, context).run(frames)

    @answered
    @reading(v1.AnnotateRequest)
    async def annotate(self, request: v1.AnnotateRequest, context: Context) -> v1.AnnotateResponse:
        model = self._asked(request)
        ask = read_options(request.options)
        kind = _PICTURE_TYPES.get(request.format)
        if kind is None:
            raise InvalidOption(f"no pictures are drawn in format {request.format}", hint="PictureFormat lists them")
        with self._limits.budget.hold() as held:
            (picture,) = self._pictures([request.picture], held)
            prediction, drawn = await self._service.annotate(model, picture, within(context, ask, model), kind)
        response = v1.AnnotateResponse(model=model.name, version=model.version, picture=drawn, format=_FORMATS[kind])
        write_result(prediction.result, response.result)
        write_timings(prediction.timings, response.timings)
        return response

    @answered
    @reading(v1.ListModelsRequest)
    async def list_models(self, request: v1.ListModelsRequest, context: Context) -> v1.ListModelsResponse:  # noqa: ARG002
        return v1.ListModelsResponse(models=[_summary(summary(model)) for model in self._service.models])

    @answered
    @reading(v1.GetModelRequest)
    async def get_model(self, request: v1.GetModelRequest, context: Context) -> v1.GetModelResponse:  # noqa: ARG002
        return _description(describe(self._model(request)))

    def _asked(self, request: v1.PredictRequest | v1.AnnotateRequest) -> Model:
        model = self._model(request)
        note_model(model.name, model.version)
        return model

    def _model(self, request: v1.PredictRequest | v1.AnnotateRequest | v1.GetModelRequest) -> Model:
        return self._service.models.get(request.model, request.version or None)

    def _pictures(self, given: Sequence[bytes], held: Held) -> list[bytes]:
        """The pictures of a request, at least one; `held` counts their bytes. Raises InvalidRequest, TooLarge, QueueFull."""
        pictures = list(given)
        size = sum(map(len, pictures))
        self._limits.check_bytes(size)
        if not pictures:
            raise InvalidRequest("there is no picture in the request", hint="put the bytes of files into `pictures`")
        self._limits.check_pictures(len(pictures))
        held.take(size)
        note_pictures(len(pictures))
        return pictures


def _summary(told: Mapping[str, Any]) -> v1.ModelSummary:
    return v1.ModelSummary(**{name: told[name] for name in v1.ModelSummary.DESCRIPTOR.fields_by_name})


def _description(told: Mapping[str, Any]) -> v1.GetModelResponse:
    """What `describe` tells, as a message: what has no field of its own goes into `details`."""
    response = v1.GetModelResponse(
        summary=_summary(told),
        labels=told["labels"],
        options=told["options"],
        inputs=[_tensor(tensor) for tensor in told["inputs"]],
        outputs=[_tensor(tensor) for tensor in told["outputs"]],
    )
    typed = {*v1.ModelSummary.DESCRIPTOR.fields_by_name, *v1.GetModelResponse.DESCRIPTOR.fields_by_name}
    rest = {name: value for name, value in told.items() if name not in typed}
    response.details.update(orjson.loads(orjson.dumps(rest)))  # a Struct takes JSON's own types only
    return response


def _tensor(told: Mapping[str, Any]) -> v1.Tensor:
    return v1.Tensor(
        name=told["name"], shape=[-1 if size is None else size for size in told["shape"]], dtype=told["dtype"]
    )
