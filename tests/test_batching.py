"""The queue between the stages and the workers: what is taken together, in which order, and what is left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pytest
from visionpool.errors import DeadlineExceeded, QueueFull, Unavailable
from visionpool_server.batching import Job, JobQueue, Tensors

T = TypeVar("T")
BOUND = 20.0  # seconds that anything here may take at most
SMALL, LARGE = (8, 8), (16, 16)


def identity(outputs: Tensors) -> Any:
    return outputs


def job(size: tuple[int, int] = SMALL, deadline: float = float("inf")) -> Job:
    return Job({"images": np.zeros((*size, 3), np.uint8)}, identity, deadline)


def queue_of(*jobs: Job, limit: int = 100) -> JobQueue:
    queue = JobQueue(limit)
    for one in jobs:
        queue.put(one)
    return queue


def in_thread(work: Callable[[], T]) -> Callable[[], T]:
    """Starts `work`; the answer waits for what it returns."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return lambda: future.result(BOUND)


class TestForming:
    def test_a_batch_is_what_waits_in_order_of_arrival(self) -> None:
        jobs = [job() for _ in range(3)]
        assert queue_of(*jobs).take(8) == jobs

    def test_a_batch_is_at_most_as_large_as_the_limit_and_the_rest_stays_in_order(self) -> None:
        jobs = [job() for _ in range(5)]
        queue = queue_of(*jobs)
        assert [queue.take(2), queue.take(2), queue.take(2)] == [jobs[:2], jobs[2:4], jobs[4:]]

    def test_pictures_of_different_shapes_never_share_a_batch(self) -> None:
        jobs = [job(SMALL), job(LARGE), job(SMALL), job(LARGE), job(SMALL)]
        queue = queue_of(*jobs)
        assert queue.take(8) == [jobs[0], jobs[2], jobs[4]]
        assert queue.take(8) == [jobs[1], jobs[3]]
        assert len(queue) == 0

    def test_those_passed_over_keep_their_place_before_later_ones(self) -> None:
        jobs = [job(SMALL), job(LARGE), job(SMALL), job(SMALL), job(LARGE)]
        queue = queue_of(*jobs)
        assert queue.take(2) == [jobs[0], jobs[2]]
        assert queue.take(2) == [jobs[1], jobs[4]]
        assert queue.take(2) == [jobs[3]]

    def test_one_whose_worker_was_lost_runs_alone_and_first(self) -> None:
        first, second, third = job(), job(), job()
        queue = queue_of(first, second)
        lost = queue.take(8)
        queue.put(third)
        queue.put_back(lost)
        assert [queue.take(8), queue.take(8), queue.take(8)] == [[first], [second], [third]]
        assert (first.attempts, third.attempts) == (2, 1)

    def test_jobs_are_put_back_even_into_a_full_queue(self) -> None:
        queue = queue_of(job(), job(), limit=2)
        lost = queue.take(8)
        queue.put(job())
        queue.put(job())
        queue.put_back(lost)
        assert len(queue) == 4


class TestLeavingOut:
    def test_a_cancelled_picture_is_dropped_and_its_neighbours_run(self) -> None:
        jobs = [job() for _ in range(3)]
        queue = queue_of(*jobs)
        assert jobs[1].future.cancel()
        assert queue.take(8) == [jobs[0], jobs[2]]
        with pytest.raises(CancelledError):
            jobs[1].future.result(0)

    def test_a_picture_taken_by_a_worker_can_no_longer_be_cancelled(self) -> None:
        one = job()
        queue_of(one).take(8)
        assert not one.future.cancel()

    def test_nothing_more_is_done_for_a_caller_who_leaves_while_a_worker_has_its_picture(self) -> None:
        one = job()
        one.prepare = lambda preparing: preparing.give_up()  # it leaves in the middle of the decoding
        assert queue_of(one).take(8) == [one]
        assert not one.ready()
        assert not one.claim()

    def test_a_late_picture_fails_before_it_costs_anything(self) -> None:
        late, good = job(deadline=time.monotonic() - 1), job(deadline=time.monotonic() + BOUND)
        assert queue_of(late, good).take(8) == [good]
        with pytest.raises(DeadlineExceeded):
            late.future.result(0)

    def test_take_goes_on_waiting_where_all_that_waited_is_gone(self) -> None:
        gone, late, good = job(), job(deadline=time.monotonic() - 1), job(LARGE)
        queue = queue_of(gone, late)
        gone.future.cancel()
        taken = in_thread(lambda: queue.take(8))
        with pytest.raises(DeadlineExceeded):
            late.future.result(BOUND)
        queue.put(good)
        assert taken() == [good]

    def test_an_answer_after_the_caller_is_gone_hurts_nobody(self) -> None:
        one = job()
        one.future.cancel()
        one.resolve("too late")
        one.fail(RuntimeError("too late"))
        assert one.future.cancelled()

    def test_of_two_answers_the_first_counts(self) -> None:
        one = job()
        queue_of(one).take(8)
        one.resolve("first")
        one.resolve("second")
        one.fail(RuntimeError("third"))
        assert one.future.result(0) == "first"


