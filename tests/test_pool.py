"""The workers of a model, on the fake runtime: nothing that a picture, a worker or a caller does loses an answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, wait
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed, InternalError, InvalidOption, QueueFull, Unavailable, VisionpoolError
from visionpool_server.assembly import Pictures, Piece, Rows, stack
from visionpool_server.backends import LoadOptions, Placement
from visionpool_server.backends.fake import FakeContext, FakeEngine, WorkerKilled
from visionpool_server.batching import Job, Tensors
from visionpool_server.families import split_by_row
from visionpool_server.pool import Group, Pool, PoolOptions

from tests.colour_jobs import BOUND, Colour, answer_for, assert_answered, colour_of, eventually, job_of

BAD: Colour = (250, 0, 0)  # the colour that faults are bound to
Faults = dict[str, Any]


def make_engine(faults: Faults | None = None, *, batch: int = 8, sizes: tuple[int, ...] = ()) -> FakeEngine:
    return FakeEngine(LoadOptions(max_batch_size=batch, batch_sizes=sizes, options=faults or {}))


def good_colours(count: int) -> list[Colour]:
    return [(10 + i, 200 - i, 100) for i in range(count)]


def submit_all(pool: Pool, colours: Sequence[Colour]) -> list[Job]:
    jobs = [job_of(colour) for colour in colours]
    for job in jobs:
        pool.submit(job)
    return jobs


class Gate:
    """An engine whose batches wait until `open` is set: what is queued meanwhile forms the next batch."""

    contexts, on_cpu, quick_bytes, batched = 1, False, 0, True

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.batch_sizes, self.max_batch_size = engine.batch_sizes, engine.max_batch_size
        self.open = threading.Event()
        self.entered = threading.Event()
        self.closed = False

    def clone(self) -> GatedContext:
        return GatedContext(self)

    def describe(self) -> Placement:
        return self.engine.describe()

    def shape_use(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class GatedContext(FakeContext):
    def __init__(self, gate: Gate) -> None:
        super().__init__(gate.engine)
        self._gate = gate

    def infer(self, batch: Tensors) -> Tensors:
        self._gate.entered.set()
        assert self._gate.open.wait(BOUND)
        return super().infer(batch)


class Pools:
    """Makes started pools and closes them."""

    def __init__(self) -> None:
        self._made: list[Pool] = []

    def __call__(self, engine: FakeEngine | Gate, workers: int = 1, **options: Any) -> Pool:
        pool = Pool("fake", [Group(engine, workers)], Pictures(split_by_row), PoolOptions(**options))
        pool.start()
        self._made.append(pool)
        return pool

    def close(self) -> None:
        for pool in self._made:
            pool.close()


@pytest.fixture
def pools() -> Iterator[Pools]:
    """A factory of pools; after the test all their threads are gone."""
    before = set(threading.enumerate())
    made = Pools()
    yield made
    made.close()
    eventually(lambda: not [t for t in threading.enumerate() if t not in before], "all threads of the pool ended")


@pytest.fixture
def gated(pools: Pools) -> tuple[Pool, Gate]:
    """A pool of one worker, which is held in a batch of one until `gate.open` is set."""
    gate = Gate(make_engine())
    pool = pools(gate)
    pool.submit(job_of((1, 1, 1)))
    assert gate.entered.wait(BOUND)
    return pool, gate


class TestBatches:
    def test_every_picture_gets_its_own_answer(self, pools: Pools) -> None:
        colours = good_colours(100)
        assert_answered(submit_all(pools(make_engine(), 3), colours), colours)

    def test_a_batch_forms_while_the_one_before_runs(self, gated: tuple[Pool, Gate]) -> None:
        pool, gate = gated
        colours = good_colours(11)
        jobs = submit_all(pool, colours)
        gate.open.set()
        assert_answered(jobs, colours)
        assert gate.engine.batches == [1, 8, 3]
        assert [job.batch_size for job in jobs] == [8] * 8 + [3] * 3

    def test_a_batch_is_padded_to_a_compiled_size_and_the_padding_answers_nobody(self, pools: Pools) -> None:
        gate = Gate(make_engine(sizes=(1, 4, 8)))
        pool = pools(gate)
        colours = good_colours(4)
        jobs = submit_all(pool, colours[:1])
        assert gate.entered.wait(BOUND)
        jobs += submit_all(pool, colours[1:])
        gate.open.set()
        assert_answered(jobs, colours)
        assert gate.engine.batches == [1, 4]
        assert [job.batch_size for job in jobs] == [1, 3, 3, 3]

    def test_a_delay_gathers_pictures_that_come_one_by_one(self, pools: Pools) -> None:
        engine = make_engine(batch=4)
        colours = good_colours(4)
        jobs = submit_all(pools(engine, max_queue_delay=BOUND), colours)
        assert_answered(jobs, colours)
        assert engine.batches == [4]

    def test_the_times_of_a_picture_are_measured(self, pools: Pools) -> None:
        (job,) = submit_all(pools(make_engine({"latency_ms": 20})), [(1, 2, 3)])
        job.future.result(BOUND)
        assert job.infer_s >= 0.02
        assert job.queue_s >= 0
        assert job.finish_s >= 0

    def test_stacking_one_picture_copies_nothing(self) -> None:
        pixels: NDArray[np.uint8] = np.zeros((8, 8, 3), np.uint8)
        assert np.shares_memory(stack([{"images": pixels}], 1)["images"], pixels)

    def test_stacking_fills_up_with_the_last_picture(self) -> None:
        items = [{"images": np.full((2, 2, 3), value, np.uint8)} for value in (5, 7)]
        batch = stack(items, 4)["images"]
        assert batch.shape == (4, 2, 2, 3)
        assert batch[:, 0, 0, 0].tolist() == [5, 7, 7, 7]


class TestPreparing:
    """Where each core has a worker, the workers decode and prepare too; elsewhere pictures come prepared."""

    @pytest.mark.parametrize(
        ("engine", "workers", "prepares"),
        [
            ({"on_cpu": True, "batch": 1}, 64, True),
            ({"on_cpu": True, "batch": 8}, 64, False),
            ({"on_cpu": False, "batch": 1}, 64, False),
        ],
    )
    def test_workers_prepare_where_each_core_has_one(self, engine: Any, workers: int, prepares: bool) -> None:
        made = make_engine({"on_cpu": engine["on_cpu"]}, batch=engine["batch"])
        assert Pool("fake", [Group(made, workers)], Pictures(split_by_row)).prepares is prepares

    def test_a_picture_is_prepared_by_the_worker_that_takes_it(self, pools: Pools) -> None:
        threads = []

        def prepare(job: Job) -> None:
            threads.append(threading.current_thread().name)
            job.tensors, job.finish = job_of((1, 2, 3)).tensors, colour_of

        jobs = [Job({}, colour_of, prepare=prepare) for _ in range(5)]
        pool = pools(make_engine())
        for job in jobs:
            pool.submit(job)
        assert_answered(jobs, [(1, 2, 3)] * 5)
        assert set(threads) == {"fake-0-0"}
        assert len(threads) == 5

    @pytest.mark.parametrize("error", [InvalidOption("refused"), ZeroDivisionError("secret")], ids=repr)
    def test_a_picture_that_cannot_be_prepared_is_told_so_and_its_neighbours_run(
        self, gated: tuple[Pool, Gate], error: Exception
    ) -> None:
        def prepare(job: Job) -> None:
            raise error

        pool, gate = gated
        bad, good = job_of((9, 9, 9)), job_of((1, 2, 3))
        bad.prepare = prepare
        pool.submit(bad)
        pool.submit(good)
        gate.open.set()
        assert_answered([good], [(1, 2, 3)])
        with pytest.raises(InvalidOption if isinstance(error, InvalidOption) else InternalError) as raised:
            bad.future.result(BOUND)
        assert "secret" not in str(raised.value)
        assert gate.engine.batches == [1, 1]
        assert pool.restarts == 0

    def test_a_worker_that_dies_of_preparing_is_replaced_and_the_picture_prepared_again(self, pools: Pools) -> None:
        tries = []

        def prepare(job: Job) -> None:
            tries.append(job)
            if len(tries) == 1:
                raise WorkerKilled
            job.tensors, job.finish = job_of((1, 2, 3)).tensors, colour_of

        pool = pools(make_engine())
        pool.submit(job := Job({}, colour_of, prepare=prepare))
        assert_answered([job], [(1, 2, 3)])
        assert (len(tries), pool.restarts) == (2, 1)


class TestFaults:
    def test_of_a_failed_batch_only_the_culprit_fails(self, pools: Pools) -> None:
        gate = Gate(make_engine({"fail": BAD}))
        pool = pools(gate)
        colours = good_colours(8)
        submit_all(pool, [(1, 1, 1)])
        assert gate.entered.wait(BOUND)
        jobs = submit_all(pool, [*colours[:3], BAD, *colours[3:7]])
        gate.open.set()
        assert_answered(jobs[:3] + jobs[4:], colours[:7])
        with pytest.raises(InferenceFailed) as raised:
            jobs[3].future.result(BOUND)
        assert "told to fail" not in str(raised.value)  # what a runtime says stays in the log
        assert pool.restarts == 0
        assert gate.engine.batches == [1, 8, *[1] * 8]

    def test_a_batch_that_fails_for_no_fault_of_its_pictures_is_answered_on_the_second_try(self, pools: Pools) -> None:
        gate = Gate(make_engine({"fail": BAD, "once": True}))
        pool = pools(gate)
        submit_all(pool, [(1, 1, 1)])
        assert gate.entered.wait(BOUND)
        colours = [*good_colours(3), BAD]
        jobs = submit_all(pool, colours)
        gate.open.set()
        assert_answered(jobs, colours)

    def test_an_error_in_finishing_one_picture_leaves_the_others_answered(self, gated: tuple[Pool, Gate]) -> None:
        def broken(outputs: Tensors) -> Any:
            raise IndexError("secret")

        def refusing(outputs: Tensors) -> Any:
            raise InvalidOption("no such class")

        pool, gate = gated
        jobs = [job_of((1, 2, 3)), job_of((1, 1, 2), broken), job_of((1, 1, 3), refusing), job_of((3, 2, 1))]
        for job in jobs:
            pool.submit(job)
        gate.open.set()
        assert_answered([jobs[0], jobs[3]], [(1, 2, 3), (3, 2, 1)])
        with pytest.raises(InternalError) as raised:
            jobs[1].future.result(BOUND)
        assert "secret" not in str(raised.value)
        with pytest.raises(InvalidOption):
            jobs[2].future.result(BOUND)
        assert gate.engine.batches == [1, 4]

    def test_a_dead_worker_is_replaced_and_its_pictures_answered(self, pools: Pools) -> None:
        pool = pools(make_engine({"die": BAD, "once": True}))
        colours = [BAD, *good_colours(20)]
        assert_answered(submit_all(pool, colours), colours)
        assert pool.restarts == 1

    def test_a_picture_that_kills_twice_fails_and_its_neighbours_are_answered(self, pools: Pools) -> None:
        gate = Gate(make_engine({"die": BAD}))
        pool = pools(gate)
        submit_all(pool, [(1, 1, 1)])
        assert gate.entered.wait(BOUND)
        colours = good_colours(7)
        jobs = submit_all(pool, [*colours[:4], BAD, *colours[4:]])
        gate.open.set()
        assert_answered(jobs[:4] + jobs[5:], colours)
        with pytest.raises(InferenceFailed, match="twice"):
            jobs[4].future.result(BOUND)
        assert pool.restarts == 2
        after = good_colours(5)
        assert_answered(submit_all(pool, after), after)

    def test_a_hung_worker_is_replaced_and_its_pictures_answered(self, pools: Pools) -> None:
        pool = pools(make_engine({"hang": BAD, "hang_s": 1.0, "once": True}), hang_timeout=0.2)
        colours = [BAD, *good_colours(20)]
        assert_answered(submit_all(pool, colours), colours)
        assert pool.restarts == 1

    def test_a_picture_that_hangs_workers_fails_the_second_time(self, pools: Pools) -> None:
        pool = pools(make_engine({"hang": BAD, "hang_s": 1.0}), 2, hang_timeout=0.1)
        jobs = submit_all(pool, [BAD, *good_colours(20)])
        with pytest.raises(InferenceFailed, match="did not answer"):
            jobs[0].future.result(BOUND)
        assert_answered(jobs[1:], good_colours(20))
        assert pool.restarts == 2

    def test_a_worker_that_comes_back_from_the_dead_takes_nothing_more_and_disturbs_nobody(self, pools: Pools) -> None:
        pool = pools(make_engine({"hang": BAD, "hang_s": 0.5, "once": True}), hang_timeout=0.1)
        lost = next(thread for thread in threading.enumerate() if thread.name == "fake-0-0")
        colours = [BAD, *good_colours(5)]
        assert_answered(submit_all(pool, colours), colours)
        lost.join(BOUND)
        assert not lost.is_alive()
        colours = good_colours(20)
        assert_answered(submit_all(pool, colours), colours)
        assert pool.restarts == 1

    def test_supervision_goes_on_after_many_deaths(self, pools: Pools) -> None:
        pool = pools(make_engine({"die": BAD}), 2)
        for _ in range(10):
            jobs = submit_all(pool, [BAD, (1, 2, 3)])
            with pytest.raises(InferenceFailed):
                jobs[0].future.result(BOUND)
            assert_answered(jobs[1:], [(1, 2, 3)])
        assert pool.restarts == 20

    def test_a_worker_that_cannot_start_is_tried_again(self, pools: Pools) -> None:
        engine = StubbornEngine()
        jobs = submit_all(pools(engine), [(1, 2, 3)])
        assert_answered(jobs, [(1, 2, 3)])
        assert engine.tries == 2

    def test_supervision_survives_workers_that_finish_while_it_looks(self, pools: Pools) -> None:
        pool = pools(make_engine(), 4, hang_timeout=0.0005)  # it looks all the time, and finds some of them "hung"
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            jobs = submit_all(pool, good_colours(20))
            assert not wait([job.future for job in jobs], BOUND).not_done
        assert any(thread.name == "fake-supervisor" for thread in threading.enumerate())


class StubbornEngine(FakeEngine):
    """Its first clone fails, as where a device has no memory left for the moment."""

    def __init__(self) -> None:
        super().__init__(LoadOptions())
        self.tries = 0

    def clone(self) -> FakeContext:
        self.tries += 1
        if self.tries == 1:
            raise MemoryError
        return super().clone()


class TestCancelling:
    def test_one_caller_gone_leaves_the_neighbours_of_the_batch_answered(self, gated: tuple[Pool, Gate]) -> None:
        pool, gate = gated
        colours = good_colours(4)
        jobs = submit_all(pool, colours)
        assert jobs[1].future.cancel()
        gate.open.set()
        assert_answered([jobs[0], *jobs[2:]], [colours[0], *colours[2:]])
        assert gate.engine.batches == [1, 3]
        with pytest.raises(CancelledError):
            jobs[1].future.result(0)

    def test_all_callers_gone_leaves_the_pool_at_work(self, gated: tuple[Pool, Gate]) -> None:
        pool, gate = gated
        for job in submit_all(pool, good_colours(4)):
            assert job.future.cancel()
        gate.open.set()
        after = good_colours(3)
        assert_answered(submit_all(pool, after), after)
        assert sum(gate.engine.batches) == 4


class TestAdmission:
    def test_a_place_is_a_slot_of_the_queue_or_of_a_running_batch(self, pools: Pools) -> None:
        pool = pools(make_engine(batch=2), 3, max_queue_size=4)
        for _ in range(4 + 2 * 3):
            pool.admit()
        with pytest.raises(QueueFull):
            pool.admit()
        pool.release()
        pool.admit()

    def test_every_admitted_picture_fits_into_the_queue(self, pools: Pools) -> None:
        gate = Gate(make_engine(batch=8))
        pool = pools(gate, 2, max_queue_size=2)
        colours = good_colours(2 + 8 * 2)
        jobs = []
        for colour in colours:
            pool.admit()
            jobs += submit_all(pool, [colour])
        with pytest.raises(QueueFull):
            pool.admit()
        gate.open.set()
        assert_answered(jobs, colours)

    def test_a_full_queue_says_when_to_come_back_and_what_to_change(self, pools: Pools) -> None:
        pool = pools(make_engine(batch=1), max_queue_size=1)
        pool.admit()
        pool.admit()
        with pytest.raises(QueueFull) as raised:
            pool.admit()
        assert raised.value.retry_after > 0
        assert "Retry-After" in (raised.value.hint or "")
        assert "max_queue_size" in (raised.value.hint or "")

    def test_the_time_to_come_back_grows_with_the_queue(self, pools: Pools) -> None:
        times = [retry_after(pools(make_engine(batch=1), max_queue_size=size), size + 1) for size in (1, 20, 200)]
        assert times == sorted(times)
        assert times[0] < times[1] < times[2]

    def test_the_time_to_come_back_grows_with_slower_service(self, pools: Pools) -> None:
        quick, slow = (pools(make_engine(batch=1), max_queue_size=20) for _ in range(2))
        for pool, seconds in ((quick, 0.001), (slow, 0.2)):
            pool.admit()
            for _ in range(10):
                pool.admit()
                time.sleep(seconds)
                pool.release()
            pool.release()
        assert retry_after(quick, 21) < retry_after(slow, 21)

    def test_idle_time_does_not_look_like_slow_service(self, pools: Pools) -> None:
        pool = pools(make_engine(batch=1), max_queue_size=20)
        fresh = retry_after(pool, 21)
        for _ in range(3):
            pool.admit()
            pool.release()
            time.sleep(0.3)
        assert retry_after(pool, 21) <= fresh

    def test_a_closed_pool_lets_nobody_in(self, pools: Pools) -> None:
        pool = pools(make_engine())
        pool.close()
        with pytest.raises(Unavailable):
            pool.admit()
        with pytest.raises(Unavailable):
            pool.submit(job_of((1, 2, 3)))


def retry_after(pool: Pool, places: int) -> float:
    """What a full pool says; its places are free again afterwards, without a trace in its measured rate."""
    for _ in range(places):
        pool.admit()
    with pytest.raises(QueueFull) as raised:
        pool.admit()
    with pool._changed:
        pool._admitted -= places
    return raised.value.retry_after


class TestClosing:
    def test_closing_answers_what_is_queued(self, gated: tuple[Pool, Gate]) -> None:
        pool, gate = gated
        colours = good_colours(20)
        jobs = submit_all(pool, colours)
        gate.open.set()
        pool.close()
        assert all(job.future.done() for job in jobs)
        assert_answered(jobs, colours)
        assert gate.closed

    def test_closing_fails_what_cannot_be_answered_in_time(self, gated: tuple[Pool, Gate]) -> None:
        pool, gate = gated
        jobs = submit_all(pool, good_colours(3))
        pool.close(timeout=0.1)
        for job in jobs:
            with pytest.raises(Unavailable):
                job.future.result(0)
        gate.open.set()

    def test_closing_fails_the_pictures_of_a_worker_that_hangs(self, pools: Pools) -> None:
        pool = pools(make_engine({"hang": BAD, "hang_s": 2.0}))
        (job,) = submit_all(pool, [BAD])
        eventually(job.future.running, "the worker has the picture")
        pool.close(timeout=0.1)
        with pytest.raises(Unavailable):
            job.future.result(0)

    def test_closing_answers_or_fails_the_pictures_of_a_worker_that_dies_meanwhile(self, pools: Pools) -> None:
        pool = pools(make_engine({"die": BAD, "latency_ms": 200}))
        jobs = submit_all(pool, [BAD, *good_colours(30)])
        eventually(jobs[0].future.running, "the worker has the picture")
        pool.close()
        assert all(job.future.done() for job in jobs)
        for job in jobs:
            error = job.future.exception(0)
            assert error is None or isinstance(error, VisionpoolError)

    def test_closing_twice_is_harmless(self, pools: Pools) -> None:
        pool = pools(make_engine())
        pool.close()
        pool.close()


def test_the_log_names_the_worker_and_the_reason(pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pool = pools(make_engine({"die": BAD, "once": True}))
        assert_answered(submit_all(pool, [BAD]), [BAD])
    assert "worker fake-0-0 died with 1 pictures in hand: replaced" in caplog.text


class TestAtOnce:
    """What is quicker done than handed over runs on the thread that asks."""

    @staticmethod
    def pool_of(faults: Faults) -> Pool:
        engine = FakeEngine(LoadOptions(max_batch_size=8, options={"quick_bytes": 8 * 8 * 3, **faults}))
        return Pool("fake", [Group(engine, 1)], Rows())

    @staticmethod
    def piece_of(colour: Colour, rows: int = 1) -> Piece:
        return Piece({"images": np.full((rows, 8, 8, 3), colour, np.uint8)}, rows)

    def test_it_runs_on_the_thread_that_asks_and_counts(self) -> None:
        pool = self.pool_of({})

        def finish(outputs: Tensors) -> Any:
            return threading.current_thread(), outputs["output0"][0].tolist()

        made = pool.run_at_once(self.piece_of((10, 20, 70)), finish)
        assert made is not None
        assert made[0] == (threading.current_thread(), answer_for((10, 20, 70)))
        seen = pool.statistics.snapshot()
        assert (seen.success.count, seen.inference_count, seen.execution_count, seen.fail.count) == (1, 1, 1, 0)
        assert seen.success.ns >= seen.compute_infer.ns == seen.batches[0].compute_infer.ns > 0
        assert made[1].queue == 0 and made[1].compute_infer > 0

    def test_larger_ones_are_for_the_workers(self) -> None:
        pool = self.pool_of({})
        assert pool.run_at_once(self.piece_of((1, 2, 3), rows=2), dict) is None
        assert pool.statistics.snapshot().inference_count == 0

    def test_nobody_overtakes_what_waits(self) -> None:
        pool = self.pool_of({})
        pool.submit(job_of((1, 1, 1)))
        assert pool.run_at_once(self.piece_of((1, 2, 3)), dict) is None

    def test_a_closed_pool_does_not_run_it(self) -> None:
        pool = self.pool_of({})
        pool.start()
        pool.close()
        assert pool.run_at_once(self.piece_of((1, 2, 3)), dict) is None

    def test_a_failure_is_the_callers_alone(self) -> None:
        pool = self.pool_of({"fail": BAD})
        with pytest.raises(InferenceFailed):
            pool.run_at_once(self.piece_of(BAD), dict)
        assert pool.run_at_once(self.piece_of((1, 2, 3)), dict) is not None
        seen = pool.statistics.snapshot()
        assert (seen.fail.count, seen.success.count) == (1, 1)

    def test_what_cannot_be_finished_is_ours(self) -> None:
        pool = self.pool_of({})

        def finish(_: Tensors) -> Any:
            raise RuntimeError("broken")

        with pytest.raises(InternalError):
            pool.run_at_once(self.piece_of((1, 2, 3)), finish)
        assert pool.statistics.snapshot().fail.count == 1

    def test_many_threads_do_not_mix_their_answers(self) -> None:
        pool = self.pool_of({"latency_ms": 1})
        colours = good_colours(8)
        wrong: list[Any] = []

        def ask(colour: Colour) -> None:
            for _ in range(20):
                made = pool.run_at_once(self.piece_of(colour), lambda outputs: outputs["output0"][0].tolist())
                if made is None or made[0] != answer_for(colour):
                    wrong.append(made)

        threads = [threading.Thread(target=ask, args=(colour,)) for colour in colours]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
        assert not wrong
        assert pool.statistics.snapshot().success.count == 160
