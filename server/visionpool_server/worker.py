"""A worker: one thread that pulls batches from its pool's queue and runs them on a context of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Thread

from visionpool_server.assembly import Assembly
from visionpool_server.backends import Engine
from visionpool_server.batching import Job, JobQueue
from visionpool_server.execution import Execution
from visionpool_server.statistics import Statistics

log = logging.getLogger(__name__)


class Worker:
    """`on_exit(worker)` is called on its thread when it ends, with `jobs` it could not answer still set."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        queue: JobQueue,
        assembly: Assembly,
        on_exit: Callable[[Worker], None],
        *,
        statistics: Statistics,
        max_delay: float = 0.0,
    ) -> None:
        self.name = name
        self.engine = engine
        self.busy_since: float | None = None  # time.monotonic() of the batch in hand
        self.jobs: list[Job] = []  # the batch in hand
        self.abandoned = False  # replaced: it ends as soon as it comes back
        self._queue = queue
        self._assembly = assembly
        self._statistics = statistics
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
            execution = Execution(self.engine, self._assembly, self._statistics)
            while not self.abandoned:
                self.jobs = self._queue.take(self.engine.max_batch_size, self._max_delay)
                if not self.jobs:
                    return
                self.busy_since = time.monotonic()
                execution.run(self.jobs)
                self.busy_since, self.jobs = None, []
        except BaseException:
            log.exception("worker %s died", self.name)
        finally:
            self._on_exit(self)