class TestWaiting:
    def test_take_waits_for_a_picture(self) -> None:
        queue, one = JobQueue(4), job()
        taken = in_thread(lambda: queue.take(8))
        queue.put(one)
        assert taken() == [one]

    def test_without_a_delay_a_batch_is_what_is_there(self) -> None:
        queue = queue_of(job())
        assert len(queue.take(8, 0.0)) == 1

    def test_a_delay_lets_a_batch_grow_and_ends_when_it_is_full(self) -> None:
        queue = queue_of(job())
        taken = in_thread(lambda: queue.take(3, 10 * BOUND))  # far longer than this test waits
        queue.put(job())
        queue.put(job())
        assert len(taken()) == 3

    def test_a_delay_counts_from_when_the_first_picture_came(self) -> None:
        one = job()
        queue = queue_of(one)
        started = time.monotonic()
        assert queue.take(8, 0.2) == [one]
        assert time.monotonic() - one.queued_at >= 0.2
        queue.put(one := job())
        one.queued_at = started - 10 * BOUND  # it has waited for long enough already
        assert in_thread(lambda: queue.take(8, 5 * BOUND))() == [one]

    def test_a_batch_of_one_does_not_wait_for_others(self) -> None:
        one = job()
        queue = queue_of(one)
        assert in_thread(lambda: queue.take(1, 10 * BOUND))() == [one]

    def test_workers_that_wait_side_by_side_get_every_picture_once(self) -> None:
        queue = JobQueue(1000)
        taken: list[Job] = []
        lock = threading.Lock()

        def work() -> None:
            while batch := queue.take(4, 0.001):
                with lock:
                    taken.extend(batch)

        workers = [in_thread(work) for _ in range(6)]
        jobs = [job(LARGE if i % 3 == 0 else SMALL) for i in range(300)]
        for one in jobs:
            queue.put(one)
        queue.close()
        for wait in workers:
            wait()
        assert len(taken) == len(jobs)
        assert set(map(id, taken)) == set(map(id, jobs))


class TestBounds:
    def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room(self) -> None:
        queue = queue_of(job(), job(), limit=2)
        with pytest.raises(QueueFull, match="2 pictures are waiting"):
            queue.put(job())
        queue.take(1)
        queue.put(job())
        assert len(queue) == 2

    def test_cancelled_pictures_take_up_no_room(self) -> None:
        jobs = [job(), job()]
        queue = queue_of(*jobs, limit=2)
        jobs[0].future.cancel()
        queue.put(last := job())
        assert queue.take(8) == [jobs[1], last]

    def test_a_closed_queue_gives_out_what_it_holds_and_takes_no_more(self) -> None:
        one = job()
        queue = queue_of(one)
        queue.close()
        with pytest.raises(Unavailable):
            queue.put(job())
        assert queue.take(8) == [one]
        assert queue.take(8) == []

    def test_closing_wakes_all_who_wait(self) -> None:
        queue = JobQueue(4)
        waiting = [in_thread(lambda: queue.take(8)) for _ in range(3)]
        queue.close()
        assert [wait() for wait in waiting] == [[], [], []]

    def test_closing_ends_the_wait_for_a_fuller_batch(self) -> None:
        one = job()
        queue = queue_of(one)
        taken = in_thread(lambda: queue.take(8, 10 * BOUND))
        queue.close()
        assert taken() == [one]

    def test_draining_empties_the_queue(self) -> None:
        jobs = [job(), job(LARGE)]
        queue = queue_of(*jobs)
        assert queue.drain() == jobs
        assert len(queue) == 0
