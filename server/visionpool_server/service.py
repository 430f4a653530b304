"""The whole flow of a prediction, in one place; transports above it, runtimes below it.

bytes -> decode -> prepare -> [queue -> infer -> finish] -> result
         stage thread         a worker of the model's pool

What becomes of a picture that goes through several models is said in `reading`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any, Literal, Protocol

from visionpool.errors import DeadlineExceeded, InvalidOption, InvalidRequest, VisionpoolError
from visionpool.results import Result

from visionpool_server.batching import DEFAULT_PRIORITY, Job
from visionpool_server.cpu import cpu_count
from visionpool_server.families import NO_OPTIONS, Family, Options, Tensors, class_ids
from visionpool_server.imaging.decode import decode, decode_on_gpu, decode_reduced
from visionpool_server.imaging.draw import draw, encode
from visionpool_server.imaging.recipe import Decoded, Geometry, Image
from visionpool_server.imaging.unprepared import NotOnGpu
from visionpool_server.models.loader import Model
from visionpool_server.models.repository import Repository
from visionpool_server.pool import Pool
from visionpool_server.reading.reader import Reader
from visionpool_server.reading.side_by_side import Failed
from visionpool_server.statistics import Stages

PictureType = Literal["jpeg", "png"]


class Finish(Protocol):
    """Makes the answer of one picture from its outputs; runs on a worker's thread."""

    def __call__(self, outputs: Tensors, geometry: Geometry) -> Any: ...


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
        self.stages = ThreadPoolExecutor(threads or cpu_count(), "stage")
        self._max_pixels = max_pixels
        self._reader = Reader(self)

    async def predict(self, model: Model, picture: bytes, ask: Ask = Ask()) -> Prediction:
        """Raises RequestError for the caller's faults, QueueFull, DeadlineExceeded, InferenceFailed."""
        return (await self.predict_many(model, [picture], ask))[0]

    async def predict_many(self, model: Model, pictures: Sequence[bytes], ask: Ask = Ask()) -> list[Prediction]:
        """All or nothing: the first picture that fails ends the call, and the error says which it was."""
        if model.pipeline:
            return (await self.read_many(model, pictures, ask))[0]
        jobs = self._jobs(model, pictures, ask)
        with model.pool.places(len(jobs)):
            await self._run(model.pool, jobs, _timeout(model, ask))
        return [Prediction(job.future.result(), _timings(job)) for job in jobs]

    async def annotate(self, model: Model, picture: bytes, ask: Ask, kind: PictureType) -> tuple[Prediction, bytes]:
        """The prediction, and the picture with it drawn in. The picture is decoded again for that: kept meanwhile, many
        of them would fill the memory."""
        ask = replace(ask, options=replace(ask.options, compact=None))
        if model.pipeline:
            check_options(model, ask.options)
        jobs = [] if model.pipeline else self._jobs(model, [picture], ask)
        with model.pool.places(1):
            if model.pipeline:
                ((prediction,), _) = await self._read(model, [picture], ask)
            else:
                await self._run(model.pool, jobs, _timeout(model, ask))
                prediction = Prediction(jobs[0].future.result(), _timings(jobs[0]))
            draw_it = partial(_drawn, model, picture, prediction.result, kind, self._max_pixels)
            return prediction, await asyncio.get_running_loop().run_in_executor(self.stages, draw_it)

    async def read_many(
        self, model: Model, pictures: Sequence[bytes | Image], ask: Ask = Ask(), priority: int = DEFAULT_PRIORITY
    ) -> tuple[list[Prediction], Stages]:
        """`predict_many` of a pipeline, which takes encoded pictures, and (H, W, 3) RGB pixels."""
        check_options(model, ask.options)
        with model.pool.places(len(pictures)):
            return await self._read(model, pictures, ask, priority)

    async def _read(
        self, model: Model, pictures: Sequence[bytes | Image], ask: Ask, priority: int = DEFAULT_PRIORITY
    ) -> tuple[list[Prediction], Stages]:
        """For callers that have places."""
        started = time.monotonic()
        statistics = model.pool.statistics
        try:
            readings = await self._reader.read(model, pictures, ask.options, _timeout(model, ask), priority)
        except Failed as failed:
            statistics.failed(time.monotonic() - started)
            raise _named(failed.error, failed.index, len(pictures)) from failed.error
        except (VisionpoolError, asyncio.CancelledError):
            statistics.failed(time.monotonic() - started)
            raise
        for _, times in readings:
            statistics.executed(1, times.decode_s + times.prepare_s, times.infer_s, [times])
            statistics.finished(1, times.finish_s, [times])
        stages = _slowest([times.stages() for _, times in readings])
        statistics.succeeded(time.monotonic() - started, stages)
        return [Prediction(result, times.in_milliseconds()) for result, times in readings], stages

    def decoded(self, picture: bytes) -> Image:
        """Raises RequestError. For stage threads."""
        return decode(picture, max_pixels=self._max_pixels)

    async def run(self, pool: Pool, jobs: Sequence[Job], limit: float) -> Stages:
        """Has all `jobs` done within `limit` seconds, or raises what the first to fail met: see `predict_many`."""
        with pool.places(len(jobs)):
            return await self._run(pool, jobs, limit)

    def picture_job(
        self, model: Model, picture: bytes | Image, finish: Finish, *, priority: int = DEFAULT_PRIORITY
    ) -> Job:
        """The job of an encoded picture, or of (H, W, 3) RGB pixels; `finish(outputs, geometry)` makes its answer.

        Raises InvalidRequest for a model that takes no pictures.
        """
        if model.family is None:
            raise InvalidRequest(
                f"{model.name} takes tensors, not pictures: nothing says what kind of vision model it is",
                hint=f"send its tensors to /v2/models/{model.name}/infer, or say task: and family: in its model.yaml",
            )
        entry = _Entry(model, model.family, picture, finish, self._max_pixels)
        return Job({}, _not_prepared, prepare=entry.prepare, priority=priority)

    def _jobs(self, model: Model, pictures: Sequence[bytes], ask: Ask) -> list[Job]:
        check_options(model, ask.options)

        def finish(outputs: Tensors, geometry: Geometry) -> Result:
            assert model.family is not None
            return model.family.finish(outputs, geometry, ask.options)

        return [self.picture_job(model, picture, finish) for picture in pictures]

    async def _run(self, pool: Pool, jobs: Sequence[Job], limit: float) -> Stages:
        """For callers that have places."""
        started = time.monotonic()
        try:
            await self._queued(pool, jobs, started, limit)
            _raise_failure(jobs)
        except (VisionpoolError, asyncio.CancelledError):
            pool.statistics.failed(time.monotonic() - started)
            raise
        stages = _stages(jobs)
        pool.statistics.succeeded(time.monotonic() - started, stages)
        return stages

    async def _queued(self, pool: Pool, jobs: Sequence[Job], started: float, limit: float) -> None:
        """Returns once all jobs are done, or the first has failed. Raises DeadlineExceeded."""
        waiter = _Waiter(jobs)
        try:
            async with asyncio.timeout(limit):
                for job in jobs:
                    job.deadline = started + limit
                    self._enter(pool, job)
                await waiter.settled
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {limit:g} s", hint="raise timeout_ms, or send less") from error
        finally:
            for job in jobs:
                job.give_up()  # where nobody waits any more; without effect on what is done

    def _enter(self, pool: Pool, job: Job) -> None:
        """Queues a job, at once where the workers prepare or nothing is to be prepared, else from a stage thread."""
        if job.prepare is None or pool.prepares:
            pool.submit(job)
        else:
            pool.expect(1)
            self.stages.submit(_prepare_and_submit, pool, job)

    def close(self) -> None:
        self.stages.shutdown(wait=False, cancel_futures=True)


