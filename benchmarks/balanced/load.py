"""Callers who ask without pause, and what became of each request."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from benchmarks.balanced.callers import Caller, Sample, Targets, callers, kind_of


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: by which way, when it was sent and done (monotonic seconds), who answered, or why nobody did."""

    way: str
    sent: float
    done: float
    replica: str | None
    error: str | None = None


@dataclass(slots=True)
class Load:
    """`with Load(targets, 4):` four requests at a time by each way, on a thread with an event loop of its own.

    Leaving it waits for the requests that are under way. `outcomes` grows meanwhile.
    """

    targets: Targets
    each: int
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)
    _failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._ask())
        except BaseException as failure:
            self._failure = failure

    async def _ask(self) -> None:
        ways = callers(self.targets)
        try:
            async with asyncio.TaskGroup() as group:
                for way, caller in ways.items():
                    for number in range(self.each):
                        group.create_task(self._repeat(way, caller, random.Random(number)))
        finally:
            for caller in ways.values():
                await caller.close()

    async def _repeat(self, way: str, caller: Caller, random: random.Random) -> None:
        while not self._stop.is_set():
            sample = Sample.of(*(random.randint(1, 255) for _ in range(3)))
            sent = time.monotonic()
            try:
                replica = await caller.ask(sample)
            except Exception as error:
                self.outcomes.append(Outcome(way, sent, time.monotonic(), None, kind_of(error)))
                await asyncio.sleep(0.05)  # who fails at once would crowd out the others
            else:
                self.outcomes.append(Outcome(way, sent, time.monotonic(), replica))

    def answered(self, since: float) -> list[Outcome]:
        """Those that were sent after `since`, and answered."""
        return [outcome for outcome in list(self.outcomes) if outcome.replica and outcome.sent >= since]
