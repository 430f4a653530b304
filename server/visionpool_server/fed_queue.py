"""The queue of a pool whose groups of workers are not equally fast: what each takes is decided by `feeding.py`.

Nobody polls. Who puts a job in wakes a worker of each group that would take something. Of a slower group whose workers leave
what waits to the others, one sleeps no longer than until that would have stood for too long.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from enum import Enum
from threading import Condition, RLock

from visionpool_server.batching import Job, JobQueue
from visionpool_server.feeding import Feeding, Seat, Share, Team


class FedQueue(JobQueue):
    """`max_batches`: of each group of workers."""

    def __init__(self, limit: int, max_batches: Sequence[int]) -> None:
        super().__init__(limit)
        lock = RLock()
        self._changed = Condition(lock)
        self._feeding = Feeding(max_batches)
        self._rows = 0  # of all that waits
        self._sleepers = {team: _Sleepers(lock) for team in self._feeding.teams}

    def line(self, team: int) -> SeatedLine:
        """For a further worker of this group, until it leaves."""
        return SeatedLine(self, Seat(self._feeding.teams[team]))

    def put(self, job: Job) -> None:
        """Raises QueueFull, or Unavailable once closed."""
        with self._changed:
            super().put(job)
            self._wake()

    def put_back(self, jobs: list[Job]) -> None:
        """Jobs of a worker that was lost: to the front, whatever the limit."""
        with self._changed:
            super().put_back(jobs)
            self._rows += _rows(jobs)
            self._wake()

    def close(self) -> None:
        """No more jobs are let in; whoever is free gets what is left, then an empty batch."""
        with self._changed:
            super().close()
            for sleepers in self._sleepers.values():
                sleepers.woken.notify_all()

    def join(self, seat: Seat) -> None:
        with self._changed:
            self._feeding.sit(seat)

    def part(self, seat: Seat) -> None:
        with self._changed:
            self._feeding.leave(seat)
            self._wake()

    def take_for(self, seat: Seat, max_delay: float, under_way: int) -> list[Job]:
        """As `JobQueue.take`, for the worker on `seat`."""
        while True:
            with self._changed:
                self._feeding.returned(seat, under_way, time.monotonic())
                share = self._wait_for_share(seat.team, max_delay, under_way)
                if share is None:
                    return []
                candidates = self._pull_from(share)
            if batch := [job for job in candidates if job.claim()]:
                with self._changed:
                    self._feeding.took(seat, _rows(batch), time.monotonic())
                    self._wake()  # this one is busy now: the others may have to help with the rest
                return batch

    def _wait_for_share(self, team: Team, delay: float, under_way: int) -> Share | None:
        """None once closed and empty; where batches are under way, also where nothing can go beside them now."""
        while True:
            if under_way and not self._goes_beside(team.max_batch, delay):
                return None
            share = self._share(team)
            if share and self._is_due(team.max_batch, delay):
                return share
            if under_way or (self._closed and not self._jobs):
                return None
            if share:
                self._wait_for(team.max_batch, delay)
            else:
                self._sleep(team)

    def _share(self, team: Team) -> Share | None:
        if not self._jobs or self._closed:
            return Share(0, team.max_batch) if self._jobs else None
        now = time.monotonic()
        return self._feeding.share(team, self._rows, now - self._jobs[0].queued_at, now)

    def _pull_from(self, share: Share) -> list[Job]:
        """As `_pull`, past the rows that are left to others."""
        left: list[Job] = []
        skip = share.skip
        while skip > 0 and len(self._jobs) > 1:
            left.append(self._jobs.popleft())
            skip -= left[-1].rows
        pulled = self._pull(share.rows)
        self._jobs.extendleft(reversed(left))
        self._rows -= _rows(pulled)
        return pulled

    def _insert(self, job: Job) -> None:
        super()._insert(job)
        self._rows += job.rows

    def _drop_done(self) -> None:
        super()._drop_done()
        self._rows = _rows(self._jobs)

    def _sleep(self, team: Team) -> None:
        """Until woken; of those that leave what waits to others, one also until that would have stood for too long."""
        sleepers, timeout = self._sleepers[team], None
        if sleepers.watch is _Watch.WANTED or (self._jobs and sleepers.watch is _Watch.NONE):
            stood = time.monotonic() - self._jobs[0].queued_at if self._jobs else 0.0
            timeout = self._feeding.seconds(team, 1) - stood
            sleepers.watch = _Watch.KEPT
        sleepers.count += 1
        try:
            sleepers.woken.wait(timeout)
        finally:
            sleepers.count -= 1
            if timeout is not None:
                sleepers.watch = _Watch.NONE

    def _wake(self) -> None:
        """One worker of each group that would take something now, or that has to watch for how long what waits stands."""
        if not self._jobs:
            return
        for team, sleepers in self._sleepers.items():
            if not sleepers.count:
                continue
            if self._share(team):
                sleepers.woken.notify()
            elif sleepers.watch is _Watch.NONE:
                sleepers.watch = _Watch.WANTED
                sleepers.woken.notify()


class _Watch(Enum):
    """Whether a worker of a group that leaves what waits to the others looks at the clock. Who is wanted for that looks
    at it even where the queue is empty when it wakes: else every job would wake one."""

    NONE, WANTED, KEPT = range(3)


class _Sleepers:
    """The waiting workers of a group."""

    def __init__(self, lock: RLock) -> None:
        self.woken = Condition(lock)
        self.count = 0
        self.watch = _Watch.NONE


def _rows(jobs: Iterable[Job]) -> int:
    return sum([job.rows for job in jobs])


class SeatedLine:
    """One worker's way to the queue."""

    def __init__(self, queue: FedQueue, seat: Seat) -> None:
        self._queue = queue
        self._seat = seat
        self._seated = False

    def take(self, max_batch: int, max_delay: float = 0.0, under_way: int = 0) -> list[Job]:  # noqa: ARG002  its group's
        if not self._seated:
            self._seated = True  # only now: a worker that cannot start would be waited for
            self._queue.join(self._seat)
        return self._queue.take_for(self._seat, max_delay, under_way)

    def leave(self) -> None:
        self._queue.part(self._seat)
