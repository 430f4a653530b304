"""An engine: what it takes in one batch, what it tells, pictures on their way into it, and how it ends."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from visionpool.errors import BackendUnavailable, InvalidModel, Unavailable
from visionpool_server.backends import Engine, ImageInput, LoadOptions
from visionpool_server.backends.survey import Timing
from visionpool_server.backends.tensorrt.api import find_api
from visionpool_server.backends.tensorrt.buffers import Slot
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.layers import profiler, timings
from visionpool_server.backends.tensorrt.outputs import allocator
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.backends.tensorrt.tensors import Tensor
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.cuda.pictures import KERNEL
from visionpool_server.imaging.recipe import Arithmetic, Letterbox, Recipe

from tests import fake_tensorrt
from tests.cpu_kernels import CpuKernel, compiled_kernel, picture_spans
from tests.fake_cuda import FakeDriver
from tests.fake_tensorrt import FakeTensorRt, ICudaEngine, make_plan
from tests.tensorrt_bench import Made, as_bytes, engine_of, found, halves, reshaped, scaled, sums, sums_batch
from tests.tiny_models import Graph

API = Path(__file__).with_name("tensorrt_api.json")
SIZE = (12, 16)
ARITHMETIC = Arithmetic(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def options(**more: Any) -> LoadOptions:
    return LoadOptions(device="cuda:0", **more)


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_fake_has_only_names_that_tensorrt_has(version: str) -> None:
    api = json.loads(API.read_text())[version]
    checked = 0
    own = {name: getattr(fake_tensorrt, name, None) for name in vars(FakeTensorRt) if not name.startswith("_")}
    for name, kind in [*own.items(), *((n, getattr(fake_tensorrt, n)) for n in ("Runtime", "ICudaEngine"))]:
        if not isinstance(kind, type):
            continue
        assert name in api, name
        members = {member for member in vars(kind) if not member.startswith("_")}
        assert not api[name] or members <= {*api[name], "infer", "array", "output_shapes"}, name
        checked += 1
    for name in ("IExecutionContext", "EngineInspector"):
        assert {member for member in vars(getattr(fake_tensorrt, name)) if member[0] != "_"} <= set(api[name])
    assert checked >= 10


class TestBatches:
    @pytest.mark.parametrize(
        ("said", "batched", "sizes", "limit"),
        [
            ({}, True, (), 1),
            ({"max_batch_size": 8}, True, (), 8),
            ({"max_batch_size": 5}, True, (), 5),
            ({"batch_sizes": (4, 2)}, True, (2, 4), 4),
        ],
    )
    def test_rows_are_joined_where_the_first_dimension_is_the_batch(
        self, said: dict[str, Any], batched: bool, sizes: tuple[int, ...], limit: int
    ) -> None:
        made = one_input()
        with engine_of(made, options=options(**said)) as bench:
            engine: Engine = bench.engine
            assert (engine.batched, engine.batch_sizes, engine.max_batch_size) == (batched, sizes, limit)
            assert not engine.on_cpu and engine.contexts == 2 and engine.quick_bytes == 0 and engine.shape_use() is None

    def test_sizes_that_no_profile_takes_are_left_out(self) -> None:
        with engine_of(one_input(((2, 2, 3), (6, 6, 7))), options=options(max_batch_size=7)) as bench:
            assert bench.engine.batch_sizes == (2, 3, 6, 7)

    def test_more_than_it_was_built_for_is_refused(self) -> None:
        with (
            pytest.raises(InvalidModel, match="batches of 1 to 8, not of 9") as raised,
            engine_of(one_input(), options=options(max_batch_size=9)),
        ):
            pass
        assert "runtime.profiles" in str(raised.value)

    @pytest.mark.parametrize("made", [found, reshaped], ids=lambda make: make.__name__)
    def test_what_has_no_batch_is_run_alone(self, made: Any) -> None:
        with engine_of(made()) as bench:
            assert (bench.engine.batched, bench.engine.batch_sizes, bench.engine.max_batch_size) == (False, (), 1)
        with pytest.raises(InvalidModel, match="1 at a time"), engine_of(made(), options=options(max_batch_size=2)):
            pass

    def test_a_fixed_first_dimension_is_a_batch_where_somebody_says_so(self) -> None:
        with engine_of(halves()) as bench:
            assert (bench.engine.batched, bench.engine.max_batch_size) == (False, 1)
        with engine_of(halves(), options=options(max_batch_size=2)) as bench:
            assert (bench.engine.batched, bench.engine.batch_sizes, bench.engine.max_batch_size) == (True, (2,), 2)
        with pytest.raises(InvalidModel, match="2, not of 3"), engine_of(halves(), options=options(max_batch_size=3)):
            pass

    def test_a_picture_model_joins_as_many_as_its_profiles_allow(self) -> None:
        with pictures_engine() as bench:
            assert (bench.engine.batched, bench.engine.batch_sizes, bench.engine.max_batch_size) == (True, (), 8)

    def test_a_fixed_batch_is_padded_to(self) -> None:
        with pictures_engine(scaled((4, 4, 4))) as bench:
            assert (bench.engine.batch_sizes, bench.engine.max_batch_size) == ((4,), 4)


def one_input(profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),)) -> Made:
    graph = Graph()
    graph.add("Neg", graph.input("x", ["n", 6]), output="y")
    graph.output("y", ["n", 6])
    model = as_bytes(graph)
    return Made(model, make_plan(model, [{"x": ((a, 6), (b, 6), (c, 6))} for a, b, c in profiles]))


class TestLayers:
    def test_their_times_are_told_by_kind(self) -> None:
        with engine_of(sums()) as bench:
            assert [layer.kind for layer in bench.engine.layers()] == sums().kinds
            timings = {timing.kind: timing for timing in bench.engine.profile(sums_batch(4), 0.0)}
            counts = Counter(sums().kinds)
            assert {kind: timing.count for kind, timing in timings.items()} == counts
            assert all(timings[kind].ms == pytest.approx(0.5 * count) for kind, count in counts.items())
            assert all(timing.device == "cuda:0" for timing in timings.values())

    def test_names_stand_for_kinds_where_the_engine_tells_no_more(self) -> None:
        with engine_of(sums(detailed=False)) as bench:
            assert all(layer.kind == layer.name for layer in bench.engine.layers())
            assert len(bench.engine.profile(sums_batch(4), 0.0)) == len(sums().kinds)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CpuKernel:
    return compiled_kernel(tmp_path_factory.mktemp("kernel"))


def pictures_engine(made: Made | None = None, kernel: Any = None, **more: Any) -> Any:
    driver = FakeDriver(seed=3)
    driver.kernel(KERNEL, kernel or (lambda grid, block, arguments: None), picture_spans if kernel else None)
    image = ImageInput("images", more.pop("layout", "NCHW"), ARITHMETIC, SIZE, **more)
    return engine_of(made or scaled(), driver=driver, options=options(image=image))


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3)).astype(np.uint8)


class TestPictures:
    """With the kernel's own source, compiled for the CPU: it proves what is computed, and when, not how it is on a GPU."""

    def test_pixels_become_what_the_arithmetic_makes_of_them(self, kernel: CpuKernel) -> None:
        with pictures_engine(kernel=kernel) as bench:
            context = bench.engine.clone()
            under_way: list[Any] = []
            for count in (1, 8, 3, 3, 3, 3, 3, 8):
                ratio = np.random.default_rng(count).random((count, 2), np.float32)
                pixels = pictures(count, count)
                wanted = {"images": ARITHMETIC.apply(pixels, "NCHW", np.dtype(np.float32)), "ratio": ratio}
                under_way.append((context.begin({"images": pixels, "ratio": ratio}), bench.made.expected(wanted)))
                pixels[:] = 0
                if len(under_way) == 2:
                    check(*under_way.pop(0))
            check(*under_way.pop())
            context.close()

    def test_pictures_that_were_not_prepared_are_resized_on_the_way(self, kernel: CpuKernel) -> None:
        recipe = Recipe((Letterbox(SIZE),), ARITHMETIC)
        originals = [pictures(1, seed)[0, :, : 5 + seed] for seed in range(4)]
        prepared = np.stack([recipe.prepare(original)[0] for original in originals])
        ratio = np.ones((4, 2), np.float32)
        with pictures_engine(kernel=kernel, unprepared=True) as bench:
            context = bench.engine.clone()
            waiting = np.array([recipe.on_gpu().prepare(original)[0][()] for original in originals], object)
            wanted = {"images": ARITHMETIC.apply(prepared, "NCHW", np.dtype(np.float32)), "ratio": ratio}
            check(context.begin({"images": waiting, "ratio": ratio}), bench.made.expected(wanted))
            context.infer(bench.engine.example())
            context.close()

    def test_the_copy_in_of_the_next_batch_waits_for_no_inference(self, kernel: CpuKernel) -> None:
        with pictures_engine(kernel=kernel) as bench:
            context = bench.engine.clone()
            before = len(bench.driver.history)
            batch = {"images": pictures(4), "ratio": np.ones((4, 2), np.float32)}
            pending = [context.begin(batch) for _ in range(2)]
            told = bench.driver.history[before:]
            inference = next(work for work in told if work.name == "inference")
            kernels = [work for work in told if work.name == KERNEL]
            uploads = [work for work in told if work.name == "upload"]
            assert inference.follows(kernels[0]) and all(kernels[0].follows(upload) for upload in uploads[:2])
            assert not any(upload.follows(inference) for upload in uploads[2:])
            for one in pending:
                one.outputs()
            context.close()

    def test_the_cpu_does_it_for_types_that_the_kernel_does_not_write(self) -> None:
        graph = Graph()
        graph.add(
            "Add", graph.input("images", ["n", 3, *SIZE], TensorProto.INT32), graph.constant(1, np.int32), output="y"
        )
        graph.output("y", ["n", 3, *SIZE], TensorProto.INT32)
        model = as_bytes(graph)
        made = Made(model, make_plan(model, [{"images": tuple((n, 3, *SIZE) for n in (1, 2, 4))}]))  # type: ignore[dict-item]
        image = ImageInput("images", "NCHW", Arithmetic(scale=1.0), SIZE)
        with engine_of(made, options=options(image=image)) as bench:
            context = bench.engine.clone()
            pixels = pictures(3)
            outputs = context.infer({"images": pixels})
            np.testing.assert_array_equal(outputs["y"], pixels.transpose(0, 3, 1, 2).astype(np.int32) + 1)
            context.close()

    def test_an_input_that_is_not_there_is_said_and_nothing_left(self) -> None:
        image = ImageInput("pictures", "NCHW", ARITHMETIC, SIZE)
        driver = FakeDriver()
        with (
            pytest.raises(InvalidModel, match="images, ratio") as kept,
            engine_of(scaled(), driver=driver, options=options(image=image)),
        ):
            pass
        driver.assert_clean()
        assert kept.tb  # which kept nothing of TensorRT's


