"""Workers whose contexts take the next batch in while one is computed: two batches under way, on the fake runtime.

Its deep context refuses outputs out of order and a third batch, and overwrites outputs as soon as it may: each answer here
also shows that it was read in time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool.errors import DeadlineExceeded, InferenceFailed, InvalidOption, Unavailable, VisionpoolError
from visionpool_server.assembly import Pictures
from visionpool_server.backends import Context, DeepContext, LoadOptions, Tensors
from visionpool_server.backends.fake import FakeContext, FakeDeepContext, FakeEngine, FakePending, WorkerKilled
from visionpool_server.batching import Job, JobQueue
from visionpool_server.families import split_by_row
from visionpool_server.pool import Group, Pool, PoolOptions

from tests.colour_jobs import BOUND, Colour, answer_for, assert_answered, eventually, job_of

BAD: Colour = (250, 0, 0)  # the colour that faults are bound to
FIRST: Colour = (1, 1, 1)


def colours_of(count: int) -> list[Colour]:
    return [(10 + i % 200, 200 - i % 190, 100) for i in range(count)]


class HeldEngine(FakeEngine):
    """Its device computes nothing until `open` is set. `began`: the sizes of the batches that were taken in."""

    def __init__(self, *, batch: int = 4, sizes: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(LoadOptions(max_batch_size=batch, batch_sizes=sizes, options={"depth": 2, **options}))
        self.open = threading.Event()
        self.began: list[int] = []
        self.together: list[set[Colour]] = []  # of which colours those under way were then
        self.refuses: Colour | None = None  # a batch with it does not even begin
        self.closed_on: list[str] = []

    def clone(self) -> HeldContext:
        return HeldContext(self)

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        assert self.open.wait(BOUND)
        return super().run(images)


class HeldContext(FakeDeepContext):
    def __init__(self, engine: HeldEngine) -> None:
        super().__init__(engine, 2)
        self._held = engine
        self._colours: list[set[Colour]] = []

    def begin(self, batch: Tensors) -> FakePending:
        colours: set[Colour] = {tuple(image[0, 0].tolist()) for image in batch["images"]}
        if self._held.refuses in colours:
            raise RuntimeError("no room on the device")
        pending = super().begin(batch)
        self._colours = [*self._colours[len(self._colours) - len(self._pending) + 1 :], colours]
        self._held.together.append(set().union(*self._colours))
        self._held.began.append(len(batch["images"]))
        return pending

    def close(self) -> None:
        super().close()
        self._held.closed_on.append(threading.current_thread().name)


class Pools:
    def __init__(self) -> None:
        self._made: list[tuple[Pool, FakeEngine]] = []

    def __call__(
        self,
        engine: FakeEngine,
        workers: int = 1,
        beside: Sequence[FakeEngine] = (),
        waiting: Sequence[Job] = (),
        **options: Any,
    ) -> Pool:
        """`beside`: engines of further groups, with a worker each; `waiting`: what is there before any worker."""
        groups = [Group(engine, workers), *(Group(other, 1) for other in beside)]
        pool = Pool("fake", groups, Pictures(split_by_row), PoolOptions(**options))
        for job in waiting:
            pool.submit(job)
        pool.start()
        self._made += [(pool, group.engine) for group in groups if isinstance(group.engine, FakeEngine)]
        return pool

    def close(self) -> None:
        for pool, engine in self._made:
            if isinstance(engine, HeldEngine):
                engine.open.set()
            pool.close()


@pytest.fixture
def pools() -> Iterator[Pools]:
    """A factory of pools; after the test all their threads are gone, and their contexts closed."""
    before = set(threading.enumerate())
    made = Pools()
    yield made
    made.close()
    eventually(lambda: not [t for t in threading.enumerate() if t not in before], "all threads of the pool ended")
    assert [engine.open_contexts for _, engine in made._made] == [0] * len(made._made)


def submit_all(pool: Pool, colours: Sequence[Colour]) -> list[Job]:
    jobs = [job_of(colour) for colour in colours]
    for job in jobs:
        pool.submit(job)
    return jobs


def hold_first(pool: Pool, engine: HeldEngine) -> Job:
    """A picture that is under way until the engine is opened."""
    (job,) = submit_all(pool, [FIRST])
    eventually(lambda: len(engine.began) == 1, "the first batch has begun")
    return job


def take_two(pool: Pool, engine: HeldEngine, colours: Sequence[Colour]) -> list[Job]:
    """The first picture alone, the others as the batch after it, both under way until the engine is opened."""
    engine.open.clear()
    held = [0]

    def prepare(job: Job) -> None:
        """The worker is still busy with the first one's preparation, until all others wait."""
        eventually(lambda: held[0] == 1, "the others wait")

    first = job_of(colours[0])
    first.prepare = prepare
    pool.submit(first)
    eventually(first.future.running, "the worker has it")
    others = submit_all(pool, colours[1:])
    held[0] = 1
    eventually(lambda: len(engine.began) == 2, "both have begun")
    return [first, *others]


