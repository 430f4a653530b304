"""What a worker does on the GPU: buffers, streams and events, on fakes that are as late and as strict as they may be."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed, InvalidRequest, Unavailable
from visionpool_server.backends import DeepContext, Pending
from visionpool_server.backends.tensorrt.settings import TensorRtSettings

from tests.fake_cuda import Work
from tests.fake_tensorrt import ICudaEngine, TensorLocation
from tests.tensorrt_bench import Bench, engine_of, found, halves, reshaped, sums, sums_batch

PLAIN = TensorRtSettings(cuda_graphs=False)
BOTH = pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "plain"])


def same(outputs: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        assert outputs[name].dtype == value.dtype and outputs[name].shape == value.shape
        np.testing.assert_array_equal(outputs[name], value)


@BOTH
def test_outputs_are_those_of_onnxruntime_for_all_sizes(graphs: bool) -> None:
    with engine_of(sums(), graphs=graphs) as bench:
        context = bench.engine.clone()
        assert isinstance(context, DeepContext)
        for rows in (1, 8, 3, 3, 3, 3, 3, 3, 1, 8):
            batch = sums_batch(rows, rows)
            same(context.infer(batch), bench.made.expected(batch))
        context.close()


def test_types_that_are_not_float32_come_as_they_are() -> None:
    with engine_of(halves()) as bench:
        batch = {"x": np.array([[1, 2, 3], [-0.5, 65504, 0]], np.float16)}
        same(bench.engine.clone().infer(batch), bench.made.expected(batch))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.lists(st.tuples(st.sampled_from("bbo"), st.integers(1, 8)), max_size=24), st.booleans()
)
def test_any_sequence_of_batches_begun_and_asked_for(seed: int, steps: list[tuple[str, int]], graphs: bool) -> None:
    """Whatever order the device does things in, and however far the host runs ahead."""
    with engine_of(sums(((1, 2, 4), (3, 8, 8))), seed=seed, graphs=graphs) as bench:
        context = bench.engine.clone()
        under_way: list[tuple[Pending, Mapping[str, NDArray[Any]]]] = []
        for number, (step, rows) in enumerate(steps):
            if step == "b" and len(under_way) < context.depth:
                batch = sums_batch(rows, number)
                expected = bench.made.expected(batch)
                under_way.append((context.begin(batch), expected))
                for array in batch.values():
                    array[:] = 0  # `begin` has come back: they are the caller's again
            elif under_way:
                one, wanted = under_way.pop(0)
                same(one.outputs(), wanted)
        for one, wanted in under_way:
            same(one.outputs(), wanted)
        context.close()
        bench.driver.assert_no_mistakes()


def test_outputs_stay_until_two_further_batches_have_begun() -> None:
    with engine_of(sums()) as bench:
        context = bench.engine.clone()
        batches = [sums_batch(4, seed) for seed in range(3)]
        first = context.begin(batches[0])
        outputs = first.outputs()
        second = context.begin(batches[1])
        same(outputs, bench.made.expected(batches[0]))
        same(second.outputs(), bench.made.expected(batches[1]))
        same(outputs, bench.made.expected(batches[0]))
        context.begin(batches[2])
        assert not np.array_equal(outputs["mixed"], bench.made.expected(batches[0])["mixed"])
        context.close()


def test_outputs_that_are_asked_for_too_late_are_refused() -> None:
    with engine_of(sums()) as bench:
        context = bench.engine.clone()
        first, *_ = [context.begin(sums_batch(2, seed)) for seed in range(3)]
        with pytest.raises(InferenceFailed, match="further batches"):
            first.outputs()


def named(bench: Bench, name: str) -> list[Work]:
    return [work for work in bench.driver.history if work.name == name]


def test_copies_and_inferences_of_different_batches_may_overlap() -> None:
    with engine_of(sums(), settings=PLAIN) as bench:
        context = bench.engine.clone()
        before = len(bench.driver.history)
        pending = [context.begin(sums_batch(8, seed)) for seed in range(2)]
        told = bench.driver.history[before:]
        uploads, computed, downloads = (
            [work for work in told if work.name == name] for name in ("upload", "inference", "download")
        )
        assert len(uploads) == 4 and len(computed) == 2 and len(downloads) == 4  # two inputs, two outputs
        assert all(computed[0].follows(upload) for upload in uploads[:2])
        assert all(download.follows(computed[0]) for download in downloads[:2])
        assert not any(upload.follows(computed[0]) for upload in uploads[2:])  # the next copy in, beside this inference
        assert not any(
            computed[1].follows(download) for download in downloads[:2]
        )  # the next inference, beside this copy out
        assert not any(upload.follows(download) for upload in uploads[2:] for download in downloads[:2])
        assert computed[1].follows(computed[0])
        for each in pending:
            each.outputs()
        context.close()


def test_memory_is_found_once_and_not_while_it_serves() -> None:
    with engine_of(sums(), settings=PLAIN) as bench:
        context = bench.engine.clone()
        before = bench.driver.calls.copy()
        for rows in (1, 8, 4, 8, 2):
            context.infer(sums_batch(rows))
        made = bench.driver.calls - before
        assert not any(made[call] for call in ("allocate", "allocate_pinned", "free", "create_event", "create_stream"))
        context.close()


def test_a_further_context_costs_its_buffers_and_not_the_weights() -> None:
    with engine_of(sums()) as bench:
        held = [bench.driver.bytes_held()]
        contexts = []
        for _ in range(3):
            contexts.append(bench.engine.clone())
            held.append(bench.driver.bytes_held())
        assert bench.trt.deserialised == 1
        assert held[2] - held[1] == held[3] - held[2] > 0
        for context in contexts:
            context.close()
        assert bench.driver.bytes_held() == held[0]


def test_two_workers_share_one_engine() -> None:
    with engine_of(sums(), seed=5) as bench:
        failures: list[BaseException] = []

        def work(worker: int) -> None:
            try:
                context = bench.engine.clone()
                for turn in range(30):
                    batch = sums_batch(1 + (turn + worker) % 8, turn * 10 + worker)
                    same(context.infer(batch), bench.made.expected(batch))
                context.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


class TestProfiles:
    def test_the_one_that_is_tuned_for_the_shape_is_taken(self) -> None:
        with engine_of(sums(((1, 1, 8), (1, 8, 8))), settings=PLAIN) as bench:
            context = bench.engine.clone()
            calls = bench.trt.calls
            for rows, switches in ((1, 0), (8, 1), (7, 0), (2, 1), (1, 0)):
                before = calls["set_optimization_profile_async"]
                batch = sums_batch(rows)
                same(context.infer(batch), bench.made.expected(batch))
                assert calls["set_optimization_profile_async"] - before == switches
            context.close()

    def test_one_that_tensorrt_does_not_take_fails_with_its_reason(self) -> None:
        with engine_of(sums(((1, 1, 8), (1, 8, 8))), settings=PLAIN) as bench:
            context = bench.engine.clone()
            bench.trt.fail("set_optimization_profile_async")
            with pytest.raises(InferenceFailed, match=r"profile 1: .*made to fail"):
                context.infer(sums_batch(8))
            same(context.infer(sums_batch(8)), bench.made.expected(sums_batch(8)))
            context.close()

    def test_a_shape_that_none_takes_is_the_callers_fault_and_hurts_nobody(self) -> None:
        with engine_of(sums(((1, 2, 2), (5, 6, 8)))) as bench:
            context = bench.engine.clone()
            with pytest.raises(InvalidRequest, match=r"\[1, 6\] to \[2, 6\] or \[5, 6\] to \[8, 6\]") as raised:
                context.begin(sums_batch(3))
            assert "runtime.profiles" in str(raised.value)
            same(context.infer(sums_batch(6)), bench.made.expected(sums_batch(6)))
            context.close()

    def test_inputs_that_do_not_go_together_are_refused(self) -> None:
        with engine_of(sums()) as bench:
            context = bench.engine.clone()
            mixed = {"x": sums_batch(3)["x"], "y": sums_batch(4)["y"]}
            with pytest.raises(InvalidRequest, match="together"):
                context.infer(mixed)
            with pytest.raises(InvalidRequest, match="missing"):
                context.infer({"x": sums_batch(3)["x"]})
            with pytest.raises(InvalidRequest, match="float64"):
                context.infer({**sums_batch(3), "x": np.zeros((3, 6))})
            same(context.infer(sums_batch(4)), bench.made.expected(sums_batch(4)))
            context.close()


class TestOpenOutputs:
    def batch(self, rows: int, seed: int) -> dict[str, NDArray[Any]]:
        return {"x": np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32)}

    @pytest.mark.parametrize("seed", range(3))
    def test_they_have_the_size_that_the_numbers_give(self, seed: int) -> None:
        with engine_of(found(), seed=seed) as bench:
            context = bench.engine.clone()
            under_way = []
            for rows in (2, 3, 64, 1, 50, 64):
                batch = self.batch(rows, rows)
                under_way.append((context.begin(batch), bench.made.expected(batch)))
                if len(under_way) == 2:
                    pending, expected = under_way.pop(0)
                    same(pending.outputs(), expected)
            same(under_way[0][0].outputs(), under_way[0][1])
            assert bench.trt.calls["set_output_allocator"] == 1  # the binding keeps what it is given, anew each time
            context.close()

    def test_they_may_be_empty(self) -> None:
        with engine_of(found()) as bench:
            context = bench.engine.clone()
            outputs = context.infer({"x": -np.ones((3, 5), np.float32)})
            assert outputs["where"].shape == (2, 0)
            context.close()

    def test_no_memory_for_them_is_said_and_the_next_batch_is_right(self) -> None:
        with engine_of(found()) as bench:
            context = bench.engine.clone()
            bench.driver.fail("allocate", status="CUDA_ERROR_OUT_OF_MEMORY")
            with pytest.raises(InferenceFailed, match="no memory left"):
                context.infer(self.batch(64, 1))
            same(context.infer(self.batch(64, 1)), bench.made.expected(self.batch(64, 1)))
            context.close()


def test_an_output_in_ram_is_never_left_to_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT writes it while an inference is enqueued: a graph that is replayed would leave what another batch had there."""

    def location(engine: ICudaEngine, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == "mixed" else TensorLocation.DEVICE

    monkeypatch.setattr(ICudaEngine, "get_tensor_location", location)
    with engine_of(sums()) as bench:
        context = bench.engine.clone()
        for rows in (2, 2, 2, 2, 5, 5, 5, 2, 2):
            same(context.infer(sums_batch(rows, rows)), bench.made.expected(sums_batch(rows, rows)))
        assert not bench.driver.calls["begin_capture"]
        context.close()


class TestInputsReadInRam:
    def test_their_numbers_decide_the_outputs_shape(self) -> None:
        with engine_of(reshaped()) as bench:
            context = bench.engine.clone()
            x = np.arange(24, dtype=np.float32).reshape(2, 12)
            pending = []
            for shape in ((4, 6), (6, 4), (24, 1), (4, 6)):
                batch = {"x": x, "shape": np.array(shape)}
                pending.append((context.begin(batch), bench.made.expected(batch)))
                if len(pending) == 2:
                    one, expected = pending.pop(0)
                    same(one.outputs(), expected)
            context.close()

    def test_numbers_out_of_the_profiles_range_are_refused(self) -> None:
        with engine_of(reshaped()) as bench:
            context = bench.engine.clone()
            with pytest.raises(InvalidRequest, match=r"of values \[0, 24\]"):
                context.infer({"x": np.zeros((2, 12), np.float32), "shape": np.array([0, 24])})
            context.close()


class TestGraphs:
    def test_what_comes_again_is_launched_at_once(self) -> None:
        with engine_of(sums()) as bench:
            context = bench.engine.clone()
            for turn in range(8):
                batch = sums_batch(4, turn)
                same(context.infer(batch), bench.made.expected(batch))
            calls = bench.driver.calls
            assert calls["end_capture"] == 2  # one for each set of buffers
            assert calls["launch_graph"] == 4  # once enqueued, once captured, and then launched, each
            assert bench.trt.calls["execute_async_v3"] == 2 + 2 * 2
            context.close()

    def test_few_are_kept_and_those_that_go_are_freed(self) -> None:
        with engine_of(sums(((1, 8, 40),))) as bench:
            context = bench.engine.clone()
            for _ in range(2):
                for rows in range(1, 25):
                    for turn in range(4):
                        batch = sums_batch(rows, turn)
                        same(context.infer(batch), bench.made.expected(batch))
            assert bench.driver.held()["graph"] == 16
            context.close()
            assert not bench.driver.held()["graph"]

    @pytest.mark.parametrize("call", ["begin_capture", "end_capture", "launch_graph"])
    def test_where_capturing_fails_it_goes_on_without(self, call: str, caplog: pytest.LogCaptureFixture) -> None:
        with engine_of(sums()) as bench:
            context = bench.engine.clone()
            bench.driver.fail(call)
            failed = 0
            for turn in range(12):
                batch = sums_batch(4, turn)
                try:
                    same(context.infer(batch), bench.made.expected(batch))
                except InferenceFailed:
                    failed += 1
            assert failed == (call == "launch_graph")
            assert caplog.text.count("no CUDA graphs") == (call != "launch_graph")
            context.close()

    @BOTH
    def test_they_can_be_switched_off(self, graphs: bool) -> None:
        with engine_of(sums(), settings=TensorRtSettings(cuda_graphs=graphs)) as bench:
            context = bench.engine.clone()
            for _ in range(6):
                context.infer(sums_batch(4))
            assert bool(bench.driver.calls["launch_graph"]) is graphs
            context.close()


def batches() -> list[dict[str, NDArray[Any]]]:
    return [sums_batch(rows, seed) for seed, rows in enumerate((4, 4, 4, 2, 4, 2, 4, 8))]


def run_through(bench: Bench) -> int:
    """Batches two at a time, as a worker does; how many failed. None that did not may be wrong."""
    failed = 0
    try:
        context = bench.engine.clone()
    except Exception:
        context, failed = bench.engine.clone(), 1
    under_way: list[tuple[Pending, Mapping[str, NDArray[Any]]]] = []
    for batch in [*batches(), None, None]:
        try:
            if batch is not None:
                under_way.append((context.begin(batch), bench.made.expected(batch)))
            if len(under_way) == 2 or (batch is None and under_way):
                pending, expected = under_way.pop(0)
                same(pending.outputs(), expected)
        except (InferenceFailed, InvalidRequest):
            failed += 1
    after = sums_batch(5, 77)
    for _ in range(2 - min(1, failed)):  # the failure may come as late as here
        try:
            same(context.infer(after), bench.made.expected(after))
        except (InferenceFailed, InvalidRequest):
            failed += 1
    context.close()
    return failed


def calls_of(graphs: bool) -> tuple[dict[str, int], dict[str, int]]:
    with engine_of(sums(), graphs=graphs) as bench:
        before = bench.driver.calls.copy(), bench.trt.calls.copy()
        assert run_through(bench) == 0
        return dict(bench.driver.calls - before[0]), dict(bench.trt.calls - before[1])


@BOTH
def test_a_failure_of_any_driver_call_costs_a_batch_at_most(graphs: bool) -> None:
    """Each call, each time it is made: nothing is lost but what failed, no number is wrong, and nothing is left."""
    spare = {"device_count", "properties", "retain", "release", "push", "pop"}
    for call, times in calls_of(graphs)[0].items():
        for at in range(1, times + 1) if call not in spare else ():
            with engine_of(sums(), graphs=graphs, seed=at) as bench:
                bench.driver.fail(call, at)
                assert run_through(bench) <= 1, (call, at)
                bench.driver.assert_no_mistakes()


@BOTH
def test_a_failure_of_any_call_of_tensorrt_costs_a_batch_at_most(graphs: bool) -> None:
    for call, times in calls_of(graphs)[1].items():
        for at in range(1, times + 1):
            with engine_of(sums(), graphs=graphs, seed=at) as bench:
                bench.trt.fail(call, at)
                assert run_through(bench) <= 1, (call, at)
                assert bench.trt.failed == [call]
                bench.driver.assert_no_mistakes()


def test_what_tensorrt_says_is_in_the_message() -> None:
    with engine_of(sums(), settings=PLAIN) as bench:
        context = bench.engine.clone()
        bench.trt.fail("execute_async_v3")
        with pytest.raises(InferenceFailed, match="API Usage Error"):
            context.infer(sums_batch(2))
        context.close()


@BOTH
def test_a_device_that_is_lost_is_said_so_once_and_for_all(graphs: bool, caplog: pytest.LogCaptureFixture) -> None:
    with engine_of(sums(), graphs=graphs) as bench:
        context = bench.engine.clone()
        pending = context.begin(sums_batch(2))
        bench.trt.fault = "CUDA_ERROR_ILLEGAL_ADDRESS"
        wrong = context.begin(sums_batch(2))
        for attempt in (pending.outputs, wrong.outputs, lambda: context.infer(sums_batch(1))):
            try:
                attempt()
            except Unavailable as error:
                assert "restarted" in str(error) and "ILLEGAL_ADDRESS" in str(error)
            else:
                assert attempt == pending.outputs  # it may have been done before the other broke the device
        assert caplog.text.count("is lost to this process") == 1
        context.close()
