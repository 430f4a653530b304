"""One batch through one context, and each job's answer from its outputs.

    (decode, prepare) -> join (pad to a compiled size) -> infer -> part -> finish -> each job's own future

Finishing here, before the next inference overwrites the outputs, spares a copy of them and a hop between threads. Where
every core has a worker of its own, it decodes and prepares here as well (`Pool.prepares`), for the same reason.
"""

from __future__ import annotations

import logging
import time

from visionpool.errors import DeadlineExceeded, InferenceFailed, InternalError, QueueFull, Unavailable, VisionpoolError

from visionpool_server.assembly import Assembly
from visionpool_server.backends import Engine
from visionpool_server.batching import Job, Tensors
from visionpool_server.statistics import Statistics

log = logging.getLogger(__name__)

_NOT_THE_INPUT = (Unavailable, DeadlineExceeded, QueueFull)  # of a runtime elsewhere: trying job by job would not help


class Execution:
    """A context of its own on `engine`. Not thread-safe."""

    def __init__(self, engine: Engine, assembly: Assembly, statistics: Statistics) -> None:
        self._context = engine.clone()
        self._sizes = engine.batch_sizes
        self._assembly = assembly
        self._statistics = statistics

    def run(self, jobs: list[Job]) -> None:
        """Answers all `jobs`, each with its result or its error."""
        pulled = time.monotonic()
        jobs = [job for job in jobs if job.ready()]
        if not jobs:
            return
        rows = sum(job.rows for job in jobs)
        try:
            batch = self._assembly.join(jobs, self._padded_size(rows))
            started = time.monotonic()
            outputs = self._context.infer(batch)
            inferred = time.monotonic()
            parts = self._assembly.part(outputs, jobs)
        except Exception as error:
            self._recover(jobs, error)
            return
        self._statistics.executed(rows, started - pulled, inferred - started)
        for job, part in zip(jobs, parts, strict=True):
            job.queue_s, job.infer_s, job.batch_size = pulled - job.queued_at, inferred - started, rows
            _finish(job, part)
        self._statistics.finished(rows, time.monotonic() - inferred)

    def _recover(self, jobs: list[Job], error: Exception) -> None:
        """A batch failed: each of its jobs is tried alone, so that only the one to blame fails."""
        if len(jobs) > 1 and not isinstance(error, _NOT_THE_INPUT):
            log.warning("a batch of %d failed, trying its parts one by one: %s", len(jobs), error)
            for job in jobs:
                self.run([job])
            return
        log.error("inference failed", exc_info=error)
        told = (
            error
            if isinstance(error, VisionpoolError)
            else InferenceFailed("the runtime failed on this input", hint="the server's log has the reason")
        )
        for job in jobs:
            job.fail(told)

    def _padded_size(self, count: int) -> int:
        return next((size for size in self._sizes if size >= count), count)


def _finish(job: Job, outputs: Tensors) -> None:
    started = time.monotonic()
    try:
        result = job.finish(outputs)
    except VisionpoolError as error:
        job.fail(error)
    except Exception as error:
        log.error("finishing failed", exc_info=error)
        job.fail(InternalError("the model's output could not be read", hint="the server's log has the reason"))
    else:
        job.finish_s = time.monotonic() - started
        job.resolve(result)
