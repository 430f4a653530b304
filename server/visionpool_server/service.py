"""The whole flow of a prediction, in one place; transports above it, runtimes below it.

bytes -> decode -> prepare -> [queue -> infer -> finish] -> result
         stage thread         a worker of the model's pool
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from visionpool.errors import DeadlineExceeded, InvalidOption
from visionpool.results import Result

from visionpool_server.batching import Job
from visionpool_server.cpu import cpu_count
from visionpool_server.families import NO_OPTIONS, Options
from visionpool_server.imaging.decode import decode
from visionpool_server.imaging.recipe import Image
from visionpool_server.models.loader import Model
from visionpool_server.models.repository import Repository


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants of one prediction. `timeout`: seconds, None for the model's own."""

    options: Options = NO_OPTIONS
    timeout: float | None = None
    keep_image: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """`timings`: milliseconds per stage. `image`: the decoded picture, where it was asked for."""

    result: Result
    timings: Mapping[str, float] = field(default_factory=dict)
    image: Image | None = None


class Service:
    """`start` is implicit; `close()` ends the stage threads."""

    def __init__(self, models: Repository, *, max_pixels: int = 50_000_000, threads: int | None = None) -> None:
        self.models = models
        self._max_pixels = max_pixels
        self._stages = ThreadPoolExecutor(threads or cpu_count(), "stage")

    async def predict(self, model: Model, picture: bytes, ask: Ask = Ask()) -> Prediction:
        """Raises RequestError for the caller's faults, QueueFull, DeadlineExceeded, InferenceFailed."""
        _check_options(model, ask.options)
        timeout = ask.timeout or model.bundle.batching.timeout_ms / 1000
        deadline = time.monotonic() + timeout
        model.pool.admit()
        try:
            async with asyncio.timeout(timeout):
                enter = partial(self._enter, model, picture, ask, deadline)
                entered = await asyncio.get_running_loop().run_in_executor(self._stages, enter)
                try:
                    result = await asyncio.wrap_future(entered.job.future)
                except asyncio.CancelledError:
                    entered.job.future.cancel()
                    raise
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {timeout:g} s", hint="raise timeout_ms, or send less") from error
        finally:
            model.pool.release()
        return Prediction(result, entered.timings(), entered.image if ask.keep_image else None)

    def _enter(self, model: Model, picture: bytes, ask: Ask, deadline: float) -> _Entered:
        """Runs on a stage thread: decodes, prepares, queues."""
        started = time.monotonic()
        if started >= deadline:
            raise DeadlineExceeded("the deadline passed before the picture was decoded")
        image = decode(picture, max_pixels=self._max_pixels)
        decoded = time.monotonic()
        prepared = model.family.prepare(image)
        finish = partial(model.family.finish, geometry=prepared.geometry, options=ask.options)
        job = Job(prepared.tensors, finish, deadline)
        prepare_s = time.monotonic() - decoded
        model.pool.submit(job)
        return _Entered(job, decoded - started, prepare_s, image if ask.keep_image else None)

    def close(self) -> None:
        self._stages.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Entered:
    """A picture that is queued."""

    job: Job
    decode_s: float
    prepare_s: float
    image: Image | None

    def timings(self) -> dict[str, float]:
        job = self.job
        return {
            "decode": self.decode_s * 1e3,
            "prepare": self.prepare_s * 1e3,
            "queue": job.queue_s * 1e3,
            "infer": job.infer_s * 1e3,
            "finish": job.finish_s * 1e3,
        }


def _check_options(model: Model, options: Options) -> None:
    """An option that means nothing to this kind of model is an error: silence would look like an effect."""
    if options is NO_OPTIONS:
        return
    for name in options.given():
        if name not in model.family.accepts:
            raise InvalidOption(
                f"{name} means nothing to {model.name}, a {model.family_name} model",
                hint=f"it takes {', '.join(sorted(model.family.accepts))}",
            )
