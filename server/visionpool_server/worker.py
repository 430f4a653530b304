"""A worker: one thread that pulls batches from its pool's queue and runs them on a context of its own.

Where the context is deep it takes the next batch while one is under way:

    take -> begin -> take, if there is one -> begin -> finish the oldest -> take ...

Nothing is held back for that: where no further job waits, the outputs of what is under way are asked for at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Thread

from visionpool_server.assembly import Assembly
from visionpool_server.backends import Engine
from visionpool_server.batching import Job, Line
from visionpool_server.cpu import pin
from visionpool_server.execution import Execution
from visionpool_server.statistics import Statistics

log = logging.getLogger(__name__)


class Worker:
    """`on_exit(worker)` is called on its thread when it ends, with `jobs` it could not answer still set."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        line: Line,
        assembly: Assembly,
        on_exit: Callable[[Worker], None],
        *,
        statistics: Statistics,
        max_delay: float = 0.0,
        cores: frozenset[int] | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.busy_since: float | None = None  # time.monotonic(), of the oldest batch in hand
        self.jobs: list[Job] = []  # in hand: of all batches under way
        self.abandoned = False  # replaced: it ends as soon as it comes back
        self.line = line
        self._assembly = assembly
        self._statistics = statistics
        self._on_exit = on_exit
        self._max_delay = max_delay
        self._cores = cores
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def rows_in_hand(self) -> int:
        """Of all batches under way; a job counts for no more than a batch."""
        most = self.engine.max_batch_size
        return sum(min(job.rows, most) for job in self.jobs)

    def join(self, timeout: float) -> bool:
        """Waits for the thread to end; False where it did not."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            if self._cores:
                pin(self._cores)
            execution = Execution(self.engine, self._assembly, self._statistics)
            try:
                if execution.depth > 1:
                    self._work_ahead(execution)
                else:
                    self._work(execution)
            finally:
                execution.close()
        except BaseException:
            log.exception("worker %s died", self.name)
        finally:
            self.line.leave()
            self._on_exit(self)

    def _work(self, execution: Execution) -> None:
        while not self.abandoned:
            self.jobs = self.line.take(self.engine.max_batch_size, self._max_delay)
            if not self.jobs:
                return
            self.busy_since = time.monotonic()
            execution.run(self.jobs)
            self.busy_since, self.jobs = None, []

    def _work_ahead(self, execution: Execution) -> None:
        under_way = execution.under_way
        while not self.abandoned:
            jobs = self.line.take(self.engine.max_batch_size, self._max_delay, len(under_way))
            if jobs:
                self.jobs = [*self.jobs, *jobs]
                self.busy_since = self.busy_since or time.monotonic()
                execution.begin(jobs)
            elif not under_way:
                return
            # A job whose worker was lost is finished before another begins, which it might take with it.
            if under_way and (not jobs or len(under_way) >= execution.depth or jobs[0].attempts > 1):
                execution.finish()
                self.busy_since = time.monotonic()  # the next was behind this one until now
            self.jobs = [job for running in under_way for job in running.jobs]
            if not under_way:
                self.busy_since = None
