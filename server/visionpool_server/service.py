"""The whole flow of a prediction, in one place; transports above it, runtimes below it.

bytes -> decode -> prepare -> [queue -> infer -> finish] -> result
         stage thread         a worker of the model's pool
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from visionpool.errors import DeadlineExceeded, InvalidOption, VisionpoolError
from visionpool.results import Result

from visionpool_server.batching import Job
from visionpool_server.cpu import cpu_count
from visionpool_server.families import NO_OPTIONS, Options, Tensors, class_ids
from visionpool_server.imaging.decode import decode, decode_reduced
from visionpool_server.imaging.draw import draw, encode
from visionpool_server.models.loader import Model
from visionpool_server.models.repository import Repository

PictureType = Literal["jpeg", "png"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants of one prediction. `timeout`: seconds, None for the model's own."""

    options: Options = NO_OPTIONS
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """`timings`: milliseconds per stage."""

    result: Result
    timings: Mapping[str, float] = field(default_factory=dict)


class Service:
    """`start` is implicit; `close()` ends the stage threads."""

    def __init__(self, models: Repository, *, max_pixels: int = 50_000_000, threads: int | None = None) -> None:
        self.models = models
        self._max_pixels = max_pixels
        self._stages = ThreadPoolExecutor(threads or cpu_count(), "stage")

    async def predict(self, model: Model, picture: bytes, ask: Ask = Ask()) -> Prediction:
        """Raises RequestError for the caller's faults, QueueFull, DeadlineExceeded, InferenceFailed."""
        check_options(model, ask.options)
        with model.pool.places(1):
            return await self._predict(model, picture, ask)

    async def predict_many(self, model: Model, pictures: Sequence[bytes], ask: Ask = Ask()) -> list[Prediction]:
        """All or nothing: the first picture that fails ends the call, and the error says which it was."""
        if len(pictures) == 1:
            return [await self.predict(model, pictures[0], ask)]
        check_options(model, ask.options)
        with model.pool.places(len(pictures)):
            tasks = [asyncio.ensure_future(self._predict(model, picture, ask)) for picture in pictures]
            try:
                return list(await asyncio.gather(*tasks))
            except VisionpoolError as error:
                failed = next(i for i, task in enumerate(tasks) if task.done() and task.exception() is error)
                error.message = f"picture {failed + 1} of {len(pictures)}: {error.message}"
                raise
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def annotate(self, model: Model, picture: bytes, ask: Ask, kind: PictureType) -> tuple[Prediction, bytes]:
        """The prediction, and the picture with it drawn in. The picture is decoded again for that: kept meanwhile, many
        of them would fill the memory."""
        check_options(model, ask.options)
        with model.pool.places(1):
            prediction = await self._predict(model, picture, ask)
            draw_it = partial(_drawn, picture, prediction.result, kind, self._max_pixels)
            return prediction, await asyncio.get_running_loop().run_in_executor(self._stages, draw_it)

    async def _predict(self, model: Model, picture: bytes, ask: Ask) -> Prediction:
        """For callers that have a place."""
        timeout = ask.timeout or model.bundle.batching.timeout_ms / 1000
        entry = _Entry(model, picture, ask, self._max_pixels)
        job = Job({}, _not_prepared, time.monotonic() + timeout, prepare=entry.prepare)
        try:
            async with asyncio.timeout(timeout):
                loop = asyncio.get_running_loop()
                if model.pool.prepares or await loop.run_in_executor(self._stages, job.ready):
                    model.pool.submit(job)
                await _settled(job)
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {timeout:g} s", hint="raise timeout_ms, or send less") from error
        finally:
            job.give_up()  # where nobody waits any more; without effect on what is done
        return Prediction(job.future.result(), _timings(job))

    def close(self) -> None:
        self._stages.shutdown(wait=False, cancel_futures=True)


class _Entry:
    """How a picture gets in: decoded and prepared by `prepare`, which runs on a stage thread or a worker's."""

    __slots__ = ("_ask", "_max_pixels", "_model", "_picture")

    def __init__(self, model: Model, picture: bytes, ask: Ask, max_pixels: int) -> None:
        self._model = model
        self._picture = picture
        self._ask = ask
        self._max_pixels = max_pixels

    def prepare(self, job: Job) -> None:
        started = time.monotonic()
        if started >= job.deadline:
            raise DeadlineExceeded("the deadline passed before the picture was decoded")
        family = self._model.family
        fast = self._model.bundle.decode == "fast"
        reduction = {"reduction": family.recipe.reduction} if fast else {}
        image, geometry = decode_reduced(self._picture, max_pixels=self._max_pixels, **reduction)
        decoded = time.monotonic()
        prepared = family.prepare(image, geometry)
        job.tensors = prepared.tensors
        job.finish = partial(family.finish, geometry=prepared.geometry, options=self._ask.options)
        job.decode_s, job.prepare_s = decoded - started, time.monotonic() - decoded


def _drawn(picture: bytes, result: Result, kind: PictureType, max_pixels: int) -> bytes:
    return encode(draw(decode(picture, max_pixels=max_pixels), result), kind)


async def _settled(job: Job) -> None:
    """Returns once the job has an answer or an error. (`asyncio.wrap_future` does more, at several times the cost.)"""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def settled(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(wake)

    job.future.add_done_callback(settled)
    await waiter


def _not_prepared(_: Tensors) -> Result:
    raise AssertionError("a job is prepared before it is finished")


def _timings(job: Job) -> dict[str, float]:
    """Milliseconds per stage."""
    return {
        "decode": job.decode_s * 1e3,
        "prepare": job.prepare_s * 1e3,
        "queue": job.queue_s * 1e3,
        "infer": job.infer_s * 1e3,
        "finish": job.finish_s * 1e3,
    }


def check_options(model: Model, options: Options) -> None:
    """An option that means nothing to this kind of model is an error: silence would look like an effect."""
    if options is NO_OPTIONS:
        return
    for name in options.given():
        if name not in model.family.accepts:
            raise InvalidOption(
                f"{name} means nothing to {model.name}, a {model.family_name} model",
                hint=f"it takes {', '.join(sorted(model.family.accepts))}",
            )
    class_ids(options.classes, model.family.labels, model.family.class_count)
