"""The flow of an OCR pipeline: one picture through three models, each with its own pool.

bytes -> decode -> detect -> each line: crop -> classify -> turn -> read -> lines in the order of reading
         stage     its pool             stage   its pool           its pool

Lines are jobs like all others: they share batches with lines of other pictures, and with whoever asks the step alone. What
a line is read as comes back to the very call that cut it out, so that no picture gets another's text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from visionpool.errors import DeadlineExceeded
from visionpool.results import ClassifyResult, OCRResult, Result

from visionpool_server.batching import DEFAULT_PRIORITY, Job, Tensors
from visionpool_server.families import NO_OPTIONS, Options
from visionpool_server.imaging.crops import crop, upside_down
from visionpool_server.imaging.recipe import Geometry, Image
from visionpool_server.models.loader import Model
from visionpool_server.models.repository import Repository
from visionpool_server.pool import Pool
from visionpool_server.reading.lines import Line, lines_of, result_of, whole
from visionpool_server.reading.side_by_side import Failed, all_of
from visionpool_server.reading.steps import PICTURES, Steps
from visionpool_server.reading.times import Times
from visionpool_server.statistics import Stages

T = TypeVar("T")

_AFTERWARDS = 1.0  # seconds that a step's own deadline lies behind that of the request, which is the one to be told of


class Flow(Protocol):
    """What is used of the service."""

    models: Repository
    stages: ThreadPoolExecutor

    async def run(self, pool: Pool, jobs: Sequence[Job], limit: float) -> Stages: ...

    def picture_job(
        self, model: Model, picture: bytes | Image, finish: Callable[[Tensors, Geometry], Any], *, priority: int
    ) -> Job: ...

    def decoded(self, picture: bytes) -> Image: ...


class Reading(NamedTuple):
    result: OCRResult
    times: Times


@dataclass(frozen=True, slots=True)
class _Terms:
    """Of one request. `until`: on time.monotonic()'s clock."""

    steps: Steps
    lines_at_once: int
    least_score: float
    direction_threshold: float
    until: float
    priority: int


class Reader:
    """Reads pictures with the models of a pipeline. For one event loop at a time."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(
        self,
        model: Model,
        pictures: Sequence[bytes | Image],
        options: Options,
        limit: float,
        priority: int = DEFAULT_PRIORITY,
    ) -> list[Reading]:
        """All `pictures` within `limit` seconds, or what the first that fails meets: `Failed` says which it was.

        For callers that have places in the pipeline's pool. Raises DeadlineExceeded; Unavailable where a step is missing.
        """
        pipeline = model.pipeline
        assert pipeline is not None
        least = options.over(pipeline.defaults).score_threshold
        assert least is not None
        until = time.monotonic() + limit
        steps = Steps(model, self._flow.models)
        terms = _Terms(steps, steps.lines_at_once(), least, pipeline.direction_threshold, until, priority)

        async def one(numbered: tuple[int, bytes | Image]) -> Reading:
            index, picture = numbered
            try:
                async with self._gate(model.name):
                    return await self._picture(picture, terms)
            except Exception as error:
                raise Failed(index, error) from error

        try:
            async with asyncio.timeout(limit):
                return await all_of(one, list(enumerate(pictures)), len(pictures))
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {limit:g} s", hint="raise timeout_ms, or send less") from error

    def _gate(self, name: str) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # as in tests; a server has one
            self._loop, self._gates = loop, {}
        return self._gates.setdefault(name, asyncio.Semaphore(PICTURES))

    async def _picture(self, picture: bytes | Image, terms: _Terms) -> Reading:
        times = Times()
        started = time.monotonic()
        image = await self._off_loop(self._flow.decoded, picture) if isinstance(picture, bytes) else picture
        times.decode_s = time.monotonic() - started
        found = await self._asked("detect", image, terms, times)
        assert isinstance(found, OCRResult)
        lines = lines_of(found)
        if lines:
            await all_of(partial(self._cut_out, image, terms), lines, terms.lines_at_once)
        else:
            lines = [whole(image)]
            await self._read(image, terms, lines[0])
        times.add_slowest([line.times for line in lines])
        return Reading(result_of(lines, terms.least_score), times)

    async def _cut_out(self, image: Image, terms: _Terms, line: Line) -> None:
        started = time.monotonic()
        cut = await self._off_loop(crop, image, line.quad)
        line.times.prepare_s += time.monotonic() - started
        await self._read(cut, terms, line)

    async def _read(self, cut: Image, terms: _Terms, line: Line) -> None:
        """Fills in what `line` says; `cut`: its pixels."""
        if terms.steps.classifies():
            seen = await self._asked("classify", cut, terms, line.times)
            assert isinstance(seen, ClassifyResult)
            line.says(seen, terms.direction_threshold)
            cut = upside_down(cut) if line.turned else cut
        told = await self._asked("read", cut, terms, line.times)
        assert isinstance(told, OCRResult)
        line.text, line.score = told.text[0], told.rec_scores[0]

    async def _asked(self, step: str, image: Image, terms: _Terms, times: Times) -> Result:
        """What a step says of some pixels. Where others fill its places it waits: who was admitted once is not refused."""
        model = await _with_place(terms.steps, step)  # nothing comes in between: places are taken on this very thread
        family = model.family
        assert family is not None

        def finish(outputs: Tensors, geometry: Geometry) -> Result:
            return family.finish(outputs, geometry, NO_OPTIONS)

        job = self._flow.picture_job(model, image, finish, priority=terms.priority)
        await self._flow.run(model.pool, [job], max(0.0, terms.until - time.monotonic()) + _AFTERWARDS)
        times.add(job)
        result: Result = job.future.result()
        return result

    async def _off_loop(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._flow.stages, work, *arguments)


async def _with_place(steps: Steps, step: str) -> Model:
    """The model that does a step, when it has a place. Raises Unavailable."""
    loop = asyncio.get_running_loop()
    free = asyncio.Event()
    wake = partial(_from_any_thread, loop, free.set)
    while not (model := steps.now(step)).pool.when_free(wake):
        await free.wait()
        free.clear()
    return model


def _from_any_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(call)