class TestOverlap:
    def test_the_fake_keeps_the_protocol(self) -> None:
        engine = FakeEngine(LoadOptions(options={"depth": 2}))
        context: Context = engine.clone()
        assert isinstance(context, DeepContext)
        assert not isinstance(FakeContext(engine), DeepContext)
        context.close()

    def test_the_next_batch_begins_while_one_is_computed(self, pools: Pools) -> None:
        engine = HeldEngine()
        pool = pools(engine)
        colours = [FIRST, *colours_of(4)]
        jobs = take_two(pool, engine, colours)
        assert engine.began == [1, 4]
        assert engine.batches == []
        assert not any(job.future.done() for job in jobs)
        engine.open.set()
        assert_answered(jobs, colours)
        assert [job.batch_size for job in jobs] == [1, 4, 4, 4, 4]

    def test_a_third_waits_until_the_first_is_answered(self, pools: Pools) -> None:
        engine = HeldEngine()
        pool = pools(engine)
        colours = [FIRST, *colours_of(9)]
        jobs = take_two(pool, engine, colours)
        time.sleep(0.05)
        assert engine.began == [1, 4]
        engine.open.set()
        assert_answered(jobs, colours)
        assert engine.began == [1, 4, 4, 1]

    def test_a_lone_picture_is_answered_with_nobody_behind_it(self, pools: Pools) -> None:
        pool = pools(FakeEngine(LoadOptions(options={"depth": 2})))
        for colour in colours_of(5):
            assert_answered(submit_all(pool, [colour]), [colour])

    @pytest.mark.parametrize("depth", [2, 3])
    @pytest.mark.parametrize("sizes", [(), (1, 4, 8)])
    def test_every_picture_gets_its_own_answer(self, pools: Pools, depth: int, sizes: tuple[int, ...]) -> None:
        options = LoadOptions(max_batch_size=8, batch_sizes=sizes, options={"depth": depth, "latency_ms": 0.5})
        engine = FakeEngine(options)
        colours = colours_of(400)
        jobs = submit_all(pools(engine, 3, max_queue_size=400), colours)
        assert_answered(jobs, colours)
        assert not sizes or set(engine.batches) <= set(sizes)

    def test_the_times_of_a_picture_are_measured(self, pools: Pools) -> None:
        (job,) = submit_all(pools(FakeEngine(LoadOptions(options={"depth": 2, "latency_ms": 20}))), [FIRST])
        job.future.result(BOUND)
        assert job.infer_s >= 0.02 > 0 <= job.queue_s

    def test_seconds_of_overlapping_batches_are_counted_once(self, pools: Pools) -> None:
        pool = pools(FakeEngine(LoadOptions(max_batch_size=1, options={"depth": 2, "latency_ms": 5})))
        began = time.monotonic()
        jobs = submit_all(pool, colours_of(40))
        assert_answered(jobs, colours_of(40))
        elapsed = time.monotonic() - began
        seen = pool.statistics.snapshot()
        assert (seen.execution_count, seen.inference_count) == (40, 40)
        inferring = sum(batch.compute_infer.ns for batch in seen.batches) / 1e9
        assert 40 * 0.005 <= inferring <= elapsed
        assert sum(job.infer_s for job in jobs) > inferring  # the wait behind the batch before is the picture's own

    def test_a_delay_is_kept_beside_a_batch_under_way(self, pools: Pools) -> None:
        engine = HeldEngine()
        pool = pools(engine, max_queue_delay=BOUND)
        first = submit_all(pool, colours_of(4))
        eventually(lambda: engine.began == [4], "a full batch has begun")
        second = submit_all(pool, colours_of(2))
        time.sleep(0.05)
        assert engine.began == [4]  # not full, and not due
        engine.open.set()
        second += submit_all(pool, colours_of(2))
        assert_answered(first + second, [*colours_of(4), *colours_of(2), *colours_of(2)])
        assert engine.began == [4, 4]


