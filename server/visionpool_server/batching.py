"""The queue between the stages and the workers: bounded, first come first served, batches formed by whoever pulls.

A job is one picture, or some rows of tensors that a caller sent. Each carries its own future: one caller's exit, error or
deadline never touches the others of its batch.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Protocol

from numpy.typing import NDArray
from visionpool.errors import DeadlineExceeded, InternalError, QueueFull, Unavailable, VisionpoolError

log = logging.getLogger(__name__)

Tensors = Mapping[str, NDArray[Any]]

PRIORITY_LEVELS, DEFAULT_PRIORITY = 9, 5  # 1 is served first (Triton's schedule policy)


@dataclass(slots=True, eq=False)
class Job:
    """One picture or a few rows on their way: tensors in, `finish(outputs)` out, called on the worker's thread.

    The pool's `Assembly` says whether the tensors have a batch dimension. With `prepare`, they are still to be made: `ready()`
    calls it once, on whichever thread comes first.
    """

    tensors: Tensors
    finish: Callable[[Tensors], Any]
    deadline: float = float("inf")  # on time.monotonic()'s clock
    future: Future[Any] = field(default_factory=Future)
    prepare: Callable[[Job], None] | None = None  # sets `tensors` and `finish`; what it raises is the answer
    rows: int = 1  # of a batch
    shape_key: object = None  # what jobs must have in common to share a batch; None: the shapes of their tensors
    priority: int = DEFAULT_PRIORITY
    queued_at: float = 0.0
    decode_s: float = 0.0
    prepare_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    finish_s: float = 0.0
    batch_size: int = 0
    attempts: int = 0
    gone: bool = False  # nobody waits for the answer any more

    @property
    def batch_key(self) -> object:
        """Jobs of equal keys can share a batch. One whose worker was lost runs alone: it may be to blame."""
        if self.attempts:
            return self
        return self.shape_key or tuple(tensor.shape for tensor in self.tensors.values())

    def claim(self) -> bool:
        """Takes the job out of its caller's hands; False where it was cancelled, or its deadline has passed."""
        if self.gone or self.future.done() or (self.attempts == 0 and not self.future.set_running_or_notify_cancel()):
            return False
        if time.monotonic() >= self.deadline:
            self.fail(DeadlineExceeded("the deadline passed while the picture waited in the queue"))
            return False
        self.attempts += 1
        return True

    def ready(self) -> bool:
        """Makes the tensors where that is still to be done; False where it failed, and the caller has been told, or
        where the caller left meanwhile."""
        if self.prepare is None or self.gone:
            return not self.gone
        try:
            self.prepare(self)
        except VisionpoolError as error:
            self.fail(error)
            return False
        except Exception as error:
            log.error("preparing a picture failed", exc_info=error)
            self.fail(InternalError("the picture could not be prepared", hint="the server's log has the reason"))
            return False
        self.prepare = None
        return not self.gone

    def give_up(self) -> None:
        """The caller leaves: what is not yet done for it is not done any more."""
        self.gone = True
        self.future.cancel()

    def resolve(self, value: Any) -> None:
        if not self.future.done():
            self._settle(self.future.set_result, value)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self._settle(self.future.set_exception, error)

    def _settle(self, setter: Callable[[Any], None], value: Any) -> None:
        try:
            setter(value)
        except InvalidStateError:
            """A replaced worker came back and was first: its answer is as good."""


class Line(Protocol):
    """Where one worker takes its batches."""

    def take(self, max_batch: int, max_delay: float = 0.0, under_way: int = 0) -> list[Job]:
        """As `JobQueue.take`. Whatever it took before, and does not count as `under_way`, is done."""

    def leave(self) -> None:
        """The worker takes nothing more, nor does it finish what it has."""


