"""A stream of frames over gRPC: answered in their order, some at once, and never more read than there is room for.

What a call of visionpool.v1 says about a prediction is read here, for `grpc_vision` as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from visionpool.errors import InvalidRequest, QueueFull, VisionpoolError
from visionpool.messages import write_result
from visionpool.v1 import vision_pb2 as v1

from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.exchange import Frame, note_error, note_model, note_pictures
from visionpool_server.api.grpc_errors import Context, retry_after, unforeseen
from visionpool_server.api.grpc_streams import in_order
from visionpool_server.api.options import read_ask
from visionpool_server.models.loader import Model
from visionpool_server.service import Ask, Prediction, Service, check_options

log = logging.getLogger(__name__)

Request = TypeVar("Request")

_LEAST, _MOST = 4, 64  # frames of a stream at once
_LONGEST_PAUSE = 0.25  # seconds between two attempts at a full queue


class FrameStream:
    """One call of PredictStream: its model and options, which the frames may change as they come."""

    def __init__(self, service: Service, limits: BodyLimits, context: Context) -> None:
        self._service = service
        self._limits = limits
        self._context = context
        self._ask = Ask()
        self._model: Model | None = None

    async def run(self, requests: AsyncIterator[v1.PredictStreamRequest]) -> None:
        """Answers until the requests end. Raises what makes all further frames useless, after those before are answered:
        ModelNotFound, InvalidOption. However it ends, nothing is left under way."""
        first = await anext(requests, None)
        if first is None:
            return
        limit = in_flight(self._follow(first))
        frames = in_order(_chained(first, requests), self._begin, limit)
        async with aclosing(frames) as answers:
            async for answer in answers:
                await self._context.write(answer.SerializeToString())

    def _begin(self, request: v1.PredictStreamRequest) -> Awaitable[v1.PredictStreamResponse]:
        """Called as each frame is read, so that what it says holds from it on."""
        return self._answer(request, self._follow(request), self._ask)

    def _follow(self, request: v1.PredictStreamRequest) -> Model:
        """Takes over what a request says of the model and the options; gives the model. Raises ModelNotFound, ..."""
        if self._model is None and not request.model:
            raise InvalidRequest("the first frame of a stream names no model", hint="set its field `model`")
        if self._model is not None and not request.model and not request.HasField("options"):
            return self._model
        model = self._service.models.get(request.model, request.version or None) if request.model else self._model
        assert model is not None
        if request.HasField("options"):
            self._ask = read_options(request.options)
        check_options(model, self._ask.options)
        self._model = model
        return model

    async def _answer(self, request: v1.PredictStreamRequest, model: Model, ask: Ask) -> v1.PredictStreamResponse:
        """The answer to one frame, whatever happens to it."""
        response = v1.PredictStreamResponse(id=request.id, model=model.name, version=model.version)
        with Frame():
            note_model(model.name, model.version)
            note_pictures(1)
            await self._fill(response, request.picture, model, ask)
        return response

    async def _fill(self, response: v1.PredictStreamResponse, picture: bytes, model: Model, ask: Ask) -> None:
        try:
            prediction = await self._prediction(picture, model, ask)
            started = time.monotonic()
            write_result(prediction.result, response.result)
            write_timings(prediction.timings, response.timings)
            model.pool.statistics.encoded(time.monotonic() - started)
        except VisionpoolError as error:
            write_error(error, response.error)
        except Exception as error:
            log.error("a frame for %s failed", model.name, exc_info=error)
            write_error(unforeseen(), response.error)

    async def _prediction(self, picture: bytes, model: Model, ask: Ask) -> Prediction:
        """Waits where a single call would be turned away: the sender notices, as nothing more is read meanwhile."""
        self._limits.check_bytes(len(picture))
        while True:
            try:
                with self._limits.budget.hold() as held:
                    held.take(len(picture))
                    return await self._service.predict(model, picture, within(self._context, ask, model))
            except QueueFull as error:
                await asyncio.sleep(min(error.retry_after, _LONGEST_PAUSE))


def in_flight(model: Model) -> int:
    """How many frames of a stream are under way at once: a batch for each worker, as many waiting, and two on the way."""
    running = sum(group.engine.max_batch_size * group.count for group in model.pool.groups)
    return min(_MOST, max(_LEAST, 2 * running + 2))


def read_options(options: v1.PredictOptions) -> Ask:
    """As over HTTP. Raises InvalidOption."""
    given = {field.name: value for field, value in options.ListFields()}
    if "classes" in given:
        given["classes"] = list(given["classes"])
    return read_ask(given)


def within(context: Context, ask: Ask, model: Model) -> Ask:
    """`ask`, with a timeout that ends no later than the call's own deadline."""
    remaining: float | None = context.time_remaining()
    if remaining is None or remaining >= (ask.timeout or model.bundle.batching.timeout_ms / 1000):
        return ask
    return replace(ask, timeout=max(remaining, 0.001))


def write_timings(timings: Mapping[str, float], message: v1.Timings) -> None:
    """`timings`: milliseconds per stage."""
    for stage, ms in timings.items():
        setattr(message, f"{stage}_ms", round(ms, 3))


def write_error(error: VisionpoolError, message: v1.Error) -> None:
    note_error(error.code)
    message.code, message.message = error.code, error.message
    if error.hint:
        message.hint = error.hint
    if (seconds := retry_after(error)) is not None:
        message.retry_after = seconds


async def _chained(first: Request, rest: AsyncIterator[Request]) -> AsyncIterator[Request]:
    yield first
    async for request in rest:
        yield request
