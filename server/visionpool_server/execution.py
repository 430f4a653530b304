"""One batch through one context, and each job's answer from its outputs.

    (decode, prepare) -> join (pad to a compiled size) -> infer -> part -> finish -> each job's own future

Finishing here, before the next inference overwrites the outputs, spares a copy of them and a hop between threads. Where
every core has a worker of its own, it decodes and prepares here as well (`Pool.prepares`), for the same reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from visionpool.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InternalError,
    QueueFull,
    RequestError,
    Unavailable,
    VisionpoolError,
)

from visionpool_server.assembly import Assembly, Piece, Pieces
from visionpool_server.backends import Engine
from visionpool_server.batching import Job, Tensors
from visionpool_server.statistics import Stages, Statistics

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

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
            started, parts = self._infer(jobs, rows)
        except Exception as error:
            self._recover(jobs, error)
            return
        inferred = time.monotonic()
        self._statistics.executed(rows, started - pulled, inferred - started)
        for job, part in zip(jobs, parts, strict=True):
            job.queue_s, job.infer_s, job.batch_size = pulled - job.queued_at, inferred - started, rows
            _answer(job, part)
        self._statistics.finished(rows, time.monotonic() - inferred)

    def run_alone(self, piece: Piece, finish: Callable[[Tensors], Answer]) -> tuple[Answer, Stages]:
        """The answer to one request, and where its time went, without a job. Raises what its job would fail with."""
        pulled = time.monotonic()
        try:
            started, (part,) = self._infer([piece], piece.rows)
        except Exception as error:
            raise _told(error) from error
        inferred = time.monotonic()
        try:
            answer = _finished(finish, part)
        except VisionpoolError:
            self._statistics.executed(piece.rows, started - pulled, inferred - started)
            raise
        ended = time.monotonic()
        stages = Stages(0.0, started - pulled, inferred - started, ended - inferred)
        self._statistics.answered_alone(piece.rows, ended - pulled, stages)
        return answer, stages

    def _infer(self, pieces: Pieces, rows: int) -> tuple[float, Sequence[Tensors]]:
        """When the inference began, and what of its outputs is whose."""
        size = self._padded_size(rows)
        batch = self._assembly.join(pieces, size)
        started = time.monotonic()
        return started, self._assembly.part(self._context.infer(batch), pieces, size)

    def _recover(self, jobs: list[Job], error: Exception) -> None:
        """A batch failed: each of its jobs is tried alone, so that only the one to blame fails."""
        if len(jobs) > 1 and not isinstance(error, _NOT_THE_INPUT):
            log.warning("a batch of %d failed, trying its parts one by one: %s", len(jobs), error)
            for job in jobs:
                self.run([job])
            return
        told = _told(error)
        for job in jobs:
            job.fail(told)

    def _padded_size(self, count: int) -> int:
        return next((size for size in self._sizes if size >= count), count) if self._sizes else count


def _told(error: Exception) -> VisionpoolError:
    """What the caller is told of an inference that failed; the log gets what only the operator can mend."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, VisionpoolError):
        log.error("inference failed: %s", error)
        return error
    log.error("inference failed", exc_info=error)
    return InferenceFailed("the runtime failed on this input", hint="the server's log has the reason")


def _answer(job: Job, outputs: Tensors) -> None:
    started = time.monotonic()
    try:
        result = _finished(job.finish, outputs)
    except VisionpoolError as error:
        job.fail(error)
    else:
        job.finish_s = time.monotonic() - started
        job.resolve(result)


def _finished(finish: Callable[[Tensors], Answer], outputs: Tensors) -> Answer:
    """Raises VisionpoolError."""
    try:
        return finish(outputs)
    except VisionpoolError:
        raise
    except Exception as error:
        log.error("finishing failed", exc_info=error)
        raise InternalError("the model's output could not be read", hint="the server's log has the reason") from error