def check(pending: Any, expected: dict[str, NDArray[Any]]) -> None:
    outputs = pending.outputs()
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-6)


def test_the_example_is_of_what_it_is_tuned_for() -> None:
    with engine_of(sums()) as bench:
        assert {name: array.shape for name, array in bench.engine.example().items()} == {"x": (4, 6), "y": (4, 6)}
        context = bench.engine.clone()
        context.infer(bench.engine.example())
        context.close()
    with engine_of(reshaped()) as bench:
        np.testing.assert_array_equal(bench.engine.example()["shape"], [4, 6])
        context = bench.engine.clone()
        assert context.infer(bench.engine.example())["y"].shape == (4, 6)
        context.close()


class TestEnd:
    def test_contexts_of_this_thread_end_with_it(self) -> None:
        with engine_of(sums()) as bench:
            contexts = [bench.engine.clone() for _ in range(2)]
            contexts[0].begin(sums_batch(2))
            bench.engine.close()
            bench.engine.close()
            bench.driver.assert_clean()
            with pytest.raises(Unavailable, match="unloaded"):
                contexts[0].begin(sums_batch(2))
            with pytest.raises(Unavailable, match="unloaded"):
                bench.engine.clone()

    def test_a_context_in_use_ends_first(self) -> None:
        """What another thread still has its hands on is not taken away."""
        with engine_of(sums()) as bench:
            begun, go_on = threading.Event(), threading.Event()
            seen: list[Any] = []

            def work() -> None:
                context = bench.engine.clone()
                outputs = context.infer(sums_batch(3))
                begun.set()
                go_on.wait(20)
                seen.append(outputs["mixed"].copy())
                context.close()

            thread = threading.Thread(target=work)
            thread.start()
            assert begun.wait(20)
            bench.engine.close()
            assert bench.driver.held()["pinned"]
            go_on.set()
            thread.join()
            np.testing.assert_array_equal(seen[0], sums().expected(sums_batch(3))["mixed"])
            bench.driver.assert_clean()

    def test_a_context_that_hangs_while_it_is_made_holds_nobody_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a device that hangs while the server is stopped: what is left ends when it comes back."""
        asked, go_on = threading.Event(), threading.Event()
        seen: list[NDArray[Any]] = []
        create = ICudaEngine.create_execution_context

        def hang(engine: ICudaEngine, *strategy: Any) -> Any:
            asked.set()
            assert go_on.wait(60)
            return create(engine, *strategy)

        def work() -> None:
            context = bench.engine.clone()
            seen.append(context.infer(sums_batch(3))["mixed"].copy())
            context.close()

        with engine_of(sums()) as bench:
            monkeypatch.setattr(ICudaEngine, "create_execution_context", hang)
            thread = threading.Thread(target=work)
            thread.start()
            assert asked.wait(60)
            bench.engine.close()
            assert bench.driver.held()["context"] == 1
            with pytest.raises(Unavailable):
                bench.engine.example()
            go_on.set()
            thread.join()
            np.testing.assert_array_equal(seen[0], sums().expected(sums_batch(3))["mixed"])
            bench.driver.assert_clean()

    def test_contexts_of_threads_that_have_ended_are_closed(self) -> None:
        with engine_of(sums()) as bench:
            thread = threading.Thread(target=lambda: bench.engine.clone().infer(sums_batch(2)))
            thread.start()
            thread.join()
            bench.engine.close()
            bench.driver.assert_clean()


def test_what_tensorrt_calls_back_is_made_of_its_own_classes() -> None:
    """By the real bindings, which refuse an instance whose base was not initialised."""
    trt = pytest.importorskip("tensorrt_rtx")
    api = find_api("tensorrt_rtx")
    driver = FakeDriver()
    gpu = Gpu(driver, 0)
    with gpu.current():
        slot = Slot(gpu, Tensor("y", (-1,), np.dtype(np.float32), is_input=False, on_host=False))
        given: Any = allocator(api)
        given.expect(slot)
        assert isinstance(given, trt.IOutputAllocator)
        address = given.reallocate_output_async("y", 0, 40, 256, 7)
        assert driver.room(address) == 40 and given.reallocate_output("y", address, 30, 256) == address
        given.notify_shape("y", trt.Dims((2, 5)))
        assert given.shape == (2, 5)
        driver.fail("allocate")
        assert given.reallocate_output_async("y", address, 80, 256, 7) == 0
        with pytest.raises(CudaError):
            given.raise_refusal()
        given.raise_refusal()  # once
    times: Any = profiler(api)
    assert isinstance(times, trt.IProfiler)
    for ms in (0.25, 0.5):
        times.report_layer_time("conv", ms)
    assert timings(times, 3, (), "cuda:0") == (Timing("conv", "cuda:0", 1, 0.25),)
    gpu.close()
    driver.assert_clean()


class TestLoading:
    def make(self, plan: bytes, driver: FakeDriver, trt: FakeTensorRt, settings: TensorRtSettings | None = None) -> Any:
        return TensorRtEngine(trt.api(), plan, options(), settings or TensorRtSettings(), Gpu(driver, 0))

    def test_what_is_no_plan_is_said_and_leaves_nothing(self) -> None:
        driver = FakeDriver()
        with pytest.raises(BackendUnavailable, match="no TensorRT engine"):
            self.make(b"junk", driver, FakeTensorRt(driver))
        driver.assert_clean()

    def test_a_plan_for_another_gpu_is_said(self) -> None:
        driver = FakeDriver()
        trt = FakeTensorRt(driver)
        trt.fail("deserialize_cuda_engine")
        with pytest.raises(BackendUnavailable, match=r"another GPU than Fake 0 \(compute capability 9.0\)"):
            self.make(sums().plan, driver, trt)
        driver.assert_clean()

    def test_a_layout_that_no_array_has_is_said_and_nothing_left(self) -> None:
        driver = FakeDriver()
        with pytest.raises(InvalidModel, match="CHW4") as kept:
            self.make(make_plan(halves().model, layout="CHW4"), driver, FakeTensorRt(driver))
        driver.assert_clean()
        assert kept.tb

    @pytest.mark.parametrize("call", ["push", "allocate", "create_stream"])
    def test_a_driver_that_fails_meanwhile_leaves_nothing(self, call: str) -> None:
        driver = FakeDriver()
        driver.fail(call)
        with pytest.raises(CudaError):
            self.make(sums().plan, driver, FakeTensorRt(driver))
        driver.assert_clean()

    @pytest.mark.parametrize(("said", "budget"), [(False, 4 << 20), (True, 2 << 20), (1, 1 << 20), (9, 4 << 20)])
    def test_weights_are_streamed_as_far_as_said(self, said: Any, budget: int) -> None:
        made = Made(sums().model, make_plan(sums().model, [dict.fromkeys("xy", ((1, 6),) * 3)], weights=4 << 20))
        with engine_of(made, settings=TensorRtSettings(weight_streaming=said)) as bench:
            loaded = bench.engine._loaded
            assert loaded and loaded.engine.weight_streaming_budget_v2 == budget

    def test_an_automatic_budget_beyond_32_bits_is_no_negative_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The binding's: `[](ICudaEngine& self) -> int32_t { return self.getWeightStreamingAutomaticBudget(); }`."""
        monkeypatch.setattr(ICudaEngine, "get_weight_streaming_automatic_budget", lambda self: (3 << 30) - (1 << 32))
        made = Made(sums().model, make_plan(sums().model, [dict.fromkeys("xy", ((1, 6),) * 3)], weights=4 << 20))
        with engine_of(made, settings=TensorRtSettings(weight_streaming=True)) as bench:
            loaded = bench.engine._loaded
            assert loaded and loaded.engine.weight_streaming_budget_v2 == 4 << 20

    def test_an_input_in_ram_that_says_no_shape_has_no_range_of_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise RuntimeError("Binding index does not correspond to an input shape tensor.")

        monkeypatch.setattr(ICudaEngine, "get_tensor_profile_values", refuse)
        with engine_of(reshaped()) as bench:
            context = bench.engine.clone()
            batch = {"x": np.ones((2, 12), np.float32), "shape": np.array([4, 6])}
            np.testing.assert_array_equal(context.infer(batch)["y"], bench.made.expected(batch)["y"])
            context.close()
