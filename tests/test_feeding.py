"""The pool feeds the device that is free and fast: the decision by itself, in virtual time, and with real threads.

Rates and clocks are given in all but the last; those wait for what must happen, and never measure how long that takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed, QueueFull
from visionpool_server.assembly import Pictures
from visionpool_server.backends import LoadOptions, Tensors
from visionpool_server.backends.fake import FakeEngine
from visionpool_server.batching import Job, JobQueue
from visionpool_server.families import split_by_row
from visionpool_server.fed_queue import FedQueue, _Watch
from visionpool_server.feeding import Feeding, Pace, Seat, Share, Team
from visionpool_server.pool import Group, Pool, PoolOptions

from tests.feeding_simulation import Device, Fed, Simulation, simulate, workers_of

T = TypeVar("T")
BOUND = 30.0
FAST, SLOW = 0.005, 0.1


def trained(team: Team, seconds: float, each: float = 0.0, rows: Sequence[int] = (1,)) -> None:
    """As if its batches had taken `seconds`, and `each` a row."""
    for i in range(64):
        size = rows[i % len(rows)]
        team.pace.measured(size, seconds + each * size)


class Bench:
    """Two groups, fast and slow, a worker each, with rates that are known."""

    def __init__(self, fast: float = FAST, slow: float = SLOW, *, max_batch: int = 1) -> None:
        self.feeding = Feeding([max_batch, max_batch])
        self.fast, self.slow = self.feeding.teams
        trained(self.fast, fast)
        trained(self.slow, slow)
        self.fast_seat, self.slow_seat = Seat(self.fast), Seat(self.slow)
        self.feeding.sit(self.fast_seat)
        self.feeding.sit(self.slow_seat)

    def fast_takes(self, waiting: int, now: float = 0.0) -> Share | None:
        return self.feeding.share(self.fast, waiting, 0.0, now)

    def slow_takes(self, waiting: int, stood: float = 0.0, now: float = 0.0) -> Share | None:
        return self.feeding.share(self.slow, waiting, stood, now)


class TestPace:
    def test_a_line_through_what_was_measured(self) -> None:
        pace = Pace()
        for i in range(200):
            pace.measured(1 + i % 8, 0.004 + 0.001 * (1 + i % 8))
        assert [pace.seconds(rows) for rows in (1, 4, 8, 16)] == pytest.approx([0.005, 0.008, 0.012, 0.02], rel=0.02)

    def test_of_one_size_alone_larger_ones_take_in_proportion(self) -> None:
        pace = Pace()
        for _ in range(10):
            pace.measured(2, 0.01)
        assert [pace.seconds(rows) for rows in (2, 4)] == pytest.approx([0.01, 0.02])

    def test_more_rows_never_seem_to_take_less_nor_more_than_in_proportion(self) -> None:
        falling, rising = Pace(), Pace()
        for i in range(64):
            falling.measured(1 + 7 * (i % 2), 0.02 - 0.01 * (i % 2))
            rising.measured(1 + i % 2, 0.001 + 0.1 * (i % 2))
        assert falling.seconds(1) == pytest.approx(falling.seconds(8))
        assert rising.seconds(2) == pytest.approx(2 * rising.seconds(1))

    def test_the_first_batch_is_not_believed_and_two_more_are_wanted(self) -> None:
        pace = Pace()
        pace.measured(1, 9.0)
        assert not pace.known
        pace.measured(1, 0.01)
        pace.measured(1, 0.01)
        assert pace.known
        assert pace.seconds(1) == pytest.approx(0.01)

    def test_it_follows_a_device_that_slows_down_or_recovers(self) -> None:
        pace = Pace()
        for seconds in (0.005, 0.05, 0.005):
            for _ in range(100):
                pace.measured(1, seconds)
            assert pace.seconds(1) == pytest.approx(seconds, rel=0.05)

    def test_one_batch_that_was_held_up_says_little(self) -> None:
        pace = Pace()
        for _ in range(20):
            pace.measured(1, 0.005)
        pace.measured(1, 20.0)
        assert pace.seconds(1) < 0.0065

    def test_no_time_at_all_is_a_little_time(self) -> None:
        pace = Pace()
        for _ in range(5):
            pace.measured(1, 0.0)
        assert pace.seconds(1) > 0


class TestShare:
    def test_the_fastest_takes_all_that_it_can(self) -> None:
        bench = Bench(max_batch=4)
        assert [bench.fast_takes(waiting) for waiting in (1, 3, 9)] == [Share(0, 1), Share(0, 3), Share(0, 4)]

    def test_a_lone_picture_is_left_to_the_fast_one_even_where_that_is_busy(self) -> None:
        bench = Bench()
        assert bench.slow_takes(1) is None
        bench.feeding.took(bench.fast_seat, 1, 0.0)
        assert bench.slow_takes(1, now=0.001) is None

    def test_the_slow_one_joins_where_even_the_end_would_take_longer_and_begins_there(self) -> None:
        bench = Bench()
        bench.feeding.took(bench.fast_seat, 1, 0.0)
        assert bench.slow_takes(18) is None  # 19 x 5 ms: done before 100 ms are over
        assert bench.slow_takes(19) == Share(18, 1)
        assert bench.slow_takes(40) == Share(18, 1)

    def test_a_batch_is_as_large_as_it_pays(self) -> None:
        bench = Bench(max_batch=8)
        trained(bench.slow, 0.0, SLOW, rows=(1, 2, 4, 8))
        trained(bench.fast, 0.004, 0.001, rows=(1, 2, 4, 8))
        assert bench.slow_takes(60) is None  # 8 batches of 12 ms in 100 ms
        share = bench.slow_takes(70)
        assert share is not None
        assert share.rows == 1
        big = bench.slow_takes(2000)
        assert big is not None
        assert big.rows == 8

    def test_a_full_batch_elsewhere_may_take_longer_than_one_picture_here(self) -> None:
        bench = Bench(max_batch=32)
        trained(bench.fast, 0.004, 0.0011, rows=(1, 8, 16, 32))
        trained(bench.slow, 0.0, 0.03, rows=(1, 2))
        assert bench.slow_takes(1) is None
        assert bench.slow_takes(20) is None
        assert bench.slow_takes(32) == Share(0, 1)  # 30 ms here, 39 there

    def test_of_equals_each_takes(self) -> None:
        bench = Bench(FAST, FAST)
        assert (bench.fast_takes(1), bench.slow_takes(1)) == (Share(0, 1), Share(0, 1))

    @pytest.mark.parametrize("waiting", [1, 2, 5, 50])
    @pytest.mark.parametrize("rates", [(1.0, 1.0), (1.0, 1.1), (3.0, 0.5), (0.01, 20.0)])
    def test_of_idle_workers_one_always_takes(self, rates: tuple[float, float], waiting: int) -> None:
        bench = Bench(*rates, max_batch=4)
        assert bench.fast_takes(waiting) or bench.slow_takes(waiting)

    def test_without_the_fast_one_the_slow_one_takes_all(self) -> None:
        bench = Bench()
        bench.feeding.leave(bench.fast_seat)
        assert bench.slow_takes(1) == Share(0, 1)
        bench.feeding.leave(bench.fast_seat)  # again: no matter
        bench.feeding.sit(Seat(bench.fast))
        assert bench.slow_takes(1) is None

    def test_one_that_hangs_soon_counts_for_nothing(self) -> None:
        bench = Bench()
        bench.feeding.took(bench.fast_seat, 1, 0.0)
        assert bench.slow_takes(1, now=0.02) is None  # late by 15 ms: as many more are expected
        assert bench.slow_takes(1, now=0.11) == Share(0, 1)

    def test_what_has_stood_for_longer_than_the_slow_one_takes_is_taken(self) -> None:
        bench = Bench()
        assert bench.slow_takes(1, stood=0.09) is None
        assert bench.slow_takes(1, stood=0.11) == Share(0, 1)

    def test_who_was_never_measured_takes_and_is_not_waited_for(self) -> None:
        feeding = Feeding([1, 1])
        one, other = feeding.teams
        trained(one, FAST)
        feeding.sit(Seat(one))
        assert feeding.share(other, 1, 0.0, 0.0) == Share(0, 1)
        feeding.sit(Seat(other))
        assert feeding.share(one, 1, 0.0, 0.0) == Share(0, 1)

    def test_a_rate_that_was_not_measured_for_long_is_tried_again(self) -> None:
        bench = Bench()
        batches = 0
        while bench.slow_takes(1, now=float(batches)) is None:
            bench.feeding.took(bench.fast_seat, 1, float(batches))
            bench.feeding.returned(bench.fast_seat, 0, batches + FAST)
            batches += 1
            assert batches < 3000
        assert batches > 1000  # fewer than one picture in a thousand pays for it
        bench.feeding.took(bench.slow_seat, 1, float(batches))
        bench.feeding.returned(bench.slow_seat, 0, batches + SLOW)
        assert bench.slow_takes(1, now=batches + 1.0) is None
        assert bench.feeding.seconds(bench.slow, 1) == pytest.approx(SLOW, rel=0.05)

    def test_batches_that_overlap_are_measured_from_one_end_to_the_next(self) -> None:
        feeding = Feeding([1, 1])
        seat = Seat(feeding.teams[0])
        feeding.took(seat, 1, 0.0)
        feeding.took(seat, 1, 0.0)
        for i in range(1, 20):  # two under way: each takes 10 ms, 20 with the one before
            feeding.returned(seat, 1, 0.01 * i)
            feeding.took(seat, 1, 0.01 * i)
        assert feeding.seconds(feeding.teams[0], 1) == pytest.approx(0.01)


class TestInVirtualTime:
    """4000 pictures at random. The bounds are wide: seeds differ by a tenth."""

    UNEQUAL = (Device(1, FAST), Device(1, SLOW))

    @pytest.mark.parametrize("load", [0.1, 0.3, 0.6, 0.8])
    def test_at_low_load_it_is_as_quick_as_without_the_slow_device(self, load: float) -> None:
        fed, first, naive = (simulate(kind, self.UNEQUAL, load) for kind in ("fed", "first", "naive"))
        assert fed.at(0.99) < 1.25 * first.at(0.99)
        assert fed.mean < 1.1 * first.mean
        assert fed.at(0.99) < 0.6 * naive.at(0.99)
        assert fed.taken[1] < 0.01 * 4000 < naive.taken[1]

    @pytest.mark.parametrize("load", [1.2, 2.0])
    def test_under_overload_all_devices_work(self, load: float) -> None:
        fed, first, naive = (simulate(kind, self.UNEQUAL, load) for kind in ("fed", "first", "naive"))
        assert fed.throughput > 0.99 * naive.throughput
        assert fed.throughput > 1.03 * first.throughput
        assert fed.at(0.99) < 1.02 * naive.at(0.99)

    @pytest.mark.parametrize("load", [0.1, 0.6, 0.9, 1.0, 1.2, 2.0])
    def test_devices_that_differ_little_share_the_work(self, load: float) -> None:
        devices = (Device(1, 0.005), Device(1, 0.008))
        fed, naive = (simulate(kind, devices, load) for kind in ("fed", "naive"))
        assert fed.at(0.99) < 1.15 * naive.at(0.99)
        assert fed.mean < 1.05 * naive.mean
        assert fed.throughput > 0.98 * naive.throughput

    @pytest.mark.parametrize("load", [0.1, 0.6, 1.0, 1.2])
    def test_batches_on_a_gpu_beside_pictures_on_a_cpu(self, load: float) -> None:
        devices = (Device(1, 0.004, 0.001, 8), Device(2, 0.02, 0.08, 8))
        fed, first, naive = (simulate(kind, devices, load) for kind in ("fed", "first", "naive"))
        assert fed.at(0.99) < 1.25 * first.at(0.99)
        assert fed.at(0.99) < 0.8 * naive.at(0.99)
        assert fed.throughput > 0.98 * max(naive.throughput, first.throughput)

    @pytest.mark.parametrize("load", [0.1, 0.6, 1.5])
    def test_nothing_waits_for_a_device_that_hangs(self, load: float) -> None:
        """It never comes back. What it has is lost here, where nobody supervises; nothing else stays behind."""
        devices = (Device(1, FAST, hangs_at=2.0), Device(2, SLOW))
        outcome = simulate("fed", devices, load, pictures=500)
        assert outcome.left == 0
        assert len(outcome.latencies) >= 499

    def test_a_group_that_was_measured_at_a_bad_moment_gets_its_work_back(self) -> None:
        devices = (Device(1, FAST), Device(1, SLOW))
        workers = workers_of(devices)
        fed = Fed(workers)
        trained(fed.feeding.teams[0], 2.0)  # it is fast now, and was not
        trained(fed.feeding.teams[1], SLOW)
        outcome = Simulation(workers, fed, seed=3).run(5.0, 2000)
        assert outcome.at(0.5) < 2 * FAST
        assert fed.feeding.seconds(fed.feeding.teams[0], 1) < 2 * FAST

    @pytest.mark.parametrize("seed", range(5))
    def test_nothing_is_lost_whatever_the_devices(self, seed: int) -> None:
        devices = tuple(Device(1 + i, 0.003 * 4**i, 0.001, 1 + 3 * ((seed + i) % 3)) for i in range(3))
        for load in (0.2, 1.0, 1.5):
            outcome = simulate("fed", devices, load, pictures=1000, seed=seed)
            assert (len(outcome.latencies), outcome.left) == (1000, 0)


def job() -> Job:
    return Job({"images": np.zeros((8, 8, 3), np.uint8)}, dict)


def in_thread(work: Callable[[], T]) -> Callable[[], T]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return lambda: future.result(BOUND)


def asleep(queue: FedQueue, team: int, count: int = 1, watch: _Watch = _Watch.NONE) -> None:
    """Waits until so many workers of a group do, one of them watching the clock or none."""
    sleepers = queue._sleepers[queue._feeding.teams[team]]
    until = time.monotonic() + BOUND
    while True:
        with queue._changed:
            if (sleepers.count, sleepers.watch) == (count, watch):
                return
        assert time.monotonic() < until
        time.sleep(0.002)


class TestQueue:
    """With rates as they are: 5 ms and, so that no slow machine comes near it, 1000 s."""

    def queue(self, *, slow: float = 1000.0, limit: int = 1_000_000) -> FedQueue:
        queue = FedQueue(limit, [1, 1])
        fast, slow_team = queue._feeding.teams
        trained(fast, FAST)
        trained(slow_team, slow)
        return queue

    def test_one_group_has_the_plain_queue(self) -> None:
        engine = FakeEngine(LoadOptions())
        assert type(Pool("one", [Group(engine, 3)], Pictures(split_by_row))._queue) is JobQueue
        assert type(Pool("two", [Group(engine, 1)] * 2, Pictures(split_by_row))._queue) is FedQueue

    def test_the_slow_worker_sleeps_while_the_fast_one_takes_all(self) -> None:
        queue = self.queue()
        fast, slow = queue.line(0), queue.line(1)
        assert fast.take(1, 0.0, 1) == []  # it is there
        waiting = in_thread(lambda: slow.take(1))
        for _ in range(200):
            one = job()
            queue.put(one)
            assert fast.take(1) == [one]
        queue.close()
        assert waiting() == []

    def test_where_more_waits_than_the_fast_one_gets_through_the_slow_one_takes_what_comes_last(self) -> None:
        queue = self.queue(slow=0.1)
        fast, slow = queue.line(0), queue.line(1)
        assert fast.take(1, 0.0, 1) == []
        jobs = [job() for _ in range(30)]
        for one in jobs:
            queue.put(one)
            one.queued_at += 1000.0  # it has not stood for long, however long this takes
        (taken,) = slow.take(1)
        assert jobs.index(taken) == 19
        assert fast.take(1) == [jobs[0]]

    def test_a_worker_that_leaves_wakes_those_who_left_its_work_to_it(self) -> None:
        queue = self.queue()
        fast, slow = queue.line(0), queue.line(1)
        assert fast.take(1, 0.0, 1) == []
        waiting = in_thread(lambda: slow.take(1))
        asleep(queue, 1)
        queue.put(one := job())
        asleep(queue, 1, watch=_Watch.KEPT)  # it looked, and left the job to the fast one
        fast.leave()
        assert waiting() == [one]

    def test_what_stands_is_taken_by_the_slow_one_with_nobody_to_wake_it(self) -> None:
        queue = self.queue(slow=0.2)
        fast, slow = queue.line(0), queue.line(1)
        assert fast.take(1, 0.0, 1) == []
        waiting = in_thread(lambda: slow.take(1))
        queue.put(one := job())  # the fast one never comes
        assert waiting() == [one]
        assert time.monotonic() - one.queued_at >= 0.19

    def test_what_is_put_back_wakes_somebody(self) -> None:
        queue = self.queue()
        slow = queue.line(1)
        waiting = in_thread(lambda: slow.take(1))
        queue.put_back([one := job()])
        assert waiting() == [one]

    def test_of_several_that_are_put_back_at_once_each_wakes_somebody(self) -> None:
        queue = self.queue()
        waiting = [in_thread(partial(queue.line(1).take, 1)) for _ in range(2)]
        asleep(queue, 1, 2)
        jobs = [job(), job()]
        queue.put_back(jobs)
        assert sorted(id(one) for wait in waiting for one in wait()) == sorted(map(id, jobs))

    def test_a_closed_queue_gives_the_rest_to_whoever_is_free(self) -> None:
        queue = self.queue()
        fast, slow = queue.line(0), queue.line(1)
        assert fast.take(1, 0.0, 1) == []
        waiting = in_thread(lambda: slow.take(1))
        queue.put(one := job())
        queue.close()
        assert waiting() == [one]
        assert (slow.take(1), fast.take(1)) == ([], [])

    def test_what_was_cancelled_costs_no_worker_its_rate(self) -> None:
        queue = self.queue()
        fast = queue.line(0)
        gone, one = job(), job()
        gone.future.cancel()
        queue.put(gone)
        queue.put(one)
        runs = queue._feeding.teams[0].pace.runs
        assert fast.take(1) == [one]
        assert queue._feeding.teams[0].pace.runs == runs

    def test_a_delay_is_kept_and_a_batch_formed(self) -> None:
        queue = FedQueue(100, [4, 4])
        line = queue.line(0)
        taken = in_thread(lambda: line.take(4, 10 * BOUND))
        jobs = [job() for _ in range(4)]
        for one in jobs:
            queue.put(one)
        assert taken() == jobs
        queue.put(job())
        assert line.take(4, 10 * BOUND, 1) == []  # beside another, a batch that may grow is left

    def test_a_full_queue_refuses(self) -> None:
        queue = self.queue(limit=1)
        queue.put(job())
        with pytest.raises(QueueFull):
            queue.put(job())

    def test_workers_of_unequal_groups_get_every_job_once(self) -> None:
        queue = FedQueue(1000, [4, 1, 2])
        taken: list[Job] = []
        lock = threading.Lock()

        def work(team: int) -> None:
            line = queue.line(team)
            while batch := line.take(4, 0.0005 if team == 0 else 0.0):
                time.sleep(0.0003 * 5**team)
                with lock:
                    taken.extend(batch)

        workers = [in_thread(partial(work, i % 3)) for i in range(6)]
        jobs = [job() for _ in range(600)]
        for one in jobs:
            queue.put(one)
        queue.close()
        for wait in workers:
            wait()
        assert sorted(map(id, taken)) == sorted(map(id, jobs))


def colour_of(outputs: Tensors) -> list[float]:
    shares: list[float] = outputs["output0"].round(4).tolist()
    return shares


def picture_job(colour: tuple[int, int, int]) -> Job:
    pixels: NDArray[np.uint8] = np.full((8, 8, 3), colour, np.uint8)
    return Job({"images": pixels}, colour_of)


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    """A factory of started pools, of engines with a worker each; after the test all their threads are gone."""
    before, made = set(threading.enumerate()), []

    def make(*engines: FakeEngine, **options: float) -> Pool:
        groups = [Group(engine, 1) for engine in engines]
        pool = Pool("fake", groups, Pictures(split_by_row), PoolOptions(**options))  # type: ignore[arg-type]
        pool.start()
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()
    until = time.monotonic() + BOUND
    while set(threading.enumerate()) - before:
        assert time.monotonic() < until
        time.sleep(0.005)


class TestWithWorkers:
    """A fast device and a slow one, which takes 0.3 s: far more than the fast one needs even on a busy machine."""

    def engine(self, latency_ms: float, **options: object) -> FakeEngine:
        return FakeEngine(LoadOptions(max_batch_size=1, options={"latency_ms": latency_ms, **options}))

    def ask(self, pool: Pool, count: int) -> None:
        for i in range(count):
            job = picture_job((1 + i % 200, 100, 50))
            pool.submit(job)
            total = 151 + i % 200
            assert job.future.result(BOUND) == pytest.approx([(1 + i % 200) / total, 100 / total, 50 / total], abs=1e-3)

    def test_lone_pictures_go_to_the_fast_one_once_both_are_known(self, pools: Callable[..., Pool]) -> None:
        fast, slow = self.engine(1), self.engine(300)
        pool = pools(slow, fast)
        jobs = [picture_job((1, 2, 3)) for _ in range(12)]  # so many wait that both are tried
        for job in jobs:
            pool.submit(job)
        for job in jobs:
            job.future.result(BOUND)
        while len(slow.batches) < 3:
            self.ask(pool, 1)
        tried = len(slow.batches)
        self.ask(pool, 100)
        assert len(slow.batches) - tried <= 2  # it is tried again now and then
        assert len(fast.batches) >= 98

    def test_under_load_both_work(self, pools: Callable[..., Pool]) -> None:
        fast, slow = self.engine(20), self.engine(60)
        pool = pools(fast, slow, max_queue_size=200)
        jobs = [picture_job((1, 2, 3)) for _ in range(100)]
        for job in jobs:
            pool.submit(job)
        for job in jobs:
            job.future.result(BOUND)
        assert len(fast.batches) + len(slow.batches) == 100
        assert len(slow.batches) >= 10  # a quarter, were there no noise

    def test_what_the_fast_one_hangs_on_the_slow_one_answers_and_its_worker_is_replaced(
        self, pools: Callable[..., Pool]
    ) -> None:
        bad = (250, 0, 0)
        fast, slow = self.engine(1, hang=bad, hang_s=2.0), self.engine(50)
        pool = pools(fast, slow, hang_timeout=1.0)
        self.ask(pool, 20)
        for _ in range(50):  # the slow one may be the first to take it, and nothing hangs then
            jobs = [picture_job(bad), *[picture_job((1, 2, 3)) for _ in range(5)]]
            for job in jobs:
                pool.submit(job)
            for job in jobs[1:]:
                job.future.result(BOUND)
            error = jobs[0].future.exception(BOUND)
            assert error is None or isinstance(error, InferenceFailed)  # by the fast one twice
            if pool.restarts:
                break
        assert pool.restarts
        self.ask(pool, 5)

    def test_workers_that_work_ahead_are_fed_too(self, pools: Callable[..., Pool]) -> None:
        deep = FakeEngine(LoadOptions(max_batch_size=4, options={"latency_ms": 1, "depth": 2}))
        pool = pools(deep, self.engine(100), max_queue_size=400)
        jobs = [picture_job((1 + i % 200, 100, 50)) for i in range(300)]
        for job in jobs:
            pool.submit(job)
        for i, job in enumerate(jobs):
            total = 151 + i % 200
            assert job.future.result(BOUND)[0] == pytest.approx((1 + i % 200) / total, abs=1e-3)
        self.ask(pool, 30)