class JobQueue:
    """Waiting jobs, at most `limit`. `put` never blocks, `take` waits."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs: deque[Job] = deque()
        self._changed = Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def rows(self, most: int) -> int:
        """How many rows wait that somebody wants still; a job counts for at most so many."""
        with self._changed:
            return sum(min(job.rows, most) for job in self._jobs if not job.future.done())

    def put(self, job: Job) -> None:
        """Raises QueueFull, or Unavailable once closed."""
        job.queued_at = time.monotonic()
        with self._changed:
            if self._closed:
                raise Unavailable("the model is being unloaded")
            if len(self._jobs) >= self.limit:
                self._drop_done()
            if len(self._jobs) >= self.limit:
                raise QueueFull(f"{self.limit} pictures are waiting already")
            self._insert(job)
            self._changed.notify()

    def _insert(self, job: Job) -> None:
        """Behind all of its priority and of higher ones."""
        at = len(self._jobs)
        while at and self._jobs[at - 1].priority > job.priority:
            at -= 1
        self._jobs.insert(at, job)

    def _drop_done(self) -> None:
        """What was cancelled while all workers are busy must not take up room."""
        left = [job for job in self._jobs if not job.future.done()]
        self._jobs.clear()
        self._jobs.extend(left)

    def put_back(self, jobs: list[Job]) -> None:
        """Jobs of a worker that was lost: to the front, whatever the limit."""
        with self._changed:
            self._jobs.extendleft(reversed(jobs))
            self._changed.notify_all()

    def line(self, team: int) -> Line:  # noqa: ARG002  a FedQueue tells them apart
        """For a further worker of this group: they all take from the front."""
        return self

    def leave(self) -> None:
        """Nobody here knows who takes."""

    def take(self, max_batch: int, max_delay: float = 0.0, under_way: int = 0) -> list[Job]:
        """The next batch: jobs of one shape, at most `max_batch` rows, in order, none cancelled or late. Empty once closed.

        With `max_delay` seconds it waits so long for a batch to fill; without, it takes what is there. Who has batches
        `under_way` is not kept waiting: it gets what can go beside them now, or nothing.
        """
        while True:
            with self._changed:
                if under_way and not self._goes_beside(max_batch, max_delay):
                    return []
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return []
                if max_delay and max_batch > 1:
                    self._wait_for(max_batch, max_delay)
                candidates = self._pull(max_batch)
            if batch := [job for job in candidates if job.claim()]:
                return batch

    def _goes_beside(self, count: int, delay: float) -> bool:
        """Whether there is a batch for a worker that has one. A job whose worker was lost may be to blame: were it beside
        another batch, that one's jobs would pay for it."""
        return bool(self._jobs) and not self._jobs[0].attempts and self._is_due(count, delay)

    def _is_due(self, count: int, delay: float) -> bool:
        """Whether `_wait_for` would return at once."""
        due = not delay or count == 1 or self._closed or len(self._jobs) >= count
        return due or time.monotonic() >= self._jobs[0].queued_at + delay

    def _wait_for(self, count: int, delay: float) -> None:
        """Returns once `count` jobs are there, or the first has waited for `delay` seconds."""
        until = self._jobs[0].queued_at + delay
        while self._jobs and len(self._jobs) < count and not self._closed:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _pull(self, limit: int) -> list[Job]:
        """The first job and later ones of its shape, up to `limit` rows in all; the others keep their order."""
        if not self._jobs:
            return []
        pulled = [self._jobs.popleft()]
        rows = pulled[0].rows
        if rows >= limit or not self._jobs:
            return pulled
        key = pulled[0].batch_key
        passed: list[Job] = []
        while self._jobs and rows < limit:
            job = self._jobs.popleft()
            if job.batch_key == key and rows + job.rows <= limit:
                pulled.append(job)
                rows += job.rows
            else:
                passed.append(job)
        self._jobs.extendleft(reversed(passed))
        return pulled

    def close(self) -> None:
        """No more jobs are let in; the workers get what is left, then an empty batch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[Job]:
        """Takes out all that is left."""
        with self._changed:
            left = list(self._jobs)
            self._jobs.clear()
            return left
