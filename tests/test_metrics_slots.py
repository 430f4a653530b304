"""How full a model is: slots, queue and requests in flight, of which autoscalers know what to do.

The fake runtime waits here until it is let go, so that nothing depends on how quick a machine is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from numpy.typing import NDArray
from visionpool.errors import QueueFull
from visionpool_server.api.metrics import Metrics
from visionpool_server.app import offline
from visionpool_server.batching import Job
from visionpool_server.cpu import cpu_count
from visionpool_server.models.loader import Defaults, Model
from visionpool_server.service import Service

from tests.prometheus_text import WAIT, asked, in_process
from tests.real_server import picture, write_model

RED = picture((255, 0, 0))
Fill = tuple[float, float, float]  # slots used, waiting, requests in flight


class Held:
    """A service whose one model `m` answers nothing before `go` is set."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.model: Model = service.models.get("m")
        self.metrics = Metrics(service.models, ready=lambda: True)
        self.go = Event()
        engine: Any = self.model.pool.groups[0].engine
        run = engine.run

        def wait_and_run(images: NDArray[Any]) -> NDArray[Any]:
            assert self.go.wait(WAIT)
            return run(images)  # type: ignore[no-any-return]  # the fake engine's own

        engine.run = wait_and_run

    def wait(self, _: Job) -> None:
        """In the place of decoding."""
        self.go.wait(WAIT)

    def fill(self) -> Fill:
        seen = in_process(self.metrics)
        gauges = ("slots_used", "queue_length", "requests_in_flight")
        used, waiting, in_flight = (seen(f"visionpool_{gauge}", model="m") for gauge in gauges)
        return used, waiting, in_flight

    def slots(self) -> float:
        return in_process(self.metrics)("visionpool_slots", model="m")

    def until(self, fill: Fill) -> None:
        end = time.monotonic() + WAIT
        while (now := self.fill()) != fill:
            assert time.monotonic() < end, f"it is {now}"
            time.sleep(0.005)

    def with_requests(self, *requests: Awaitable[Any], fill: Fill) -> None:
        """Waits until it is as full as that with all of them, then until it is empty without."""

        async def run() -> None:
            tasks = [asyncio.ensure_future(request) for request in requests]
            try:
                await asyncio.to_thread(self.until, fill)
            finally:
                self.go.set()
                await asyncio.gather(*tasks)

        asyncio.run(run())
        self.until((0, 0, 0))

    def pictures(self, count: int) -> Awaitable[Any]:
        return self.service.predict_many(self.model, [RED] * count)


@contextmanager
def held(folder: Path, options: dict[str, Any] | None = None, **more: Any) -> Iterator[Held]:
    write_model(folder / "m", options, **more)
    with offline([folder], Defaults(), max_pixels=10**6) as service:
        made = Held(service)
        try:
            yield made
        finally:
            made.go.set()


def test_slots_fill_and_then_the_queue(tmp_path: Path) -> None:
    with held(tmp_path, workers=2) as server:
        assert server.slots() == 2
        server.with_requests(*(server.pictures(1) for _ in range(5)), fill=(2, 3, 5))


def test_a_request_of_several_pictures_fills_as_many_slots(tmp_path: Path) -> None:
    with held(tmp_path, workers=2) as server:
        server.with_requests(server.pictures(5), fill=(2, 3, 1))


def test_slots_are_pictures_and_not_workers(tmp_path: Path) -> None:
    """One at a time does not make a device look full that takes eight."""
    with held(tmp_path, workers=2, batching={"max_batch_size": 4}) as server:
        assert server.slots() == 8
        server.with_requests(server.pictures(1), fill=(1, 0, 1))


def test_a_batch_that_a_device_is_given_early_waits(tmp_path: Path) -> None:
    with held(tmp_path, {"depth": 2}, workers=1) as server:
        assert server.slots() == 1
        server.with_requests(*(server.pictures(1) for _ in range(3)), fill=(1, 2, 3))


def test_what_a_spare_worker_decodes_waits(tmp_path: Path) -> None:
    cores = cpu_count()
    with held(tmp_path, {"on_cpu": True}, workers=cores) as server:
        assert server.model.pool.prepares
        assert server.slots() == cores
        server.with_requests(*(server.pictures(1) for _ in range(cores + 1)), fill=(cores, 1, cores + 1))


def test_a_picture_that_is_still_to_be_decoded_waits(tmp_path: Path) -> None:
    """Where decoding is what holds a server up, its workers look idle, and pictures wait all the same."""
    with held(tmp_path) as server:
        for _ in range(cpu_count()):
            server.service.stages.submit(server.go.wait, WAIT)
        server.with_requests(server.pictures(2), server.pictures(2), fill=(0, 4, 2))


def test_one_call_with_more_rows_than_a_batch_takes_one_workers_slots(tmp_path: Path) -> None:
    with held(tmp_path, workers=2, batching={"max_batch_size": 4}) as server:
        many = server.service.picture_job(server.model, RED, lambda outputs, geometry: None)
        many.rows = 100
        server.with_requests(server.service.run(server.model.pool, [many], 20.0), fill=(4, 0, 1))


def test_what_is_cancelled_does_not_wait(tmp_path: Path) -> None:
    with held(tmp_path, workers=1) as server:
        pool = server.model.pool
        jobs = [Job({}, lambda outputs: outputs) for _ in range(3)]
        jobs[0].prepare = server.wait
        for job in jobs:
            pool.submit(job)
        server.until((1, 2, 0))
        jobs[2].give_up()
        server.until((1, 1, 0))
        for job in jobs:
            job.give_up()
        server.go.set()


def test_who_is_refused_takes_no_place(tmp_path: Path) -> None:
    with held(tmp_path, workers=1, batching={"max_queue_size": 1}) as server:

        async def refused() -> None:
            await asyncio.sleep(0)  # after the others
            with pytest.raises(QueueFull):
                await server.pictures(1)

        server.with_requests(server.pictures(1), server.pictures(1), refused(), fill=(1, 1, 2))


def test_a_scrape_does_not_wait_for_a_model_that_hangs(tmp_path: Path) -> None:
    with held(tmp_path, workers=1) as server:
        pool = server.model.pool
        pool.submit(Job({}, lambda outputs: outputs, prepare=server.wait))
        server.until((1, 0, 0))
        assert asked(server.metrics, "GET").status_code == 200
