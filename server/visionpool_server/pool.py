"""The workers of one model: started, watched, replaced. They pull from one queue, whatever device each runs on; where their
devices differ, `feeding.py` says who takes what.

A worker that dies, or does not come back from a batch in time, is replaced by a fresh clone; its pictures go back to the
front of the queue once, and fail the second time, so that a picture that kills workers cannot kill them for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, RLock, Thread
from typing import NamedTuple

from visionpool.errors import InferenceFailed, QueueFull, TooLarge, Unavailable, VisionpoolError

from visionpool_server.assembly import Assembly, Piece
from visionpool_server.backends import Engine
from visionpool_server.batching import Job, JobQueue, Tensors
from visionpool_server.cpu import cpu_count, usable_cores
from visionpool_server.execution import Answer, Execution
from visionpool_server.fed_queue import FedQueue
from visionpool_server.statistics import Stages, Statistics
from visionpool_server.worker import Worker

log = logging.getLogger(__name__)

_ATTEMPTS = 2
_RESTART_DELAY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Group:
    """So many workers on one engine. `cores`: those of the CPU that their threads stay on; None: any."""

    engine: Engine
    count: int
    cores: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class PoolOptions:
    max_queue_size: int = 128
    max_queue_delay: float = 0.0  # seconds
    hang_timeout: float = 60.0  # seconds


class Occupancy(NamedTuple):
    """How full a pool is just now, in pictures or rows. `executing` counts those that workers have in hand, the batches that
    they hold ready beside the one that runs included; `waiting` those that are being decoded or prepared, or wait for that,
    or for a worker; `admitted` the pictures and pieces that have a place: until all of their `requests` are answered."""

    capacity: int
    executing: int
    waiting: int
    admitted: int
    requests: int


class Pool:
    """`start()` it before `submit()`, `close()` it after."""

    def __init__(
        self,
        name: str,
        groups: Sequence[Group],
        assembly: Assembly,
        options: PoolOptions = PoolOptions(),
        statistics: Statistics | None = None,
    ) -> None:
        self.name = name
        self.groups = tuple(groups)
        self.placements = tuple(group.engine.describe() for group in groups)
        self.options = options
        self.statistics = statistics or Statistics()
        self.restarts = 0
        self._assembly = assembly
        # Where each core has a worker that takes picture by picture, the workers decode and prepare as well: stage
        # threads would only compete with them for the cores. In all other cases pictures are prepared ahead.
        alone = all(group.engine.max_batch_size == 1 and group.engine.on_cpu for group in groups)
        self.prepares = alone and self.slots >= cpu_count() and _everywhere(groups)
        self._places = options.max_queue_size + self.capacity
        self._quick_bytes = min((group.engine.quick_bytes for group in groups), default=0)
        self._idle: list[Execution] = []  # of `run_at_once`
        # Who was admitted is not refused by the queue, after its picture was decoded.
        self._queue = self._queue_of(self._places)
        self._workers: list[Worker] = []
        self._exited: list[Worker] = []
        lock = RLock()
        self._changed, self._emptied = Condition(lock), Condition(lock)
        self._closing = False
        self._admitted = 0
        self._preparing = 0
        self._requests = 0
        self._waiting: list[Callable[[], None]] = []  # of `when_free`
        self._rate = _Rate()
        self._supervisor = Thread(target=self._supervise, name=f"{name}-supervisor", daemon=True)

    @property
    def slots(self) -> int:
        """How many workers there are."""
        return sum(group.count for group in self.groups)

    @property
    def capacity(self) -> int:
        """How many pictures or rows execute at once where all workers run their largest batch."""
        return sum(group.engine.max_batch_size * group.count for group in self.groups)

    def occupancy(self) -> Occupancy:
        largest = max((group.engine.max_batch_size for group in self.groups), default=1)
        executing = sum(worker.rows_in_hand() for worker in list(self._workers))
        waiting = self._preparing + self._queue.rows(largest)
        return Occupancy(self.capacity, executing, waiting, self._admitted, self._requests)

    def start(self) -> None:
        for group in self.groups:
            spare = 1 if self.prepares else 0  # decodes while the others infer: without it cores idle at each handover
            for _ in range(group.count + spare):
                self._start_worker(group)
        self._supervisor.start()

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Takes places for so many pictures, before anything is spent on them, and gives them back at the end.

        A place is a slot of the queue or of a running batch. Raises QueueFull, with a time to come back, and TooLarge for
        more pictures than there are places.
        """
        self.admit(count)
        try:
            yield
        finally:
            self.release(count)

    def release(self, count: int = 1) -> None:
        with self._changed:
            self._admitted -= count
            self._requests -= 1
            self._rate.count(count, busy=self._admitted > 0)
            if not self._admitted:
                self._emptied.notify_all()
        self._wake_waiting()

    def when_free(self, wake: Callable[[], None]) -> bool:
        """Whether there is a place just now. If not, `wake` is called once, on some thread, when one may have become free."""
        with self._changed:
            if self._closing or self._admitted < self._places:
                return True
            self._waiting.append(wake)
            return False

    def _wake_waiting(self) -> None:
        if self._waiting:
            with self._changed:
                waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()

    def check_room(self, count: int) -> None:
        """Raises TooLarge for more pictures, or pieces of a large batch, than there are places, were they all free."""
        if count > self._places:
            raise TooLarge(
                f"{count} pictures or batches in one request, and {self.name} has room for {self._places}",
                hint="send fewer at once, or raise batching.max_queue_size",
            )

    def admit(self, count: int = 1) -> None:
        self.check_room(count)
        with self._changed:
            if self._closing:
                raise Unavailable("the model is being unloaded")
            if self._admitted + count > self._places:
                self.statistics.failed(0.0)
                raise QueueFull(
                    f"{self.name}: {self._admitted} pictures are waiting already",
                    hint="come back after the time in Retry-After, or raise batching.max_queue_size",
                    retry_after=self._rate.seconds_for(self._admitted),
                )
            self._admitted += count
            self._requests += 1

    def expect(self, count: int) -> None:
        """So many more pictures are being made ready elsewhere, for `submit`; fewer, where they have been."""
        with self._changed:
            self._preparing += count

    def submit(self, job: Job) -> None:
        """Queues a job; its future gets what its `finish` returns. Raises QueueFull, Unavailable."""
        self._queue.put(job)

    def run_at_once(self, piece: Piece, finish: Callable[[Tensors], Answer]) -> tuple[Answer, Stages] | None:
        """The answer, computed on the calling thread; None where a worker has to be asked, which costs more than a very
        small model, but less than any other. Raises what a job would fail with."""
        if not self._quick_bytes or self._closing or self._queue:
            return None
        if sum([tensor.nbytes for tensor in piece.tensors.values()]) > self._quick_bytes:
            return None
        started = time.monotonic()
        try:
            execution = self._idle.pop()
        except IndexError:  # as many are made as threads ask at once
            execution = Execution(self.groups[0].engine, self._assembly, self.statistics)
        try:
            return execution.run_alone(piece, finish)
        except VisionpoolError:
            self.statistics.failed(time.monotonic() - started)
            raise
        finally:
            self._idle.append(execution)

    def drain(self, timeout: float) -> bool:
        """Waits until nobody has a place any more; False where that takes more than `timeout` seconds."""
        with self._emptied:
            return self._emptied.wait_for(lambda: not self._admitted, timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Lets the workers finish what is queued, for `timeout` seconds; what is left then fails as Unavailable."""
        until = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._wake_waiting()
        self._queue.close()
        if self._supervisor.ident is not None:  # it was started
            self._supervisor.join(timeout)  # first: it may be replacing a worker
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        in_hand = [job for worker in self._workers for job in worker.jobs]  # of those that hang, or died meanwhile
        for job in [*in_hand, *self._queue.drain()]:
            job.fail(Unavailable("the model was unloaded"))
        for execution in self._idle:
            execution.close()
        self._idle.clear()
        self._workers, self._exited = [], []  # they know the pool: what is frozen in a circle is never collected
        for group in self.groups:
            group.engine.close()

    def _queue_of(self, limit: int) -> JobQueue:
        """Of one group of workers all are alike, and nothing has to be weighed."""
        if len(self.groups) < 2:
            return JobQueue(limit)
        return FedQueue(limit, [group.engine.max_batch_size for group in self.groups])

    def _start_worker(self, group: Group) -> None:
        worker = Worker(
            f"{self.name}-{len(self._workers)}-{self.restarts}",
            group.engine,
            self._queue.line(self.groups.index(group)),
            self._assembly,
            self._exit,
            statistics=self.statistics,
            max_delay=self.options.max_queue_delay,
            cores=group.cores,
        )
        self._workers.append(worker)
        worker.start()

    def _exit(self, worker: Worker) -> None:
        """Called on a worker's thread as it ends."""
        with self._changed:
            self._exited.append(worker)
            self._changed.notify_all()

    def _supervise(self) -> None:
        while True:
            with self._changed:
                if not self._exited and not self._closing:
                    self._changed.wait(self.options.hang_timeout / 4)
                exited, self._exited = self._exited, []
            if self._closing:
                return
            for worker in exited:
                if not worker.jobs and not worker.abandoned:
                    time.sleep(_RESTART_DELAY)  # it could not even start: do not spin
                self._replace(worker, "died")
            for worker in list(self._workers):
                since = worker.busy_since  # read once: the worker sets it to None when it is done
                if since and time.monotonic() - since > self.options.hang_timeout:
                    self._replace(worker, f"did not answer for {self.options.hang_timeout:g} s")

    def _replace(self, worker: Worker, why: str) -> None:
        if worker.abandoned or worker not in self._workers:
            return
        worker.abandoned = True
        self._workers.remove(worker)
        self.restarts += 1
        jobs = list(worker.jobs)
        log.error("worker %s %s with %d pictures in hand: replaced", worker.name, why, len(jobs))
        again = [job for job in jobs if job.attempts < _ATTEMPTS]
        for job in jobs:
            if job.attempts >= _ATTEMPTS:
                job.fail(InferenceFailed(f"a worker {why} on this picture, twice"))
        worker.line.leave()
        self._queue.put_back(again)
        self._start_worker(next(group for group in self.groups if group.engine is worker.engine))


def _everywhere(groups: Sequence[Group]) -> bool:
    """Whether there is no core that is kept free of workers: stage threads would use it."""
    kept = [group.cores for group in groups if group.cores is not None]
    return len(kept) < len(groups) or usable_cores() <= frozenset().union(*kept)


class _Rate:
    """How many pictures leave in a second, smoothed over about the last 32."""

    def __init__(self) -> None:
        self._interval = 0.05
        self._last = 0.0

    def count(self, pictures: int, *, busy: bool) -> None:
        """So many left; `busy`: others are still there, so that the time until the next one counts."""
        now = time.monotonic()
        if self._last:
            self._interval += ((now - self._last) / pictures - self._interval) / 32
        self._last = now if busy else 0.0

    def seconds_for(self, pictures: int) -> float:
        """How long so many pictures take, at least 0.05 s and at most a minute."""
        return min(60.0, max(0.05, self._interval * pictures))
