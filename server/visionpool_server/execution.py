"""One batch through one context, and each job's answer from its outputs.

    (decode, prepare) -> join (pad to a compiled size) -> infer -> part -> finish -> each job's own future

Finishing here, before the next inference overwrites the outputs, spares a copy of them and a hop between threads. Where
every core has a worker of its own, it decodes and prepares here as well (`Pool.prepares`), for the same reason.

Where a context is deep, the batch after begins before the outputs of the one before are asked for, so that copies to a device
and back, finishing and inference overlap: `begin` and `finish` are `run` in two halves.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from visionpool_server.backends import DeepContext, Engine, Pending
from visionpool_server.batching import Job, Tensors
from visionpool_server.statistics import Stages, Statistics

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_NOT_THE_INPUT = (Unavailable, DeadlineExceeded, QueueFull)  # of a runtime elsewhere: trying job by job would not help


@dataclass(frozen=True, slots=True)
class Running:
    """A batch under way: `rows` of `size`, the rest is padding. Times are of time.monotonic()."""

    jobs: list[Job]
    rows: int
    size: int
    pulled: float
    started: float
    pending: Pending


class Execution:
    """A context of its own on `engine`. Not thread-safe. `depth`: how many batches may be under way at once."""

    def __init__(self, engine: Engine, assembly: Assembly, statistics: Statistics) -> None:
        self._context = context = engine.clone()
        self._deep = context if isinstance(context, DeepContext) else None
        self.depth = self._deep.depth if self._deep else 1
        self.under_way: deque[Running] = deque()  # oldest first
        self._inferred = 0.0  # when the last of them was there
        self._sizes = engine.batch_sizes
        self._assembly = assembly
        self._statistics = statistics

    def close(self) -> None:
        """On the thread that used it. What is under way is not answered."""
        self.under_way.clear()
        if self._deep:
            self._deep.close()

    def run(self, jobs: list[Job]) -> None:
        """Answers all `jobs`, each with its result or its error. Nothing may be under way."""
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
        for job in jobs:
            job.queue_s, job.infer_s, job.batch_size = pulled - job.queued_at, inferred - started, rows
        self._statistics.executed(rows, started - pulled, inferred - started, jobs)
        for job, part in zip(jobs, parts, strict=True):
            _answer(job, part)
        self._statistics.finished(rows, time.monotonic() - inferred, jobs)

    def begin(self, jobs: list[Job]) -> None:
        """Of a deep context: a further batch is under way, unless none of its jobs is left. Raises nothing: what fails
        here is told when its turn to finish comes."""
        pulled = time.monotonic()
        jobs = [job for job in jobs if job.ready()]
        if not jobs:
            return
        assert self._deep is not None
        rows = sum(job.rows for job in jobs)
        size = self._padded_size(rows)
        started = pulled
        pending: Pending
        try:
            batch = self._assembly.join(jobs, size)
            started = time.monotonic()
            pending = self._deep.begin(batch)
        except Exception as error:
            pending = _Failed(error)
        self.under_way.append(Running(jobs, rows, size, pulled, started, pending))

    def finish(self) -> None:
        """Waits for the oldest batch under way, and answers its jobs."""
        running = self.under_way.popleft()
        jobs, rows = running.jobs, running.rows
        try:
            parts = self._assembly.part(running.pending.outputs(), jobs, running.size)
        except Exception as error:
            while self.under_way:  # outputs come in order: what is tried again comes after all
                self.finish()
            self._recover(jobs, error)
            return
        inferred = time.monotonic()
        busy = inferred - max(running.started, self._inferred)  # before, the device had the batch before
        self._inferred = inferred
        for job in jobs:
            job.queue_s, job.infer_s, job.batch_size = running.pulled - job.queued_at, inferred - running.started, rows
        self._statistics.executed(rows, running.started - running.pulled, busy, jobs)
        for job, part in zip(jobs, parts, strict=True):
            _answer(job, part)
        self._statistics.finished(rows, time.monotonic() - inferred, jobs)

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


class _Failed:
    """In the place of a batch that could not begin."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def outputs(self) -> Tensors:
        raise self._error


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
