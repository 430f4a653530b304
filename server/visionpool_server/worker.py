"""A worker: one thread, one context. It pulls a batch, runs it, and finishes each picture where its outputs lie.

    queue -> (decode, prepare) -> stack (pad to a compiled size) -> infer -> split -> finish -> each job's own future

Finishing here, before the next inference overwrites the outputs, spares a copy of them and a hop between threads. Where
every core has a worker of its own, it decodes and prepares here as well (`Pool.prepares`), for the same reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed, InternalError, VisionpoolError

from visionpool_server.backends import Context, Engine, Tensors
from visionpool_server.batching import Job, JobQueue

log = logging.getLogger(__name__)


class Split(Protocol):
    def __call__(self, outputs: Tensors, count: int) -> Sequence[Tensors]: ...


class Worker:
    """`on_exit(worker)` is called on its thread when it ends, with `jobs` it could not answer still set."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        queue: JobQueue,
        split: Split,
        on_exit: Callable[[Worker], None],
        *,
        max_delay: float = 0.0,
    ) -> None:
        self.name = name
        self.engine = engine
        self.busy_since: float | None = None  # time.monotonic() of the batch in hand
        self.jobs: list[Job] = []  # the batch in hand
        self.abandoned = False  # replaced: it ends as soon as it comes back
        self._queue = queue
        self._split = split
        self._on_exit = on_exit
        self._max_delay = max_delay
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Waits for the thread to end; False where it did not."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            context = self.engine.clone()
            while not self.abandoned:
                self.jobs = self._queue.take(self.engine.max_batch_size, self._max_delay)
                if not self.jobs:
                    return
                self.busy_since = time.monotonic()
                self._process(context, self.jobs)
                self.busy_since, self.jobs = None, []
        except BaseException:
            log.exception("worker %s died", self.name)
        finally:
            self._on_exit(self)

    def _process(self, context: Context, jobs: list[Job]) -> None:
        pulled = time.monotonic()
        jobs = [job for job in jobs if job.ready()]
        if not jobs:
            return
        try:
            started = time.monotonic()
            outputs = context.infer(stack([job.tensors for job in jobs], self._padded_size(len(jobs))))
            infer_s = time.monotonic() - started
            parts = list(zip(jobs, self._split(outputs, len(jobs)), strict=True))
        except Exception as error:
            self._recover(context, jobs, error)
            return
        for job, part in parts:
            job.queue_s, job.infer_s, job.batch_size = pulled - job.queued_at, infer_s, len(jobs)
            _finish(job, part)

    def _recover(self, context: Context, jobs: list[Job], error: Exception) -> None:
        """A batch failed: each of its pictures is tried alone, so that only the one to blame fails."""
        if len(jobs) > 1:
            log.warning("a batch of %d failed, trying its pictures one by one: %s", len(jobs), error)
            for job in jobs:
                self._process(context, [job])
            return
        log.error("inference failed", exc_info=error)
        jobs[0].fail(
            error
            if isinstance(error, VisionpoolError)
            else InferenceFailed("the runtime failed on this picture", hint="the server's log has the reason")
        )

    def _padded_size(self, count: int) -> int:
        return next((size for size in self.engine.batch_sizes if size >= count), count)


def stack(items: Sequence[Tensors], size: int) -> dict[str, NDArray[Any]]:
    """The tensors of some pictures as one batch of `size`; the last picture fills it up. One picture is not copied."""
    if size == 1:
        return {name: np.ascontiguousarray(tensor)[None] for name, tensor in items[0].items()}
    padded = [*items, *[items[-1]] * (size - len(items))]
    return {name: np.stack([item[name] for item in padded]) for name in items[0]}


def _finish(job: Job, outputs: Tensors) -> None:
    started = time.monotonic()
    try:
        result = job.finish(outputs)
    except VisionpoolError as error:
        job.fail(error)
    except Exception as error:
        log.error("finishing a picture failed", exc_info=error)
        job.fail(InternalError("the model's output could not be read", hint="the server's log has the reason"))
    else:
        job.finish_s = time.monotonic() - started
        job.resolve(result)
