"""A pool of unequal workers in virtual time: pictures come at random, policies say who takes them. No clock is looked at."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from visionpool_server.feeding import Feeding, Seat, Share


@dataclass(frozen=True, slots=True)
class Device:
    """`count` workers that take `fixed` + `each` x rows seconds for a batch. `hangs_at`: from then on they never finish."""

    count: int
    fixed: float
    each: float = 0.0
    max_batch: int = 1
    hangs_at: float = float("inf")

    @property
    def rate(self) -> float:
        """Rows a second at most."""
        return self.count * self.max_batch / (self.fixed + self.each * self.max_batch)


class Policy(Protocol):
    def share(self, worker: Worker, queue: Sequence[float], now: float) -> Share | None:
        """What an idle worker takes."""

    def took(self, worker: Worker, rows: int, now: float) -> None: ...

    def returned(self, worker: Worker, now: float) -> None: ...

    def again_at(self, worker: Worker, queue: Sequence[float]) -> float:
        """When a worker that took nothing asks again, though nothing happened."""


@dataclass(slots=True, eq=False)
class Worker:
    group: int
    device: Device
    idle: bool = True


class Naive:
    """Whoever is idle takes what waits."""

    def share(self, worker: Worker, queue: Sequence[float], now: float) -> Share | None:
        return Share(0, worker.device.max_batch)

    def took(self, worker: Worker, rows: int, now: float) -> None: ...

    def returned(self, worker: Worker, now: float) -> None: ...

    def again_at(self, worker: Worker, queue: Sequence[float]) -> float:
        return float("inf")


class OnlyFirst(Naive):
    """The other groups are not there."""

    def share(self, worker: Worker, queue: Sequence[float], now: float) -> Share | None:
        return super().share(worker, queue, now) if worker.group == 0 else None


class Fed:
    """As the pool does it."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        sizes = {worker.group: worker.device.max_batch for worker in workers}
        self.feeding = Feeding([sizes[group] for group in sorted(sizes)])
        self.seats = {worker: Seat(self.feeding.teams[worker.group]) for worker in workers}
        for seat in self.seats.values():
            self.feeding.sit(seat)

    def share(self, worker: Worker, queue: Sequence[float], now: float) -> Share | None:
        return self.feeding.share(self.seats[worker].team, len(queue), now - queue[0], now)

    def took(self, worker: Worker, rows: int, now: float) -> None:
        self.feeding.took(self.seats[worker], rows, now)

    def returned(self, worker: Worker, now: float) -> None:
        self.feeding.returned(self.seats[worker], 0, now)

    def again_at(self, worker: Worker, queue: Sequence[float]) -> float:
        return queue[0] + self.feeding.seconds(self.seats[worker].team, 1)


@dataclass(slots=True)
class Outcome:
    latencies: list[float] = field(default_factory=list)
    taken: dict[int, int] = field(default_factory=dict)  # rows by group
    ended: float = 0.0
    left: int = 0

    def at(self, share: float) -> float:
        """The latency that this share of the pictures does not exceed."""
        return sorted(self.latencies)[int(share * (len(self.latencies) - 1))]

    @property
    def mean(self) -> float:
        return sum(self.latencies) / len(self.latencies)

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.ended


def workers_of(devices: Sequence[Device]) -> list[Worker]:
    return [Worker(group, device) for group, device in enumerate(devices) for _ in range(device.count)]


class Simulation:
    def __init__(self, workers: Sequence[Worker], policy: Policy, seed: int, jitter: float = 0.2) -> None:
        self._workers, self._policy, self._rng, self._jitter = workers, policy, random.Random(seed), jitter
        self._queue: list[float] = []  # when each came
        self._events: list[tuple[float, int, str, Worker | None, list[float]]] = []
        self._count = 0
        self._timers: dict[Worker, float] = {}
        self.outcome = Outcome()

    def run(self, rate: float, pictures: int) -> Outcome:
        now = 0.0
        for _ in range(pictures):
            now += self._rng.expovariate(rate)
            self._at(now, "comes", None, [])
        last = now
        while self._events:
            now, _, what, worker, batch = heapq.heappop(self._events)
            if what == "comes":
                self._queue.append(now)
            elif what == "done" and worker:
                self.outcome.latencies += [now - came for came in batch]
                worker.idle = True
                self._policy.returned(worker, now)
                self.outcome.ended = now
            self._feed(now)
            if now > last + 1000:
                break  # what is left hangs
        self.outcome.left = len(self._queue)
        return self.outcome

    def _at(self, when: float, what: str, worker: Worker | None, batch: list[float]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, what, worker, batch))

    def _feed(self, now: float) -> None:
        """Idle workers ask, in any order, until none takes anything."""
        idle = [worker for worker in self._workers if worker.idle]
        self._rng.shuffle(idle)
        took = True
        while took and self._queue:
            took = False
            for worker in idle:
                if self._queue and worker.idle and (share := self._policy.share(worker, self._queue, now)):
                    self._start(worker, share, now)
                    took = True
        for worker in idle:
            if worker.idle and self._queue:
                when = self._policy.again_at(worker, self._queue)
                if now < when < float("inf") and self._timers.get(worker) != when:
                    self._timers[worker] = when
                    self._at(when, "asks", worker, [])

    def _start(self, worker: Worker, share: Share, now: float) -> None:
        batch = self._queue[share.skip : share.skip + share.rows]
        assert batch
        del self._queue[share.skip : share.skip + share.rows]
        device = worker.device
        seconds = (device.fixed + device.each * len(batch)) * self._rng.uniform(1 - self._jitter, 1 + self._jitter)
        worker.idle = False
        self._policy.took(worker, len(batch), now)
        self.outcome.taken[worker.group] = self.outcome.taken.get(worker.group, 0) + len(batch)
        if now < device.hangs_at:
            self._at(now + seconds, "done", worker, batch)


def simulate(kind: str, devices: Sequence[Device], load: float, pictures: int = 4000, seed: int = 1) -> Outcome:
    """`load`: pictures that come, as a share of what the first device can do. `kind`: naive, first or fed."""
    workers = workers_of(devices)
    policies: dict[str, Policy] = {"naive": Naive(), "first": OnlyFirst(), "fed": Fed(workers)}
    return Simulation(workers, policies[kind], seed).run(load * devices[0].rate, pictures)