def _raise_failure(jobs: Sequence[Job]) -> None:
    """Raises what the first job to fail met, led by which picture it was where there are several."""
    for index, job in enumerate(jobs):
        done = job.future.done() and not job.future.cancelled()  # others may still be under way
        error = job.future.exception() if done else None
        if error is None:
            continue
        raise _named(error, index, len(jobs)) from error


def _named(error: BaseException, index: int, count: int) -> BaseException:
    """A copy, as others of the same batch may have met the very same, led by which picture of a request met it."""
    told = copy(error)
    if count > 1 and isinstance(told, VisionpoolError):
        told.message = f"picture {index + 1} of {count}: {told.message}"
    return told


def _prepare_and_submit(pool: Pool, job: Job) -> None:
    try:
        if job.ready():
            pool.submit(job)
    except VisionpoolError as error:
        job.fail(error)
    finally:
        pool.expect(-1)


class _Entry:
    """How a picture gets in: decoded and prepared by `prepare`, which runs on a stage thread or a worker's."""

    __slots__ = ("_family", "_finish", "_max_pixels", "_model", "_picture")

    def __init__(self, model: Model, family: Family, picture: bytes | Image, finish: Finish, max_pixels: int) -> None:
        self._model = model
        self._family = family
        self._picture = picture
        self._finish = finish
        self._max_pixels = max_pixels

    def prepare(self, job: Job) -> None:
        started = time.monotonic()
        if started >= job.deadline:
            raise DeadlineExceeded("the deadline passed before the picture was decoded")
        image, geometry = self._decoded()
        decoded = time.monotonic()
        try:
            prepared = self._family.prepare(image, geometry)
        except NotOnGpu:  # of a picture on the GPU whose size asks for steps that it cannot do
            prepared = self._family.prepare(*self._decoded(on_gpu=False))
        job.tensors = prepared.tensors
        job.finish = partial(self._finish, geometry=prepared.geometry)
        if isinstance(self._picture, bytes):
            job.decode_s = decoded - started
        job.prepare_s = time.monotonic() - decoded

    def _decoded(self, *, on_gpu: bool = True) -> tuple[Decoded, Geometry]:
        if not isinstance(self._picture, bytes):
            return self._picture, Geometry(*self._picture.shape[:2])
        if on_gpu and self._model.jpegs:
            pixels = decode_on_gpu(self._picture, self._model.jpegs, max_pixels=self._max_pixels)
            return pixels, Geometry(*pixels.shape[:2])
        fast = self._model.bundle.decode == "fast"
        reduction = {"reduction": self._family.recipe.reduction} if fast else {}
        return decode_reduced(self._picture, max_pixels=self._max_pixels, **reduction)


