"""Replicas, a name for them, a balancer in front, and callers: what is done to them, phase by phase."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import visionpool

from benchmarks.balanced.balancer import Balancer, haproxy, nginx
from benchmarks.balanced.callers import Targets
from benchmarks.balanced.fleet import Fleet, Replica
from benchmarks.balanced.load import Load
from benchmarks.balanced.names import Names

NAME = "visionpool.test"
SETTINGS = {
    "VISIONPOOL_DRAIN_DELAY": "3",  # HAProxy's checks take 1.2 s
    "VISIONPOOL_GRPC_MAX_CONNECTION_AGE": "5",
    "VISIONPOOL_LOG_FORMAT": "text",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """What was done, and when (monotonic seconds)."""

    what: str
    start: float
    end: float


@dataclass(slots=True)
class Stage:
    """`up` are the replicas that answer. What it notes: `phases`, and `events` at their times."""

    fleet: Fleet
    names: Names
    balancer: Balancer
    load: Load
    up: list[Replica]
    phases: list[Phase] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # of those that were told to stop

    def note(self, event: str) -> None:
        self.events.append((time.monotonic(), event))

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.phases.append(Phase(what, start, time.monotonic()))

    def grow(self, count: int) -> None:
        """So many more, ready; their name has them from then on."""
        started = [self.fleet.start() for _ in range(count)]
        for replica in started:
            replica.wait_ready()
            self.up.append(replica)
            self._name_those_up()
            self.note(f"{replica.name} is ready")

    def stop(self, count: int = 1) -> None:
        """The last ones are told to stop, and awaited. Their name has them until they are gone."""
        leaving = [self.up.pop() for _ in range(count)]
        for replica in leaving:
            self.note(f"{replica.name} is told to stop")
            replica.terminate()
        for replica in leaving:
            self.statuses.append(replica.wait())
            self._name_those_up()
            self.note(f"{replica.name} has ended")

    def kill(self) -> None:
        """The last one, without a word."""
        replica = self.up.pop()
        self.note(f"{replica.name} is killed")
        replica.kill()
        replica.wait()
        self._name_those_up()

    def _name_those_up(self) -> None:
        self.names.addresses = tuple(replica.address for replica in self.up)


@contextmanager
def stage(
    *, each: int, latency_ms: float, image: str | None = None, behind: Literal["haproxy", "nginx"] = "haproxy"
) -> Iterator[Stage]:
    """One replica behind HAProxy, or three behind nginx, and callers who ask already, `each` at a time by each way."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionpool-replicas-")))
        folder.chmod(0o755)
        fleet = Fleet(folder, SETTINGS, latency_ms=latency_ms, image=image)
        stack.callback(fleet.close)
        up = [fleet.start() for _ in range(3 if behind == "nginx" else 1)]
        for replica in up:
            replica.wait_ready()
        names = stack.enter_context(Names(NAME))
        names.addresses = tuple(replica.address for replica in up)
        balancer = stack.enter_context(
            haproxy(folder, NAME, names.at, fleet.ports)
            if behind == "haproxy"
            else nginx(folder, names.addresses, fleet.ports)
        )
        _until_reached(balancer)
        targets = Targets(balancer.http, balancer.grpc, f"dns://{names.at}/{NAME}:{fleet.ports.grpc}")
        load = stack.enter_context(Load(targets, each))
        yield Stage(fleet, names, balancer, load, up)


def _until_reached(balancer: Balancer) -> None:
    """Until the balancer has found the first replica, for both protocols."""
    with visionpool.Client(balancer.http) as http, visionpool.GrpcClient(balancer.grpc) as grpc:
        http.wait_ready(30)
        grpc.wait_ready(30)