class TestFaults:
    def test_of_a_failed_batch_only_the_culprit_fails_and_the_one_beside_it_is_answered(self, pools: Pools) -> None:
        engine = HeldEngine(fail=BAD)
        pool = pools(engine)
        colours = [FIRST, (9, 8, 7), BAD, (7, 8, 9)]
        jobs = take_two(pool, engine, colours)
        after = submit_all(pool, colours_of(3))
        engine.open.set()
        assert_answered([jobs[0], jobs[1], jobs[3], *after], [FIRST, (9, 8, 7), (7, 8, 9), *colours_of(3)])
        with pytest.raises(InferenceFailed, match="the runtime failed"):
            jobs[2].future.result(BOUND)
        assert pool.restarts == 0

    def test_the_first_of_two_may_fail_as_well(self, pools: Pools) -> None:
        engine = HeldEngine(fail=BAD)
        pool = pools(engine)
        colours = [BAD, *colours_of(4)]
        jobs = take_two(pool, engine, colours)
        engine.open.set()
        assert_answered(jobs[1:], colours[1:])
        with pytest.raises(InferenceFailed):
            jobs[0].future.result(BOUND)

    def test_both_may_fail(self, pools: Pools) -> None:
        engine = HeldEngine(fail=BAD)
        pool = pools(engine)
        jobs = take_two(pool, engine, [BAD, (9, 8, 7), BAD])
        engine.open.set()
        assert_answered([jobs[1]], [(9, 8, 7)])
        for job in (jobs[0], jobs[2]):
            with pytest.raises(InferenceFailed):
                job.future.result(BOUND)

    def test_what_cannot_even_begin_is_tried_picture_by_picture(self, pools: Pools) -> None:
        engine = HeldEngine()
        engine.refuses = BAD
        pool = pools(engine)
        first = hold_first(pool, engine)
        jobs = [job_of(colour) for colour in ((9, 8, 7), BAD, (7, 8, 9))]
        engine.open.set()
        for job in jobs:
            pool.submit(job)
        assert_answered([first, jobs[0], jobs[2]], [FIRST, (9, 8, 7), (7, 8, 9)])
        with pytest.raises(InferenceFailed):
            jobs[1].future.result(BOUND)
        assert pool.restarts == 0

    def test_an_error_in_finishing_is_the_pictures_own(self, pools: Pools) -> None:
        def refusing(outputs: Tensors) -> Any:
            raise InvalidOption("no such class")

        pool = pools(FakeEngine(LoadOptions(max_batch_size=4, options={"depth": 2})))
        jobs = [job_of((1, 2, 3)), job_of((1, 2, 3), refusing), job_of((3, 2, 1))]
        for job in jobs:
            pool.submit(job)
        assert_answered([jobs[0], jobs[2]], [(1, 2, 3), (3, 2, 1)])
        with pytest.raises(InvalidOption):
            jobs[1].future.result(BOUND)

    def test_of_a_worker_that_dies_both_batches_are_answered(self, pools: Pools) -> None:
        engine = HeldEngine(die=BAD, once=True)
        pool = pools(engine)
        colours = [BAD, *colours_of(4)]
        jobs = take_two(pool, engine, colours)
        engine.open.set()
        assert_answered(jobs, colours)
        assert pool.restarts == 1

    def test_who_kills_twice_takes_nobody_along(self, pools: Pools) -> None:
        """Tried again, it runs with no other batch beside it: those would have lost their worker twice as well."""
        engine = HeldEngine(die=BAD)
        pool = pools(engine)
        colours = [FIRST, *colours_of(2), BAD]
        jobs = take_two(pool, engine, colours)
        more = submit_all(pool, colours_of(20))
        engine.open.set()
        assert_answered([*jobs[:3], *more], [*colours[:3], *colours_of(20)])
        with pytest.raises(InferenceFailed, match="twice"):
            jobs[3].future.result(BOUND)
        assert pool.restarts == 2

    def test_what_is_tried_again_has_nothing_beside_it(self, pools: Pools) -> None:
        engine = HeldEngine(die=BAD, once=True)
        pool = pools(engine)
        lost = [BAD, *colours_of(4)]
        jobs = take_two(pool, engine, lost)
        fresh: list[Colour] = [(200 + i, 10, 20) for i in range(12)]
        jobs += submit_all(pool, fresh)
        engine.open.set()
        assert_answered(jobs, [*lost, *fresh])
        assert engine.together[1] == set(lost)
        again = engine.together[2:]
        assert [each for each in again if each & set(lost)] == [{colour} for colour in lost]
        assert any(len(each) > 4 for each in again)  # the others did overlap

    def test_of_a_worker_that_hangs_both_batches_are_answered_and_it_frees_its_context_when_it_is_back(
        self, pools: Pools
    ) -> None:
        engine = HeldEngine(hang=BAD, hang_s=1.0, once=True)
        pool = pools(engine, hang_timeout=0.3)
        colours = [BAD, *colours_of(4)]
        jobs = take_two(pool, engine, colours)
        lost = next(thread for thread in threading.enumerate() if thread.name == "fake-0-0")
        engine.open.set()
        assert_answered(jobs, colours)
        assert pool.restarts == 1
        lost.join(BOUND)
        assert engine.closed_on == ["fake-0-0"]
        assert engine.open_contexts == 1

    def test_a_worker_that_gets_on_is_not_taken_for_one_that_hangs(self, pools: Pools) -> None:
        """Each batch takes most of the time it has, and as long again behind the one before."""
        pool = pools(
            FakeEngine(LoadOptions(max_batch_size=1, options={"depth": 2, "latency_ms": 1000})), hang_timeout=1.7
        )
        assert_answered(submit_all(pool, colours_of(3)), colours_of(3))
        assert pool.restarts == 0

    def test_a_picture_that_hangs_workers_fails_the_second_time_and_its_neighbours_do_not(self, pools: Pools) -> None:
        pool = pools(
            FakeEngine(LoadOptions(max_batch_size=4, options={"depth": 2, "hang": BAD, "hang_s": 1.0})),
            2,
            hang_timeout=0.2,
        )
        jobs = submit_all(pool, [BAD, *colours_of(20)])
        with pytest.raises(InferenceFailed, match="did not answer"):
            jobs[0].future.result(BOUND)
        assert_answered(jobs[1:], colours_of(20))

    @pytest.mark.parametrize("slower", [None, 3], ids=["alike", "unequal"])
    @pytest.mark.parametrize("seed", range(4))
    def test_whatever_goes_wrong_every_picture_gets_its_answer_or_an_error(
        self, pools: Pools, seed: int, slower: int | None
    ) -> None:
        rng = random.Random(seed)
        beside = [FlakyEngine(rng, latency_ms=slower)] if slower else []
        pool = pools(FlakyEngine(rng), 2, beside, max_queue_size=300)
        colours = colours_of(150)
        jobs = []
        for colour in colours:
            job = job_of(colour)
            job.deadline = time.monotonic() + (0.0 if rng.random() < 0.05 else BOUND)
            pool.submit(job)
            if rng.random() < 0.1:
                job.future.cancel()
            jobs.append(job)
        outcomes = [outcome_of(job) for job in jobs]
        for outcome, colour in zip(outcomes, colours, strict=True):
            assert isinstance(outcome, (VisionpoolError, CancelledError)) or outcome == answer_for(colour)
        assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) > 50

    def test_unloaded_with_two_batches_under_way_everywhere_each_picture_is_answered_or_told_so(
        self, pools: Pools
    ) -> None:
        """Of two devices one goes on, and the other never comes back."""
        hanging, other = HeldEngine(), HeldEngine()
        colours = colours_of(60)
        jobs = [job_of(colour) for colour in colours]
        pool = pools(hanging, 1, [other], jobs, max_queue_size=60)
        eventually(lambda: len(hanging.began) == len(other.began) == 2, "both have two batches")
        other.open.set()
        pool.close(timeout=2.0)
        outcomes = [outcome_of(job) for job in jobs]
        lost = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert all(isinstance(outcome, Unavailable) for outcome in lost)
        assert len(lost) == sum(hanging.began)
        for outcome, colour in zip(outcomes, colours, strict=True):
            assert isinstance(outcome, Unavailable) or outcome == answer_for(colour)