class _Waiter:
    """`settled` is done once all of some jobs are, or the first of them has failed. (`asyncio.wrap_future` does more, at
    several times the cost.)"""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[None] = self._loop.create_future()
        self._left = len(jobs)
        self._lock = Lock()
        for job in jobs:
            job.future.add_done_callback(self._settle)

    def _settle(self, future: Future[Any]) -> None:
        with self._lock:
            self._left -= 1
            if self._left and not future.cancelled() and future.exception() is None:
                return
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)


def _drawn(model: Model, picture: bytes, result: Result, kind: PictureType, max_pixels: int) -> bytes:
    started = time.monotonic()
    drawn = encode(draw(decode(picture, max_pixels=max_pixels), result), kind)
    model.pool.statistics.encoded(time.monotonic() - started)
    return drawn


def _timeout(model: Model, ask: Ask) -> float:
    """Seconds."""
    return ask.timeout or model.bundle.batching.timeout_ms / 1000


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


def _stages(jobs: Sequence[Job]) -> Stages:
    """Where the time of a request went; of several jobs the slowest in each stage."""
    return _slowest([Stages(job.queue_s, job.decode_s + job.prepare_s, job.infer_s, job.finish_s) for job in jobs])


def _slowest(stages: Sequence[Stages]) -> Stages:
    return stages[0] if len(stages) == 1 else Stages(*map(max, zip(*stages, strict=True)))


def check_options(model: Model, options: Options) -> None:
    """An option that means nothing to this kind of model is an error: silence would look like an effect."""
    taking = model.taking_pictures
    if options is NO_OPTIONS or taking is None:
        return
    for name in options.given():
        if name not in taking.accepts:
            takes = sorted(taking.accepts.intersection(Options.names()))
            raise InvalidOption(
                f"{name} means nothing to {model.name}, a {model.family_name} model",
                hint=f"it takes {', '.join(takes) or 'no options'}",
            )
    class_ids(options.classes, taking.labels, taking.class_count)