class FlakyEngine(FakeEngine):
    """Now and then a batch fails, kills its worker, or does not begin; whichever it is."""

    def __init__(self, rng: random.Random, latency_ms: float = 0.2) -> None:
        super().__init__(LoadOptions(max_batch_size=4, options={"depth": 2, "latency_ms": latency_ms}))
        self._rng = rng

    def clone(self) -> FakeContext:
        return FlakyContext(self, self._rng)

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        what = self._rng.random()
        if what < 0.05:
            raise RuntimeError("flaky")
        if what < 0.1:
            raise WorkerKilled
        return super().run(images)


class FlakyContext(FakeDeepContext):
    def __init__(self, engine: FakeEngine, rng: random.Random) -> None:
        super().__init__(engine, 2)
        self._rng = rng

    def begin(self, batch: Tensors) -> FakePending:
        if self._rng.random() < 0.05:
            raise RuntimeError("flaky")
        return super().begin(batch)


def outcome_of(job: Job) -> Any:
    try:
        return job.future.result(BOUND)
    except (VisionpoolError, CancelledError) as error:
        return error


class TestLeaving:
    def test_who_leaves_before_its_batch_begins_costs_nothing(self, pools: Pools) -> None:
        engine = HeldEngine()
        pool = pools(engine)
        colours = [FIRST, *colours_of(4)]
        jobs = take_two(pool, engine, colours)
        later = submit_all(pool, colours_of(3))
        assert later[1].future.cancel()
        later[2].deadline = 0.0
        engine.open.set()
        assert_answered([*jobs, later[0]], [*colours, colours_of(1)[0]])
        with pytest.raises(DeadlineExceeded):
            later[2].future.result(BOUND)
        assert engine.began == [1, 4, 1]

    def test_a_batch_of_which_all_left_leaves_the_worker_at_work(self, pools: Pools) -> None:
        engine = HeldEngine()
        pool = pools(engine)
        first = hold_first(pool, engine)
        engine.open.set()
        gone = job_of((9, 9, 9))
        gone.prepare = lambda job: job.give_up()
        pool.submit(gone)
        assert_answered([first, *submit_all(pool, colours_of(3))], [FIRST, *colours_of(3)])


class TestClosing:
    def test_closing_answers_what_is_under_way_and_what_waits_then_frees_the_contexts(self, pools: Pools) -> None:
        engine = HeldEngine()
        pool = pools(engine)
        colours = [FIRST, *colours_of(10)]
        jobs = take_two(pool, engine, colours)
        threading.Timer(0.05, engine.open.set).start()
        pool.close()
        assert_answered(jobs, colours)
        assert engine.closed_on == ["fake-0-0"]

    def test_closing_fails_both_batches_of_a_worker_that_hangs(self, pools: Pools) -> None:
        engine = HeldEngine()
        pool = pools(engine)
        jobs = take_two(pool, engine, [FIRST, *colours_of(4)])
        pool.close(timeout=0.1)
        for job in jobs:
            with pytest.raises(Unavailable):
                job.future.result(0)
        assert engine.closed_on == []  # its device is at work still

    def test_the_log_counts_the_pictures_of_both_batches(self, pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR):
            engine = HeldEngine(die=FIRST, once=True)
            pool = pools(engine)
            colours = [FIRST, *colours_of(4)]
            jobs = take_two(pool, engine, colours)
            engine.open.set()
            assert_answered(jobs, colours)
        assert "worker fake-0-0 died with 5 pictures in hand: replaced" in caplog.text


class TestTakingBeside:
    """The queue, asked by a worker that has a batch under way."""

    def queue_of(self, *jobs: Job) -> JobQueue:
        queue = JobQueue(10)
        for job in jobs:
            queue.put(job)
        return queue

    def test_it_does_not_wait(self) -> None:
        queue = self.queue_of()
        assert queue.take(4, 0.0, 1) == []
        queue.close()
        assert queue.take(4, 0.0, 1) == []

    def test_it_takes_what_is_there(self) -> None:
        jobs = [job_of(FIRST) for _ in range(3)]
        assert self.queue_of(*jobs).take(2, 0.0, 1) == jobs[:2]

    def test_it_gets_nothing_where_all_that_waits_is_gone(self) -> None:
        job = job_of(FIRST)
        job.future.cancel()
        assert self.queue_of(job).take(4, 0.0, 1) == []

    def test_a_batch_that_may_still_grow_is_left(self) -> None:
        jobs = [job_of(FIRST) for _ in range(4)]
        queue = self.queue_of(*jobs[:3])
        assert queue.take(4, BOUND, 1) == []
        jobs[0].queued_at -= 2 * BOUND
        assert queue.take(4, BOUND, 1) == jobs[:3]
        queue = self.queue_of(*[job_of(FIRST) for _ in range(4)])
        assert len(queue.take(4, BOUND, 1)) == 4

    def test_one_whose_worker_was_lost_is_left_for_who_has_nothing_else(self) -> None:
        lost, fresh = job_of(FIRST), job_of(FIRST)
        queue = self.queue_of(lost)
        queue.put_back(queue.take(4))
        queue.put(fresh)
        assert queue.take(4, 0.0, 1) == []
        assert queue.take(4) == [lost]
        assert queue.take(4, 0.0, 1) == [fresh]
